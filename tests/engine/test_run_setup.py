import logging

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from rpe_d2 import add_rpe_config
from rpe_d2.engine import build_optimizer
from rpe_d2.engine.run_setup import check_margin, most_instances, reject_swallowed_flags
from rpe_d2.ops.sphere import min_margin
from tests.modeling.helpers import small_cfg


def shapes_cfg(*overrides):
    cfg = get_cfg()
    add_rpe_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "PixelEmbeddingNet"
    cfg.DATASETS.TRAIN = ("shapes_train",)
    cfg.merge_from_list(list(overrides))
    return cfg


def test_most_instances_counts_the_fullest_image():
    assert most_instances("shapes_train") == 12


@pytest.mark.parametrize("dim", [2, 8, 16, 32])
@pytest.mark.parametrize("margin", [0.1, 0.45, 0.5])
def test_infeasible_margins_are_reported_and_the_advice_fits(dim, margin, caplog):
    cfg = shapes_cfg("MODEL.RPE.MARGIN", margin, "MODEL.RPE.EMBEDDING_DIM", dim)
    with caplog.at_level(logging.WARNING, logger="rpe_d2"):
        check_margin(cfg, training=True)
    feasible = min_margin(12, dim)[0] <= margin
    assert bool(caplog.records) != feasible
    if caplog.records:
        *_, advised_dim, advised_margin = caplog.records[0].args
        value, exact = min_margin(12, advised_dim)
        assert exact and value <= advised_margin


def test_a_radius_makes_every_margin_feasible_but_needs_something_to_tell_instances_apart(caplog):
    options = ["MODEL.RPE.MARGIN", 0.1, "MODEL.RPE.NEGATIVE_RADIUS", 20.0]
    check_margin(shapes_cfg(*options), training=True)
    assert not caplog.records
    check_margin(shapes_cfg(*options, "MODEL.RPE.VOTES", False), training=True)
    assert "SPLIT_COMPONENTS" in caplog.text


def test_swallowed_flags_are_rejected():
    with pytest.raises(ValueError, match="--num-gpus stands after"):
        reject_swallowed_flags(["SEED", "1", "--num-gpus", "2"])


@pytest.mark.parametrize("name", ["SGD", "ADAMW"])
def test_optimizer_clips_gradients_and_spares_the_bandwidth(name):
    cfg = small_cfg("MODEL.MEAN_SHIFT.BANDWIDTH_MODE", "learned", "SOLVER.OPTIMIZER", name)
    cfg.merge_from_list(
        ["SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "norm"]
    )
    cfg.merge_from_list(["SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.5, "SOLVER.WEIGHT_DECAY", 0.1])
    model = build_model(cfg)
    optimizer = build_optimizer(cfg, model)
    decay = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    assert decay[id(model.mean_shift.log_bandwidth)] == 0
    weight = model.embedding_head.embedding[1].weight
    assert decay[id(weight)] == 0.1
    weight.grad = torch.full_like(weight, 10.0)
    optimizer.step()
    assert weight.grad.norm() == pytest.approx(0.5, rel=1e-4)
