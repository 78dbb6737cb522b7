"""The keys of rpe_d2 in a Detectron2 configuration.

Each key is defined once, in the modules ``*_keys``, with its default, its meaning and its allowed
values. The defaults, the checks and docs/configuration.md are generated from these definitions.
"""

from typing import List

from detectron2.config import CfgNode

from .key import GN_GROUPS, value_of
from .key_table import all_keys
from .saved import accept_saved_configs


def add_rpe_config(cfg: CfgNode) -> None:
    """Adds the keys of rpe_d2, with their defaults, to a Detectron2 configuration.

    Call it on ``detectron2.config.get_cfg()`` before merging a file. From then on ``cfg`` also
    accepts configurations that earlier versions of rpe_d2 saved; see
    :class:`rpe_d2.config.saved.RPECfgNode`.
    """
    for node_name, keys in all_keys().items():
        node = cfg
        for part in _parts(node_name):
            if part not in node:
                setattr(node, part, CfgNode())
            node = node[part]
        for name, key in keys.items():
            is_list = isinstance(key.default, list)
            setattr(node, name, list(key.default) if is_list else key.default)
    accept_saved_configs(cfg)


def check_config(cfg: CfgNode, *nodes: str) -> None:
    """Checks the values of the keys of rpe_d2.

    Args:
        cfg: a configuration with the keys of :func:`add_rpe_config`.
        nodes: names of the nodes to check together with the nodes inside them, such as
            ``"MODEL.RPE"``. If none are given, all keys are checked.

    Raises:
        ValueError: The message is one line with the key, its value and what is allowed.
    """
    for node_name, keys in all_keys().items():
        if nodes and not f"{node_name}.".startswith(tuple(f"{node}." for node in nodes)):
            continue
        values = value_of(cfg, node_name) if node_name else cfg
        for name, key in keys.items():
            key.check(f"{node_name}.{name}".lstrip("."), values[name])
        if values.get("NORM") == "GN" and values.get("CONV_DIM", 0) % GN_GROUPS:
            raise ValueError(
                f"{node_name}.CONV_DIM is {values.CONV_DIM}; allowed with {node_name}.NORM GN: "
                f"multiples of {GN_GROUPS}"
            )
        if node_name == "MODEL.MEAN_SHIFT":
            _check_bandwidths(cfg)


# Squares of positions over smaller ones overflow in float32.
_SMALLEST_SIGMA = 0.01


def _parts(node_name: str) -> List[str]:
    return node_name.split(".") if node_name else []


def _check_bandwidths(cfg: CfgNode) -> None:
    shift, rpe = cfg.MODEL.MEAN_SHIFT, cfg.MODEL.RPE
    if shift.RELATIVE_BANDWIDTH > 0 and not (rpe.VOTES and shift.SPATIAL_BANDWIDTH > 0):
        raise ValueError(
            f"MODEL.MEAN_SHIFT.RELATIVE_BANDWIDTH is {shift.RELATIVE_BANDWIDTH}, which needs "
            "MODEL.RPE.VOTES True and MODEL.MEAN_SHIFT.SPATIAL_BANDWIDTH above 0, the smallest "
            "sigma"
        )
    if 0 < shift.SPATIAL_BANDWIDTH < _SMALLEST_SIGMA:
        raise ValueError(
            f"MODEL.MEAN_SHIFT.SPATIAL_BANDWIDTH is {shift.SPATIAL_BANDWIDTH}; allowed: 0, or "
            f"pixels {_SMALLEST_SIGMA} or more"
        )
    if shift.BANDWIDTH_MODE == "margin" and rpe.MARGIN == 1:
        raise ValueError(
            "MODEL.RPE.MARGIN is 1, which leaves no bandwidth; set "
            "MODEL.MEAN_SHIFT.BANDWIDTH_MODE fixed"
        )
