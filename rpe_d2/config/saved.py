"""Loading configurations that earlier versions of rpe_d2 saved."""

import functools
import math
import re
from typing import Any, Dict, Iterator, List

from detectron2.config import CfgNode

from .key import value_of
from .key_table import all_keys
from .nearest import nearest

# Keys that became constructor arguments, with the defaults that they had.
REMOVED_KEYS: Dict[str, Any] = {
    "MODEL.DEEPMASK.OBJECT_SIZE": 128 / 224,
    "MODEL.DEEPMASK.POSITIVE_SHIFT": 16 / 224,
    "MODEL.DEEPMASK.NEGATIVE_SHIFT": 32 / 224,
    "MODEL.DEEPMASK.NEGATIVE_SCALE": 1.0,
    "MODEL.DEEPMASK.SCORE_LOSS_WEIGHT": 1 / 32,
    "MODEL.DEEPMASK.DROPOUT": 0.5,
    "MODEL.DEEPMASK.SHARPMASK_DIM": 32,
    "MODEL.INSTANCE_FCN.OBJECT_SIZE": 128 / 224,
    "MODEL.INSTANCE_FCN.POSITIVE_SHIFT": 16 / 224,
    "MODEL.INSTANCE_FCN.NEGATIVE_SHIFT": 32 / 224,
    "MODEL.INSTANCE_FCN.NEGATIVE_SCALE": 1.0,
    "MODEL.INSTANCE_FCN.MASK_LOSS_WEIGHT": 1.0,
    "MODEL.INSTANCE_FCN.MASK_THRESHOLD": 0.5,
    "MODEL.MNC.MASK_SIZE": 28,
    "MODEL.MNC.MASK_LOSS_WEIGHT": 1.0,
    "MODEL.MNC.EASY_BACKGROUND": 0.15,
    "MODEL.MNC.VOTE_IOU": 0.5,
    "MODEL.MNC.MASK_THRESHOLD": 0.4,
    "MODEL.FCIS.PARTS": 7,
    "MODEL.FCIS.CELLS": 3,
    "MODEL.FCIS.MASK_LOSS_WEIGHT": 10.0,
    "MODEL.FCIS.VOTE_IOU": 0.5,
    "MODEL.FCIS.MASK_THRESHOLD": 0.4,
    "MODEL.SDS.COARSE_SIZE": 10,
    "MODEL.SDS.MASK_SIZE": 28,
    "MODEL.HYPERCOLUMN.GRID": 5,
    "MODEL.RPE.MERGE_DISTANCE": 0.0,
    "MODEL.RPE.OVERLAP_THRESH_TEST": 0.5,
    "MODEL.RPE.PROPOSALS.NMS_TYPE": "mask",
    "MODEL.RPE.PROPOSALS.TIP_THRESHOLD": 0.2,
    "MODEL.SPN.NUM_MASKS": 8,
    "MODEL.SPN.JITTER": 2,
    "MODEL.SPN.COARSE_FACTORS": [4, 2, 8],
}


# yacs' message about a value of a wrong type, with both values and the key.
_MISMATCH = re.compile(r"Type mismatch .*? with values \((.*)\) for config key: (\S+)", re.DOTALL)
# What Detectron2's keys allow, by the type of the default.
_TYPES = {
    bool: "True or False",
    int: "an integer",
    float: "a number",
    list: "a list",
    tuple: "a list",
}

# Keys whose values are texts that look like numbers or lists, as "0,1,2".
TEXT_KEYS = ("INPUT.CHANNELS", "INPUT.INTENSITY")


class RPECfgNode(CfgNode):
    """The top-level node of a configuration with the keys of rpe_d2.

    It differs from Detectron2's CfgNode when another configuration is merged:

    1. A key that became a constructor argument is accepted if its value is the default, and
       rejected otherwise. yacs would ignore the value of a deprecated key.
    2. The error about an unknown key lists the nearest known ones.
    3. A value such as ``0,1,2`` of a key in ``TEXT_KEYS`` stays a text without quotes around it.
    4. An integer is accepted where a float is expected.
    5. The error about a value of a wrong type says what is allowed.

    The nodes below it are Detectron2's own, so other projects can add theirs.
    """

    # yacs creates new nodes of the class of the top node, and does not merge different classes.
    @classmethod
    def _create_config_tree_from_dict(cls, dic: Dict[str, Any], key_list: List[str]):
        return CfgNode._create_config_tree_from_dict(dic, key_list)

    @classmethod
    def _decode_cfg_value(cls, value: Any) -> Any:
        return CfgNode._decode_cfg_value(value)

    def merge_from_other_cfg(self, cfg_other: CfgNode) -> None:
        """Merges another configuration.

        Raises:
            ValueError: The value of a removed key is not its default, or a type is wrong.
            KeyError: A key is unknown.
        """
        cfg_other = cfg_other.clone()
        _drop_removed(cfg_other)
        for key in TEXT_KEYS:
            *path, name = key.split(".")
            node = functools.reduce(lambda node, part: node.get(part, {}), path, cfg_other)
            if name in node:
                node[name] = _quoted(node[name])
        _make_floats(cfg_other, self)
        try:
            super().merge_from_other_cfg(cfg_other)
        except KeyError as error:
            raise KeyError(self._with_nearest(str(error.args[0]))) from error
        except ValueError as error:
            raise ValueError(self._with_allowed(str(error))) from error

    def merge_from_list(self, cfg_list: List[str]) -> None:
        """Merges a list of keys and values in turn, as from the command line.

        Raises:
            ValueError: The value of a removed key is not its default, a type is wrong, or a node
                is given a value.
            KeyError: A key is unknown.
            AssertionError: The last key has no value.
        """
        kept = []
        for position in range(0, len(cfg_list), 2):
            pair = cfg_list[position : position + 2]
            if len(pair) == 2 and pair[0] in TEXT_KEYS:
                pair = [pair[0], _quoted(pair[1])]
            if len(pair) == 2 and pair[0] in REMOVED_KEYS:
                _check_removed(pair[0], self._decode_cfg_value(pair[1]))
            else:
                kept += pair
        for position in range(1, len(kept), 2):
            kept[position] = self._checked_override(*kept[position - 1 : position + 1])
        try:
            super().merge_from_list(kept)
        except ValueError as error:
            raise ValueError(self._with_allowed(str(error))) from error

    def _checked_override(self, key: str, value: Any) -> Any:
        """Returns the value of an override, an integer as a float where the key is one."""
        if self.key_is_renamed(key) or self.key_is_deprecated(key):
            return value
        node = self
        for part in key.split("."):
            if not isinstance(node, CfgNode) or part not in node:
                raise KeyError(self._with_nearest(f"Non-existent config key: {key}"))
            node = node[part]
        if isinstance(node, CfgNode):
            first = next(iter(node), "")
            raise ValueError(f"{key} is {value}; allowed: values of its keys, {key}.{first} …")
        decoded = self._decode_cfg_value(value)
        return _as_float(decoded) if type(node) is float and type(decoded) is int else value

    def _with_nearest(self, message: str) -> str:
        """Adds the nearest known keys to yacs' message about an unknown one."""
        unknown = re.fullmatch(r"Non-existent config key: (\S+)", message)
        if not unknown:
            return message
        return f"{message}; the nearest known keys: {nearest(unknown[1], key_names(self))}"

    def _with_allowed(self, message: str) -> str:
        """Rewrites yacs' message about a value of a wrong type."""
        mismatch = _MISMATCH.fullmatch(message)
        if not mismatch:
            return message
        values, key = mismatch.groups()
        node, _, name = key.rpartition(".")
        default = value_of(self, key)
        value = values[len(f"{default} vs. ") :]
        known = all_keys().get(node, {})
        allowed = known[name].allowed if name in known else _TYPES.get(type(default), "text")
        return f"{key} is {value}; allowed: {allowed}"


def accept_saved_configs(cfg: CfgNode) -> None:
    """Makes a configuration accept, in place, what earlier versions of rpe_d2 saved."""
    # Not an attribute, because attributes of a CfgNode are its keys. Other classes are kept.
    if type(cfg) is CfgNode:
        object.__setattr__(cfg, "__class__", RPECfgNode)


def _make_floats(cfg: CfgNode, like: CfgNode) -> None:
    """Replaces integers, in place, by floats where the other configuration has floats."""
    for name, value in cfg.items():
        if isinstance(value, CfgNode) and isinstance(like.get(name), CfgNode):
            _make_floats(value, like[name])
        elif type(value) is int and type(like.get(name)) is float:
            cfg[name] = _as_float(value)


def _as_float(value: int) -> Any:
    """Returns an integer as a float, or unchanged if it is too large for one."""
    try:
        return float(value)
    except OverflowError:
        return value


def _quoted(value: Any) -> str:
    """Returns a value as a text in quotes, which yacs then reads as the text."""
    decoded = CfgNode._decode_cfg_value(value)
    if isinstance(decoded, str):
        return repr(decoded)
    return repr(str(value).strip("()[] "))


def key_names(cfg: CfgNode, prefix: str = "") -> Iterator[str]:
    """Yields the full names of all keys."""
    for name, value in cfg.items():
        if isinstance(value, CfgNode):
            yield from key_names(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _drop_removed(cfg: CfgNode, prefix: str = "") -> None:
    """Deletes the removed keys from a configuration, and nodes that held nothing else."""
    for name, value in list(cfg.items()):
        key = f"{prefix}{name}"
        if key in REMOVED_KEYS:
            _check_removed(key, cfg._decode_cfg_value(cfg.pop(name)))
        elif isinstance(value, CfgNode) and value:
            _drop_removed(value, f"{key}.")
            if not value:
                del cfg[name]


def _check_removed(key: str, value: Any) -> None:
    default = REMOVED_KEYS[key]
    if not _is_same(value, default):
        raise ValueError(
            f"{key} is {value!r}; allowed: {default!r}, the default. It is no longer a key but an "
            "argument of the component's constructor"
        )


def _is_same(value: Any, default: Any) -> bool:
    if isinstance(default, list):
        return (
            isinstance(value, (list, tuple))
            and len(value) == len(default)
            and all(map(_is_same, value, default))
        )
    if isinstance(default, str) or type(value) not in (int, float):
        return value == default and type(value) is type(default)
    # 128 / 224 may be written with fewer digits.
    return math.isclose(value, default, rel_tol=1e-5)
