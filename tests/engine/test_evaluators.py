"""The evaluators that a configuration gets, in real runs on the generated data."""

import json

import pytest

from rpe_d2.cli.train_net import main
from tests.conftest import ROOT
from tests.helpers.runs import overrides

INSTANT = str(ROOT / "configs/quick/rpe_instant_test.yaml")


def metrics_of(folder, *opts) -> dict:
    assert main(["--config-file", INSTANT, "OUTPUT_DIR", str(folder), *opts]) == 0
    return json.loads((folder / "result.json").read_text())["metrics"]


def test_instances_touching_instances_and_proposals(tmp_path, capsys):
    options = overrides(
        """
        MODEL: {RPE: {RETURN_PROPOSALS: True}}
        TEST: {TOUCHING_INSTANCES: True, PROPOSALS: True, VOC_AP: True}
        SOLVER: {MAX_ITER: 2}
        """
    )
    metrics = metrics_of(tmp_path, *options)
    tasks = "bbox segm segm_touching voc_segm proposals_segm proposals_bbox".split()
    assert list(metrics) == tasks
    assert {"AP50", "AP70_07", "APvol", "AP50-star"} <= set(metrics["voc_segm"])
    assert 0 < metrics["segm_touching"]["count"]
    assert {"AR@1", "AR@1000", "ARs@100", "AUC", "R50@60", "AP"} <= set(metrics["proposals_segm"])
    table = capsys.readouterr().out
    assert "AR@100" in table and "segm_touching" in table


@pytest.mark.parametrize("masks", ["True", "False"])
def test_a_proposal_network_of_detectron2_is_evaluated_as_filled_boxes(masks, tmp_path):
    options = overrides(
        """
        MODEL:
          META_ARCHITECTURE: ProposalNetwork
          RPN: {IN_FEATURES: [p2, p3, p4], POST_NMS_TOPK_TEST: 50}
          ANCHOR_GENERATOR: {SIZES: [[16], [32], [64]]}
        SOLVER: {MAX_ITER: 2}
        """
    )
    metrics = metrics_of(tmp_path, *options, "MODEL.MASK_ON", masks)
    assert list(metrics) == ["proposals_segm_of_filled_boxes", "proposals_bbox"]
    assert metrics["proposals_bbox"]["AR@1000"] >= metrics["proposals_bbox"]["AR@10"] >= 0
