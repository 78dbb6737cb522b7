"""Checks of constructor arguments, with the same message as the checks of configuration keys."""

import math
from typing import Any, Sequence


def check_range(name: str, value: float, low: float, high: float = math.inf) -> None:
    """Checks that a number lies in a closed interval.

    Raises:
        ValueError: it does not, or it is NaN.
    """
    if not low <= value <= high:
        allowed = f"{low} or more" if high == math.inf else f"{low} to {high}"
        raise ValueError(f"{name} is {value}; allowed: {allowed}")


def check_positive(name: str, value: float) -> None:
    """Checks that a number is finite and greater than 0.

    Raises:
        ValueError: it is not, or it is NaN.
    """
    if not 0 < value < math.inf:
        raise ValueError(f"{name} is {value}; allowed: numbers above 0")


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    """Checks that a value is one of several.

    Raises:
        ValueError: it is not.
    """
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; allowed: {', '.join(map(str, choices))}")
