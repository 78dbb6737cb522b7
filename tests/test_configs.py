"""Every shipped configuration builds its model, and pairs that are compared differ only in what they compare."""

import pytest
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from rpe_d2.engine.run_setup import read_config
from tests.conftest import ROOT

CONFIGS = ROOT / "configs"
LEAVES = sorted(
    str(path.relative_to(CONFIGS))
    for path in CONFIGS.rglob("*.yaml")
    if not path.name.startswith("Base-")
)


def read(name: str) -> CfgNode:
    return read_config(str(CONFIGS / name), ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""])


@pytest.mark.parametrize("name", LEAVES)
def test_it_builds_its_model(name):
    cfg = read(name)
    model = build_model(cfg)
    assert sum(parameter.numel() for parameter in model.parameters()) > 1e6
    assert cfg.DATASETS.TRAIN and cfg.DATASETS.TEST and cfg.SOLVER.MAX_ITER > 0
    outputs = [read(other).OUTPUT_DIR for other in LEAVES]
    assert outputs.count(cfg.OUTPUT_DIR) == 1


def flat(node: CfgNode, prefix: str = "") -> dict:
    values = {}
    for key, value in node.items():
        if isinstance(value, CfgNode):
            values.update(flat(value, f"{prefix}{key}."))
        else:
            values[prefix + key] = value
    return values


@pytest.mark.parametrize(
    "one, other, allowed",
    [
        (
            "rpe_rcnn_coco.yaml",
            "baselines/mask_rcnn_coco.yaml",
            ("MODEL.PROPOSAL_GENERATOR.", "MODEL.RPE.", "MODEL.MEAN_SHIFT."),
        ),
        (
            "proposals/mask_rcnn_rpe_shapes.yaml",
            "proposals/mask_rcnn_rpn_shapes.yaml",
            ("MODEL.PROPOSAL_GENERATOR.", "MODEL.RPE."),
        ),
        (
            "proposals/rpe_shapes.yaml",
            "proposals/rpn_shapes.yaml",
            ("MODEL.PROPOSAL_GENERATOR.", "MODEL.RPN.", "MODEL.ANCHOR_GENERATOR."),
        ),
        (
            "nuclei/rpe_R_18.yaml",
            "nuclei/semantic_control.yaml",
            ("MODEL.RPE.GROUPING", "MODEL.RPE.PAIR_LOSS_WEIGHT", "MODEL.RPE.VOTE_LOSS_WEIGHT"),
        ),
        (
            "boundary/bsds_R_18.yaml",
            "boundary/bsds_R_18_pair_loss.yaml",
            ("MODEL.BOUNDARY.LOGISTIC_LOSS_WEIGHT",),
        ),
        (
            "semantic/fcn_8s_shapes.yaml",
            "semantic/fcn_32s_shapes.yaml",
            ("MODEL.SEM_SEG_HEAD.IN_FEATURES",),
        ),
        (
            "boundary/bsds_R_18.yaml",
            "boundary/bsds_R_18_cross_entropy.yaml",
            ("MODEL.BOUNDARY.PAIR_LOSS_WEIGHT",),
        ),
    ],
)
def test_compared_configurations_differ_in_nothing_else(one, other, allowed):
    first, second = flat(read(one)), flat(read(other))
    different = {key for key in first if first[key] != second[key]} - {"OUTPUT_DIR"}
    assert different and all(key.startswith(allowed) for key in different), different
