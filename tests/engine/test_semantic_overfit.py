"""The semantic heads in real runs: two iterations; slow tests overfit them to four images."""

import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from rpe_d2.cli.train_net import main
from rpe_d2.cli.visualize import main as visualize
from rpe_d2.data import load_shapes_panoptic, load_shapes_sem_seg
from tests.conftest import ROOT
from tests.helpers import voc_tree
from tests.helpers.runs import overrides

FOUR = "semantic_four"
CONFIGS = [
    "embedding_shapes",
    "fcn_8s_shapes",
    "fcn_8s_shapes MODEL.SEM_SEG_HEAD.IN_FEATURES ['res4','res5']",
    "fcn_8s_shapes MODEL.SEM_SEG_HEAD.IN_FEATURES ['res5']",
    "fcn_8s_vgg16_shapes",
    "deconvnet_shapes",
    "multi_scale_shapes",
    "recurrent_shapes",
]
SMALL = overrides(
    """
    SOLVER: {MAX_ITER: 2}
    INPUT: {MIN_SIZE_TRAIN: [64], MIN_SIZE_TEST: 64}
    """
)


@pytest.fixture(scope="module", autouse=True)
def four_images():
    names = {
        FOUR: ("shapes_train_sem_seg", lambda: load_shapes_sem_seg("train")[:4]),
        f"{FOUR}_noisy": (
            "shapes_train_noisy_sem_seg",
            lambda: load_shapes_sem_seg("train", noisy=True)[:4],
        ),
        f"{FOUR}_panoptic": ("shapes_train_panoptic", lambda: load_shapes_panoptic("train")[:4]),
    }
    for name, (like, load) in names.items():
        DatasetCatalog.register(name, load)
        metadata = MetadataCatalog.get(like).as_dict()
        metadata.pop("name")
        MetadataCatalog.get(name).set(**metadata)
    yield
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name)


def metrics_of(config: str, folder, *opts) -> dict:
    name, *options = config.split()
    path = str(ROOT / "configs" / "semantic" / f"{name}.yaml")
    options += ["OUTPUT_DIR", folder, "MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", 0]
    arguments = ["--config-file", path, *options, "SOLVER.IMS_PER_BATCH", 2, *opts]
    assert main([str(argument) for argument in arguments]) == 0
    return json.loads((folder / "result.json").read_text())["metrics"]


def data(train: str, test: str = FOUR) -> list:
    """Overrides that train and evaluate on data sets."""
    return overrides(f"DATASETS: {{TRAIN: [{train}], TEST: [{test}]}}")


@pytest.mark.parametrize("config", CONFIGS)
def test_two_iterations(config, tmp_path, capsys):
    pair_loss = ("MODEL.SEM_SEG_HEAD.PAIR_LOSS_WEIGHT", 1.0)
    metrics = metrics_of(config, tmp_path, *data(f"{FOUR}_noisy"), *SMALL, *pair_loss)
    assert list(metrics)[:2] == ["sem_seg", "sem_seg_boundary"] and metrics["sem_seg"]["mIoU"] >= 0
    assert not any("B-I" in name or "Boundary" in name for name in metrics["sem_seg"])
    assert "mIoU" in capsys.readouterr().out
    losses = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert any("loss_sem_seg_pair" in line for line in losses)


def test_two_iterations_of_a_panoptic_fpn(tmp_path):
    panoptic = f"{FOUR}_panoptic"
    options = overrides(
        """
        MODEL: {RPE: {PROPOSALS: {POST_NMS_TOPK_TEST: 10}}}
        TEST: {DETECTIONS_PER_IMAGE: 5, BOUNDARIES: True}
        """
    )
    metrics = metrics_of("panoptic_shapes", tmp_path, *data(panoptic, panoptic), *SMALL, *options)
    tasks = ["sem_seg", "bbox", "segm", "sem_seg_boundary", "segm_boundary"]
    assert [name for name in metrics if "px" not in name] == tasks
    (whole,) = draw(tmp_path, panoptic, 1)
    (annotated,) = draw(tmp_path, panoptic, 1, "--source", "annotation")
    # The image, its annotated classes and instances; with a model also the predicted ones.
    assert whole.shape[1] > 1.6 * annotated.shape[1]


@pytest.mark.parametrize("config", ["embedding_voc", "fcn_8s_voc", "deconvnet_voc"])
def test_two_iterations_on_voc(config, tmp_path):
    with voc_tree.unregistered_afterwards():
        voc = ["DATASETS.VOC", voc_tree.write_tree(tmp_path / "data")]
        options = overrides(
            """
            MODEL:
              VGG: {WIDTH: 0.125, FC_DIM: 16}
              RESNETS: {DEPTH: 18, RES2_OUT_CHANNELS: 64}
              WEIGHTS: ""
            """
        )
        metrics = metrics_of(config, tmp_path / "out", *voc, *SMALL, *options)
    assert {"mIoU", "IoU-person"} <= set(metrics["sem_seg"])


def test_two_iterations_on_nuclei(tmp_path, real_data):
    root = real_data("nuclei")
    jsons = [f"{name}={root}/val.json" for name in ("nuclei_train", "nuclei_val")]
    before = set(DatasetCatalog.list())
    try:
        options = [*SMALL, *overrides("INPUT: {MIN_SIZE_TRAIN: [64, 64], MIN_SIZE_TEST: 32}")]
        data_sets = ["DATASETS.COCO_JSONS", json.dumps(jsons)]
        metrics = metrics_of("embedding_nuclei", tmp_path, *data_sets, *options)
    finally:
        for name in set(DatasetCatalog.list()) - before:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
    assert len(metrics["sem_seg"]) > 2 and "mIoU" in metrics["sem_seg_boundary_1px"]


def draw(folder, dataset: str, count: int, *flags) -> list:
    """Draws ``count`` images of a data set with tools/visualize.py, and returns the pictures."""
    arguments = [
        *("--config-file", folder / "config.yaml", "--weights", folder / "model_final.pth"),
        *("--dataset", dataset, "--num-images", count, "--output", folder / "drawn", *flags),
    ]
    before = set((folder / "drawn").glob("*.png"))
    assert visualize([str(argument) for argument in arguments]) == 0
    drawn = sorted(set((folder / "drawn").glob("*.png")) - before)
    assert len(drawn) == count
    return [np.asarray(Image.open(path).convert("RGB")) for path in drawn]


def test_maps_are_drawn(tmp_path):
    metrics_of("fcn_8s_shapes", tmp_path, *data(FOUR), *SMALL, "SOLVER.MAX_ITER", 1)
    predicted = draw(tmp_path, FOUR, 2)
    annotated = draw(tmp_path, f"{FOUR}_noisy", 1, "--source", "annotation")
    augmented = draw(tmp_path, f"{FOUR}_noisy", 1, "--source", "dataloader")
    for picture in (*predicted, *annotated, *augmented):
        assert picture.std() > 10  # more than one color
    # With a model, the prediction is drawn beside the image and its annotation.
    assert predicted[0].shape[1] > annotated[0].shape[1]


@pytest.mark.parametrize(
    "head, message",
    [
        (
            "{IGNORE_VALUE: 0}",
            f"MODEL.SEM_SEG_HEAD.IGNORE_VALUE is 0; the unlabeled pixels of {FOUR} are 255",
        ),
        (
            "{NAME: SemSegFPNHead, PAIR_LOSS_WEIGHT: 0.5}",
            "MODEL.SEM_SEG_HEAD.PAIR_LOSS_WEIGHT is 0.5; SemSegFPNHead has no pair loss, "
            "allowed: 0, or a head that has it, DeconvNetHead, EmbeddingSemSegHead, FCNHead",
        ),
    ],
)
def test_settings_that_fail_later_or_have_no_effect_are_refused(head, message, tmp_path, capsys):
    options = overrides(f"MODEL: {{SEM_SEG_HEAD: {head}}}")
    with pytest.raises(SystemExit):
        metrics_of("embedding_shapes", tmp_path, *data(FOUR), *options)
    assert message in capsys.readouterr().err


def test_numbers_of_classes_are_checked_before_training(tmp_path, capsys):
    panoptic = f"{FOUR}_panoptic"
    for key, count in (("ROI_HEADS", 4), ("SEM_SEG_HEAD", 2)):
        options = [*data(panoptic, panoptic), f"MODEL.{key}.NUM_CLASSES", 7]
        with pytest.raises(SystemExit):
            metrics_of("panoptic_shapes", tmp_path, *options)
        message = f"MODEL.{key}.NUM_CLASSES is 7; {panoptic} has {count} classes"
        assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    "config, iterations, options",
    [
        ("embedding_shapes", 240, "SOLVER: {IMS_PER_BATCH: 4}"),
        # In images of 128 pixels, cells of stride 8 are too large for the tips of stars.
        ("fcn_8s_shapes", 400, "INPUT: {MIN_SIZE_TRAIN: [256], MIN_SIZE_TEST: 256}"),
        ("deconvnet_shapes", 420, "SOLVER: {IMS_PER_BATCH: 4}"),
        ("multi_scale_shapes", 200, "SOLVER: {IMS_PER_BATCH: 4}"),
        ("recurrent_shapes", 120, "SOLVER: {IMS_PER_BATCH: 4}"),
    ],
)
def test_heads_overfit_to_four_images(config, iterations, options, tmp_path):
    common = overrides(
        """
        MODEL: {SEM_SEG_HEAD: {PAIR_LOSS_WEIGHT: 1.0}}
        SOLVER: {WARMUP_ITERS: 20, BASE_LR: 0.003}
        INPUT: {RANDOM_FLIP: none}
        TEST: {BOUNDARIES: False}
        """
    )
    common += ["SOLVER.MAX_ITER", iterations, *overrides(options)]
    metrics = metrics_of(config, tmp_path, *data(FOUR), *common)
    assert metrics["sem_seg"]["mIoU"] >= 95
