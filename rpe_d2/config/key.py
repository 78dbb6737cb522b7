"""A configuration key: its default, its meaning and its allowed values."""

import sys
from dataclasses import dataclass
from functools import reduce
from operator import getitem
from typing import Any, Callable, Dict, Mapping, Optional, Tuple

# The normalization layers that detectron2.layers.get_norm knows by name; "" is none.
NORMS = (
    "", "BN", "SyncBN", "FrozenBN", "GN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N", "LN",
)  # fmt: skip
GN_GROUPS = 32  # of the normalization "GN" of get_norm
_LARGEST = {bool: 1, int: 2**63 - 1, float: sys.float_info.max}


def value_of(cfg: Mapping[str, Any], key: str) -> Any:
    """Returns the value of a key such as "MODEL.RPE.STRIDE"."""
    return reduce(getitem, key.split("."), cfg)


@dataclass(frozen=True)
class Key:
    """A configuration key.

    The default also determines the type of the values. An empty list is a list of strings unless
    ``elements`` says otherwise, and a float key accepts integers. Bounds, choices and unit of a
    list apply to each of its elements.

    Attributes:
        default: a bool, int, float, string or list.
        meaning: one to three sentences for the documentation.
        low, high: the smallest and the largest allowed value. A number has ``low`` or ``above``.
        above, below: exclusive bounds.
        choices: all allowed values.
        unit: what a number counts, or what a string names, in the plural: "pixels".
        nonempty: whether a list needs at least one element.
        elements: type of the elements of a list that is empty by default.
        is_allowed: a further condition that a text has to meet; ``unit`` describes it.
    """

    default: Any
    meaning: str
    low: Optional[float] = None
    high: Optional[float] = None
    above: Optional[float] = None
    below: Optional[float] = None
    choices: Tuple[Any, ...] = ()
    unit: str = ""
    nonempty: bool = False
    elements: type = str
    is_allowed: Optional[Callable[[str], bool]] = None

    @property
    def kind(self) -> type:
        """The type of the value, or of the elements of a list."""
        if not isinstance(self.default, list):
            return type(self.default)
        return type(self.default[0]) if self.default else self.elements

    @property
    def allowed(self) -> str:
        """The allowed values in words, for error messages and for the documentation."""
        if isinstance(self.default, list):
            return self._allowed_list()
        if self.kind is bool:
            return "True or False"
        if self.kind is str and not self.choices:
            return self.unit or "text"
        return f"{self._range()} {self.unit}".strip()

    def check(self, name: str, value: Any) -> None:
        """Checks a value.

        Args:
            name: full name of the key, for the message.

        Raises:
            ValueError: The message is one line with the name, the value and what is allowed.
        """
        if isinstance(self.default, list):
            is_list = isinstance(value, (list, tuple)) and len(value) >= self.nonempty
            is_allowed = is_list and all(self._allows(element) for element in value)
        else:
            is_allowed = self._allows(value)
        if not is_allowed:
            raise ValueError(f"{name} is {value!r}; allowed: {self.allowed}")

    def _allows(self, value: Any) -> bool:
        if type(value) is not self.kind and not (self.kind is float and type(value) is int):
            return False
        if self.is_allowed is not None:
            return self.is_allowed(value)
        if self.choices:
            return value in self.choices
        # NaN and infinite values fail, and so do integers that torch cannot hold.
        return (
            (isinstance(value, str) or abs(value) <= _LARGEST[self.kind])
            and (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def _range(self) -> str:
        if self.choices:
            # Quotes make an empty string visible.
            texts = [repr(c) if "" in self.choices else str(c) for c in self.choices]
            is_pair_of_numbers = len(texts) == 2 and self.kind is not str
            return " or ".join(texts) if is_pair_of_numbers else ", ".join(texts)
        is_open = self.high is None and self.below is None
        upper = f"below {self.below}" if self.high is None else f"{self.high:g}"
        if self.above is None:
            return f"{self.low:g} or more" if is_open else f"{self.low:g} to {upper}"
        lower = f"above {self.above:g}"
        if is_open:
            return lower
        return f"{lower} and {upper}" if self.high is None else f"{lower}, up to {upper}"

    def _allowed_list(self) -> str:
        start = "one or more" if self.nonempty else "a list of"
        if self.choices:
            return f"{start} of {self._range()}" if self.nonempty else f"{start} {self._range()}"
        if self.kind is str:
            return f"{start} {self.unit or 'texts'}"
        return f"{start} {self.unit or 'numbers'} {self._range()}"


Keys = Dict[str, Key]  # the keys of one node by name


def is_parsed_by(parse: Callable[[str], Any]) -> Callable[[str], bool]:
    """Returns a condition for ``Key.is_allowed``: that a parser raises no ValueError."""

    def is_allowed(text: str) -> bool:
        try:
            parse(text)
        except ValueError:
            return False
        return True

    return is_allowed
