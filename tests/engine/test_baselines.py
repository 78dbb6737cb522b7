"""The baselines in real runs: two iterations of each; slow tests overfit them to four images."""

import json
from functools import partial

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from rpe_d2.cli.train_net import main
from rpe_d2.data import SHAPES_CLASSES, load_shapes
from tests.conftest import ROOT
from tests.helpers.runs import overrides

INSTANT = overrides(
    """
    MODEL:
      DEVICE: cpu
      RPN: {POST_NMS_TOPK_TRAIN: 50, POST_NMS_TOPK_TEST: 10}
    SOLVER: {MAX_ITER: 2, IMS_PER_BATCH: 2}
    DATALOADER: {NUM_WORKERS: 0}
    INPUT: {MIN_SIZE_TRAIN: [64], MIN_SIZE_TEST: 64}
    TEST: {DETECTIONS_PER_IMAGE: 5}
    """
)
OVERFIT = overrides(
    """
    MODEL: {DEVICE: cpu}
    INPUT: {RANDOM_FLIP: none}
    SOLVER: {BASE_LR: 0.002}
    DATALOADER: {NUM_WORKERS: 0}
    """
)
FOUR = "shapes_four"
# Images of at most ten objects each, none smaller than this number of pixels and all within the
# windows of the pyramids.
FOUR_FROM = {20: "shapes_four_from_20", 28: "shapes_four_from_28"}


@pytest.fixture(scope="module", autouse=True)
def four_images():
    DatasetCatalog.register(FOUR, lambda: load_shapes("train")[:4])
    MetadataCatalog.get(FOUR).set(thing_classes=list(SHAPES_CLASSES), evaluator_type="coco")
    for smallest, name in FOUR_FROM.items():
        DatasetCatalog.register(name, partial(four_with_objects_from, smallest))
        MetadataCatalog.get(name).set(thing_classes=list(SHAPES_CLASSES), evaluator_type="coco")
    large = f"{FOUR}_large"
    DatasetCatalog.register(large, lambda: load_shapes("large_val")[:4])
    MetadataCatalog.get(large).set(thing_classes=list(SHAPES_CLASSES), evaluator_type="coco")
    yield
    for name in (FOUR, *FOUR_FROM.values(), large):
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name)


def four_with_objects_from(smallest: int) -> list:
    def fits(item):
        sides = [max(annotation["bbox"][2:]) for annotation in item["annotations"]]
        return len(sides) <= 10 and min(sides) >= smallest and max(sides) <= 76

    return list(filter(fits, load_shapes("train")))[:4]


def trained_on(name: str) -> list:
    """Overrides that train and evaluate on a data set."""
    return overrides(f"DATASETS: {{TRAIN: [{name}], TEST: [{name}]}}")


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
    data = trained_on(f"{FOUR}_large" if config.startswith("spn") else FOUR)
    metrics = metrics_of(config, tmp_path, *INSTANT, *data)
    assert list(metrics)[: len(tasks)] == tasks
    if config == "spn/refiner_shapes.yaml":  # it is given good masks
        assert metrics["segm"]["AP50"] > 50


def test_two_iterations_of_a_cascade_of_three_stages(tmp_path):
    opts = [*INSTANT, "MODEL.MNC.NUM_STAGES", 3, *trained_on(FOUR)]
    assert list(metrics_of("baselines/mnc_shapes.yaml", tmp_path, *opts)) == ["bbox", "segm"]


def test_two_iterations_of_proposals(tmp_path):
    for name in ("deepmask", "sharpmask", "instance_fcn"):
        weights = tmp_path / "deepmask" / "model_final.pth" if name == "sharpmask" else ""
        metrics = metrics_of(
            f"baselines/{name}_shapes.yaml", tmp_path / name, *INSTANT, *trained_on(FOUR),
            "MODEL.WEIGHTS", weights,
        )  # fmt: skip
        assert list(metrics) == ["proposals_segm", "proposals_bbox"]
        assert metrics["proposals_segm"]["AR@1000"] >= 0


def test_sharpmask_without_deepmask_is_one_line(tmp_path, capsys):
    config = str(ROOT / "configs" / "baselines" / "sharpmask_shapes.yaml")
    opts = ["OUTPUT_DIR", str(tmp_path), "MODEL.WEIGHTS", ""]
    with pytest.raises(SystemExit, match="2"):
        main(["--config-file", config, *opts])
    assert "MODEL.WEIGHTS is empty; SharpMask refines a trained DeepMask" in capsys.readouterr().err


def test_a_frozen_head_without_weights_is_one_line(tmp_path, capsys):
    config = str(ROOT / "configs" / "spn" / "sem_seg_spn_shapes.yaml")
    opts = ["OUTPUT_DIR", str(tmp_path), "MODEL.SPN.FREEZE_HEAD", "True"]
    with pytest.raises(SystemExit, match="2"):
        main(["--config-file", config, *opts])
    message = "MODEL.WEIGHTS is empty; MODEL.SPN.FREEZE_HEAD keeps a trained head"
    assert message in capsys.readouterr().err


def test_two_iterations_of_semantic_segmentation(tmp_path, capsys):
    data = overrides("DATASETS: {TEST: [shapes_val_sem_seg]}")
    metrics = metrics_of("spn/sem_seg_spn_shapes.yaml", tmp_path, *INSTANT, *data)
    assert list(metrics)[:2] == ["sem_seg", "sem_seg_boundary"] and metrics["sem_seg"]["mIoU"] >= 0
    assert "mIoU" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        "baselines/mnc_shapes.yaml",
        "baselines/mnc_shapes.yaml MODEL.MNC.NUM_STAGES 3",
        "baselines/fcis_shapes.yaml",
        "baselines/sds_shapes.yaml",
        "baselines/hypercolumn_shapes.yaml",
        "proposals/mask_rcnn_rpn_shapes.yaml",
        "quickstart/rpe_shapes.yaml",
    ],
    ids=["mnc", "mnc_three_stages", "fcis", "sds", "hypercolumn", "mask_rcnn", "rpe"],
)
def test_models_overfit_to_four_images(config, tmp_path):
    name, *options = config.split()
    options += overrides("SOLVER: {MAX_ITER: 300, WARMUP_ITERS: 20}")
    metrics = metrics_of(name, tmp_path, *options, *OVERFIT, *trained_on(FOUR))
    assert metrics["segm"]["AP50"] >= 90


def overfitted_recall(config, folder, smallest, iterations, *opts) -> float:
    """The average recall of 10 proposals, in percent, on the four images of training."""
    data = trained_on(FOUR_FROM[smallest])
    options = [*OVERFIT, "SOLVER.MAX_ITER", iterations, *opts]
    metrics = metrics_of(config, folder, *data, *options)
    return metrics["proposals_segm"]["AR@10"]


@pytest.mark.slow
def test_deepmask_and_sharpmask_overfit_to_four_images(tmp_path):
    # The boxes of different objects have an IoU of at most 0.53 here.
    nms = ("MODEL.DEEPMASK.NMS_THRESH", 0.6)
    deep = overfitted_recall("baselines/deepmask_shapes.yaml", tmp_path / "deep", 20, 300, *nms)
    weights = ("MODEL.WEIGHTS", tmp_path / "deep" / "model_final.pth")
    sharp = overfitted_recall(
        "baselines/sharpmask_shapes.yaml", tmp_path / "sharp", 20, 500, *nms, *weights
    )
    assert min(deep, sharp) >= 90, (deep, sharp)


@pytest.mark.slow
def test_instance_fcn_overfits_to_four_images(tmp_path):
    # Windows of 15 cells, as in the configuration, are too coarse: true masks on their grid would
    # reach 86. Windows of 29 cells cover the same objects with a finer grid.
    options = overrides(
        """
        MODEL:
          INSTANCE_FCN:
            WINDOW: 29
            NMS_THRESH: 0.6
            IN_FEATURES: [p2, p2@1.4142, p2@2]
        SOLVER: {IMS_PER_BATCH: 2}
        """
    )
    score = overfitted_recall("baselines/instance_fcn_shapes.yaml", tmp_path, 28, 450, *options)
    assert score >= 90
