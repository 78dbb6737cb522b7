"""Writes configs.json: the registered names and what every YAML file of configs/ sets.

usage: python -m tests.golden.make_configs_golden
"""

import json
from pathlib import Path
from typing import Any, Dict

from detectron2.config import get_cfg

import rpe_d2
from tests.conftest import ROOT
from tests.helpers.keys import flat
from tests.helpers.registries import REGISTRIES

GOLDEN = Path(__file__).with_name("configs.json")


def describe() -> Dict[str, Any]:
    """Returns registered names, the keys with their defaults, and what each YAML file changes."""
    host = dict(flat(get_cfg()))
    cfg = get_cfg()
    rpe_d2.add_rpe_config(cfg)
    defaults = dict(flat(cfg))
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
            key: value for key, value in flat(merged) if value != defaults[key]
        }
    new_keys = {key: value for key, value in defaults.items() if key not in host}
    return json.loads(json.dumps({"registries": names, "keys": new_keys, "files": files}))


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(describe(), indent=1, sort_keys=True) + "\n")
