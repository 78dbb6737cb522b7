"""The compared systems in real runs: two iterations of each, and, slowly, four images learned by heart."""

import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from rpe_d2.data import SHAPES_CLASSES, load_shapes
from rpe_d2.engine.train_net import main
from tests.conftest import ROOT

INSTANT = [
    "MODEL.DEVICE", "cpu", "SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2", "DATALOADER.NUM_WORKERS", "0",
    "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "TEST.DETECTIONS_PER_IMAGE", "5",
    "MODEL.RPN.POST_NMS_TOPK_TRAIN", "50", "MODEL.RPN.POST_NMS_TOPK_TEST", "10",
]  # fmt: skip
FOUR = "shapes_four"


@pytest.fixture(scope="module", autouse=True)
def four_images():
    DatasetCatalog.register(FOUR, lambda: load_shapes("train")[:4])
    MetadataCatalog.get(FOUR).set(thing_classes=list(SHAPES_CLASSES), evaluator_type="coco")
    large = f"{FOUR}_large"
    DatasetCatalog.register(large, lambda: load_shapes("large_val")[:4])
    MetadataCatalog.get(large).set(thing_classes=list(SHAPES_CLASSES), evaluator_type="coco")
    yield
    for name in (FOUR, large):
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name)


def metrics_of(config: str, folder, *opts) -> dict:
    arguments = ["--config-file", str(ROOT / "configs" / config), "OUTPUT_DIR", str(folder)]
    assert main([*arguments, *map(str, opts)]) == 0
    return json.loads((folder / "result.json").read_text())["metrics"]


@pytest.mark.parametrize(
    "config, tasks",
    [
        ("baselines/mnc_shapes.yaml", ["bbox", "segm"]),
        ("baselines/fcis_shapes.yaml", ["bbox", "segm"]),
        ("baselines/sds_shapes.yaml", ["bbox", "segm"]),
        ("baselines/hypercolumn_shapes.yaml", ["bbox", "segm"]),
        ("spn/mask_rcnn_spn_shapes.yaml", ["bbox", "segm", "segm_boundary"]),
        ("spn/refiner_shapes.yaml", ["bbox", "segm", "segm_boundary"]),
    ],
)
def test_two_iterations(config, tasks, tmp_path):
    data = f"('{FOUR}_large',)" if config.startswith("spn") else f"('{FOUR}',)"
    metrics = metrics_of(config, tmp_path, *INSTANT, "DATASETS.TRAIN", data, "DATASETS.TEST", data)
    assert list(metrics)[: len(tasks)] == tasks
    if config == "spn/refiner_shapes.yaml":  # as good as the masks that it is given
        assert metrics["segm"]["AP50"] > 50


def test_two_iterations_of_semantic_segmentation(tmp_path, capsys):
    metrics = metrics_of(
        "spn/sem_seg_spn_shapes.yaml", tmp_path, *INSTANT, "DATASETS.TEST", "('shapes_val_sem_seg',)"
    )  # fmt: skip
    assert list(metrics)[:2] == ["sem_seg", "sem_seg_boundary"] and metrics["sem_seg"]["mIoU"] >= 0
    assert "mIoU" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    "config, iterations, opts",
    [
        ("baselines/mnc_shapes.yaml", 300, ()),
        ("baselines/mnc_shapes.yaml", 300, ("MODEL.MNC.NUM_STAGES", 3)),
        ("baselines/fcis_shapes.yaml", 300, ()),
        ("baselines/sds_shapes.yaml", 300, ()),
        ("baselines/hypercolumn_shapes.yaml", 300, ()),
        ("proposals/mask_rcnn_rpn_shapes.yaml", 300, ()),
        ("quickstart/rpe_shapes.yaml", 300, ()),
    ],
    ids=["mnc", "mnc_three_stages", "fcis", "sds", "hypercolumn", "mask_rcnn", "rpe"],
)
def test_four_images_are_learned_by_heart(config, iterations, opts, tmp_path):
    data = f"('{FOUR}',)"
    metrics = metrics_of(
        config, tmp_path, "MODEL.DEVICE", "cpu", "DATASETS.TRAIN", data, "DATASETS.TEST", data,
        "SOLVER.MAX_ITER", iterations, "INPUT.RANDOM_FLIP", "none", "SOLVER.BASE_LR", 0.002,
        "DATALOADER.NUM_WORKERS", 0, *opts,
    )  # fmt: skip
    assert metrics["segm"]["AP50"] >= 90
