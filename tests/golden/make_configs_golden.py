"""Writes configs.json: the registered names and what every YAML file of configs/ sets.

usage: python tests/golden/make_configs_golden.py
"""

import json
from pathlib import Path
from typing import Any, Dict

from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import (
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_HEADS_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
)

import rpe_d2  # noqa: F401  registers everything

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).with_name("configs.json")
REGISTRIES = (
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_HEADS_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
)


def flat(cfg: CfgNode, prefix: str = "") -> Dict[str, Any]:
    """Maps the full name of every key to its value."""
    values: Dict[str, Any] = {}
    for key, value in cfg.items():
        if isinstance(value, CfgNode):
            values.update(flat(value, f"{prefix}{key}."))
        else:
            values[f"{prefix}{key}"] = value
    return values


def describe() -> Dict[str, Any]:
    """Returns registered names, the keys with their defaults, and what each YAML file changes."""
    host = flat(get_cfg())
    cfg = get_cfg()
    rpe_d2.add_rpe_config(cfg)
    defaults = flat(cfg)
    names = {
        registry._name: sorted(
            name for name, thing in registry if thing.__module__.startswith("rpe_d2")
        )
        for registry in REGISTRIES
    }
    files = {}
    for path in sorted(ROOT.glob("configs/**/*.yaml")):
        merged = cfg.clone()
        merged.merge_from_file(str(path))
        files[str(path.relative_to(ROOT / "configs"))] = {
            key: value for key, value in flat(merged).items() if value != defaults[key]
        }
    new_keys = {key: value for key, value in defaults.items() if key not in host}
    return json.loads(json.dumps({"registries": names, "keys": new_keys, "files": files}))


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(describe(), indent=1, sort_keys=True) + "\n")
