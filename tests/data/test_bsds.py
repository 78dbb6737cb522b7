"""BSDS500 on a miniature of the released folder: registration, mapper and training."""

import json

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from PIL import Image

from rpe_d2 import add_rpe_config
from rpe_d2.data import BoundaryMapper, UnreadableImage, register_bsds, transform_boundaries
from rpe_d2.data.augmentation import QuarterTurnTransform
from rpe_d2.utils.mat_files import read_boundary_annotations
from tests.helpers.boundary_tree import half_and_half, make_tree
from tests.helpers.training import train


@pytest.fixture
def root(tmp_path):
    yield make_tree(tmp_path / "bsds")
    for split in ("train", "val", "test"):
        if f"bsds_{split}" in DatasetCatalog.list():
            DatasetCatalog.remove(f"bsds_{split}")
            MetadataCatalog.pop(f"bsds_{split}")


def mapper(is_train=True, **changes):
    cfg = get_cfg()
    add_rpe_config(cfg)
    return BoundaryMapper(cfg, is_train=is_train, **changes)


def test_splits_that_are_present(root):
    register_bsds("")
    assert "bsds_train" not in DatasetCatalog.list()
    register_bsds(root)
    register_bsds(root)  # a second time, as a second run of a process does
    assert "bsds_test" not in DatasetCatalog.list()
    first, second = DatasetCatalog.get("bsds_val")
    assert (first["image_id"], first["height"], first["width"]) == ("7", 48, 72)
    assert (second["height"], second["width"]) == (72, 48)
    assert first["boundary_file_name"] == f"{root}/groundTruth/val/7.mat"
    assert MetadataCatalog.get("bsds_val").evaluator_type == "boundaries"
    with pytest.raises(ValueError, match="bsds/../bsds; bsds_train is registered from"):
        register_bsds(f"{root}/../bsds")


def test_below_the_unpacked_archive(tmp_path, root):
    (tmp_path / "archive" / "BSR" / "BSDS500").mkdir(parents=True)
    (tmp_path / "bsds").rename(tmp_path / "archive" / "BSR" / "BSDS500" / "data")
    register_bsds(str(tmp_path / "archive"))
    assert len(DatasetCatalog.get("bsds_train")) == 2


def test_what_is_missing_is_named(root, tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        register_bsds(str(tmp_path / "nowhere"))
    assert str(error.value) == (
        f"DATASETS.BSDS is {tmp_path}/nowhere; it has no images/train, images/val, images/test"
    )
    (tmp_path / "bsds/groundTruth/train/8.mat").unlink()
    with pytest.raises(FileNotFoundError, match="groundTruth/train has no 8.mat$"):
        register_bsds(root)


def test_real_files(real_data):
    """The real files have the structure of the miniature, and contours one pixel wide."""
    folder = real_data("bsds500")
    annotations = read_boundary_annotations(str(folder / "groundTruth/train/100075.mat"))
    with Image.open(folder / "images/train/100075.jpg") as image:
        assert annotations[0].shape == (image.height, image.width)
    assert len(annotations) == 6
    whole = np.any(annotations, axis=0)
    half = T.ResizeTransform(*whole.shape, *(side // 2 for side in whole.shape))
    for lines in annotations:
        small = transform_boundaries(lines, half, (half.new_h, half.new_w))
        # Half the size: half as long, and no wider.
        assert 0.4 * lines.sum() < small.sum() < 0.6 * lines.sum()


def test_training_gets_all_annotators(root):
    register_bsds(root)
    item = DatasetCatalog.get("bsds_train")[0]
    mapped = mapper(augmentations=[])(item)
    assert mapped["boundaries"].dtype == torch.bool and mapped["boundaries"].shape == (3, 48, 72)
    assert np.array_equal(mapped["boundaries"].numpy(), half_and_half(0, (48, 72))[1])
    assert "annotations" not in mapped and "annotations" not in item


def test_testing_keeps_the_path_for_the_evaluator(root):
    register_bsds(root)
    item = DatasetCatalog.get("bsds_val")[0]
    mapped = mapper(is_train=False)(item)
    assert mapped["boundary_file_name"] == item["boundary_file_name"]
    assert "boundaries" not in mapped and "annotations" not in mapped


@pytest.mark.parametrize(
    "augmentations",
    [
        [T.RandomFlip(prob=1.0)],
        [T.RandomFlip(prob=1.0, horizontal=False, vertical=True)],
        [T.RandomCrop("absolute", (40, 60))],
        [T.ResizeShortestEdge([30], 200, "choice")],
        [T.ResizeShortestEdge([110], 400, "choice")],
        [T.RandomFlip(prob=1.0), T.RandomCrop("relative", (0.9, 0.9)), T.Resize((100, 100))],
        [T.RandomBrightness(0.5, 1.5)],
    ],
    ids=["flip", "upside-down", "crop", "smaller", "larger", "all", "color"],
)
def test_contours_move_with_the_edges_of_the_image(root, augmentations):
    register_bsds(root)
    mapped = mapper(augmentations=augmentations)(DatasetCatalog.get("bsds_train")[0])
    gray = mapped["image"].float().mean(dim=0)
    lines = mapped["boundaries"][0]
    assert lines.shape == gray.shape
    # One pixel per row, at the steepest edge. The outermost rows of a larger image may have none.
    assert (lines.sum(dim=1)[2:-2] == 1).all() and (lines.sum(dim=1) <= 1).all()
    steepest = (gray[:, 1:] - gray[:, :-1]).abs().mean(dim=0).argmax()
    assert (lines.float().argmax(dim=1)[2:-2] - (steepest + 0.5)).abs().max() <= 1.5


@pytest.mark.parametrize("quarters", range(4))
def test_quarter_turns_are_exact(quarters):
    lines = np.random.default_rng(0).random((20, 31)) < 0.2
    turn = QuarterTurnTransform(quarters, 20, 31)
    expected = turn.apply_segmentation(lines)
    assert np.array_equal(transform_boundaries(lines, turn, expected.shape), expected)


@pytest.mark.parametrize("scale", [0.3, 0.7, 1.0, 1.4, 2.0, 3.7])
def test_resized_contours_have_no_gaps(scale):
    """A resized circle separates its inside from its outside."""
    circle = cv2.circle(np.zeros((101, 121), np.uint8), (60, 50), 40, 1) > 0
    size = round(101 * scale), round(121 * scale)
    moved = transform_boundaries(circle, T.ResizeTransform(101, 121, *size), size)
    count, _ = cv2.connectedComponents((~moved).astype(np.uint8), connectivity=4)
    assert count == 3  # contour, outside, inside
    assert moved.sum() < 1.3 * scale * circle.sum()
    nothing = transform_boundaries(circle & False, T.ResizeTransform(101, 121, *size), size)
    assert nothing.shape == size and not nothing.any()


def test_a_damaged_file_is_reported_in_one_line(root):
    register_bsds(root)
    item = DatasetCatalog.get("bsds_train")[0]
    with pytest.raises(ValueError, match="has no boundary_file_name, the .mat file"):
        mapper()({key: value for key, value in item.items() if key != "boundary_file_name"})
    with pytest.raises(UnreadableImage, match="boundaries are 72 x 48 and .* is 48 x 72"):
        mapper()({**item, "boundary_file_name": item["boundary_file_name"].replace("7.", "8.")})
    with open(item["boundary_file_name"], "wb") as file:
        file.write(b"MATLAB")
    with pytest.raises(UnreadableImage, match="7.mat: cannot be read as a MATLAB file") as error:
        mapper()(item)
    assert "\n" not in str(error.value)


def test_training_and_evaluation(root, tmp_path, capsys):
    output = tmp_path / "out"
    text = f"""
DATASETS: {{BSDS: {root}}}
INPUT:
  CROP: {{SIZE: [40, 40]}}
  MIN_SIZE_TRAIN: [32, 48]
TEST: {{BOUNDARY_THRESHOLDS: 3, VALIDATION_LOSS: True}}
SEED: 0
VIS_PERIOD: 1
"""
    assert train(output, "boundary/bsds_R_18.yaml", text) == 0
    metrics = json.loads((output / "result.json").read_text())["metrics"]["boundary"]
    assert metrics["images"] == 2 and 0 <= metrics["ODS"] <= 100
    printed = capsys.readouterr().out
    assert all(column in printed for column in ("ODS", "OIS", "AP"))
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    assert any("validation/loss_logistic" in line for line in lines)
