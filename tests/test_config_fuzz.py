"""Nonsense in every key of the configuration gives one line that says what is allowed."""

import math

import pytest
from detectron2.config import get_cfg

from rpe_d2 import add_rpe_config
from rpe_d2.config import all_keys, check_config

NONSENSE = (
    None, True, -7, 10**12, 10**400, 0.5, math.nan, math.inf, -math.inf, "", "nonsense", "\n",
    [], [math.nan], ["nonsense"], [[]], (), {}, b"x", 1j,
)  # fmt: skip
KEYS = [
    (node, name, key) for node, keys in all_keys().items() for name, key in sorted(keys.items())
]


@pytest.mark.parametrize("node, name, key", KEYS, ids=[f"{n}.{k}" for n, k, _ in KEYS])
def test_a_value_is_allowed_or_refused_in_one_line(node, name, key):
    full_name = f"{node}.{name}".lstrip(".")
    for value in NONSENSE:
        cfg = get_cfg()
        add_rpe_config(cfg)
        target = cfg
        for part in filter(None, node.split(".")):
            target = target[part]
        # A CfgNode takes any value that a constructor of a configuration in Python may set.
        dict.__setitem__(target, name, value)
        try:
            check_config(cfg)
        except ValueError as error:
            text = str(error)
            # Some values are refused because of another key that they do not fit.
            assert "MODEL." in text or full_name in text
            assert "allowed" in text or "needs" in text or "set " in text
            assert "\n" not in text
        else:
            kind = float if key.kind is float and type(value) is int else key.kind
            values = value if isinstance(value, (list, tuple)) else [value]
            assert all(type(v) is kind or (kind is float and type(v) is int) for v in values)
            if key.kind in (int, float):
                assert all(math.isfinite(v) for v in values)


@pytest.mark.parametrize(
    "key, value, allowed",
    [
        ("MODEL.MEAN_SHIFT.TRAIN_LOOPS", 100000, "0 to 100 loops"),
        ("MODEL.MEAN_SHIFT.BANDWIDTH", 1e-9, "0.001 or more"),
        ("MODEL.MEAN_SHIFT.SPATIAL_BANDWIDTH", 1e-9, "0, or pixels 0.01 or more"),
        ("MODEL.RPE.PAIR_LOSS_WEIGHT", -1.0, "0 or more"),
        ("MODEL.RPE.CONV_DIM", 10**6, "1 to 65536 channels"),
        ("MODEL.MNC.FC_DIM", 10**6, "1 to 65536 units"),
        ("MODEL.SEM_SEG_HEAD.PAIR_LOSS_WEIGHT", math.nan, "-1 or more"),
        ("MODEL.SEM_SEG_HEAD.PAIR_LOSS_WEIGHT", math.inf, "-1 or more"),
    ],
)
def test_settings_that_cannot_work_are_refused(key, value, allowed):
    cfg = get_cfg()
    add_rpe_config(cfg)
    cfg.merge_from_list([key, value])
    with pytest.raises(ValueError, match=f"{key} is {value}; allowed: {allowed}"):
        check_config(cfg)
