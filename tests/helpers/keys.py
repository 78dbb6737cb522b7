"""Configurations with the keys of rpe_d2, and values by the full names of keys."""

import yaml
from detectron2.config import CfgNode
from detectron2.config import get_cfg as get_detectron2_cfg

from rpe_d2.config import add_rpe_config


def new_cfg() -> CfgNode:
    cfg = get_detectron2_cfg()
    add_rpe_config(cfg)
    return cfg


def set_key(cfg, name, value):
    *nodes, last = name.split(".")
    for node in nodes:
        cfg = cfg[node]
    cfg[last] = value


def flat(node, prefix=""):
    for name, value in node.items():
        if isinstance(value, CfgNode):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def as_yaml(values) -> str:
    """Nested YAML text of values by full name."""
    tree = {}
    for name, value in values.items():
        *nodes, last = name.split(".")
        node = tree
        for part in nodes:
            node = node.setdefault(part, {})
        node[last] = value
    return yaml.safe_dump(tree)
