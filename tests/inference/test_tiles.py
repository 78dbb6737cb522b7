"""Prediction in tiles: the same objects as in the whole image, none cut and none twice."""

import cv2
import numpy as np
import pytest
import tifffile
import torch
import zarr
from detectron2.config import get_cfg
from detectron2.data import Metadata
from detectron2.data import transforms as T
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.structures import Boxes, Instances
from scipy import ndimage
from torch import nn
from torch.nn import functional as F

import rpe_d2
from rpe_d2 import add_rpe_config
from rpe_d2.evaluation.label_metrics import label_metrics, label_overlaps
from rpe_d2.inference import Segmenter
from rpe_d2.inference.fit_data import Measures
from rpe_d2.inference.fit_rules import MODELS, settings
from rpe_d2.inference.segmenter import _MARGIN
from rpe_d2.inference.tiles import _Canvas, _Object, resized_window, spans

MEASURES = Measures(
    images=20,
    objects=500,
    classes=("cell",),
    height=256,
    width=256,
    smallest_side=256,
    diameters=(6, 10, 20, 30, 50),
    most_objects=50,
    neighbors=8,
    touching=0.2,
    elongation=1.3,
    is_directed=False,
    is_gray=True,
    peaks=(200, 255),
    intensity="auto",
    mean=(100, 100, 100),
    std=(50, 50, 50),
)


@META_ARCH_REGISTRY.register()
class BrightComponents(nn.Module):
    """A model whose objects are the connected bright parts of what it sees."""

    def __init__(self, cfg):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.largest = 0

    def forward(self, inputs):
        outputs = []
        for item in inputs:
            image = item["image"][0].numpy()
            self.largest = max(self.largest, image.size)
            parts, count = ndimage.label(image > 127)
            size = item["width"], item["height"]
            masks = [
                cv2.resize((parts == n).astype(np.float32), size) > 0.5 for n in range(1, count + 1)
            ]
            instances = Instances(size[::-1])
            instances.pred_masks = torch.from_numpy(np.array(masks).reshape(-1, *size[::-1]))
            instances.pred_boxes = Boxes(torch.zeros(count, 4))
            instances.scores = torch.linspace(0.9, 0.6, count)
            instances.pred_classes = torch.zeros(count, dtype=torch.int64)
            outputs.append({"instances": instances})
        return outputs


@pytest.fixture
def segmenter(tmp_path):
    def build(**keys):
        cfg = get_cfg()
        add_rpe_config(cfg)
        cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.DEVICE = "BrightComponents", "cpu"
        cfg.INPUT.update(keys)
        cfg.MODEL.WEIGHTS = str(tmp_path / "weights.pth")
        torch.save({"model": {"weight": torch.zeros(1)}}, cfg.MODEL.WEIGHTS)
        return Segmenter(cfg, Metadata(thing_classes=["bright"]))

    return build


def ellipses(size, count, largest, seed=0):
    """Returns a picture of separate ellipses and its label map."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((size, size), np.int32)
    while labels.max() < count:
        mask = np.zeros(labels.shape, np.uint8)
        axes = rng.integers(8, largest, 2).tolist()
        cv2.ellipse(mask, rng.integers(0, size, 2).tolist(), axes, 30, 0, 360, 1, -1)
        if not labels[ndimage.binary_dilation(mask, iterations=3)].any():
            labels[mask > 0] = labels.max() + 1
    return np.where(labels > 0, 250, 5).astype(np.uint8), labels


@pytest.mark.parametrize("length, factor", [(1000, 1.0), (1000, 0.36), (777, 1.2), (40, 0.5)])
def test_cores_partition_a_side(length, factor):
    found = spans(length, factor, 96, 40)
    assert found[0].core_start == 0 and found[-1].core_stop == length
    assert all(a.core_stop == b.core_start for a, b in zip(found, found[1:]))
    total = max(1, round(length * factor))
    for span in found:
        assert span.start % 32 == 0 and 0 <= span.start < span.stop <= total
        assert span.start == 0 or span.core_start * factor - span.start >= 39
        assert span.stop == total or span.stop - span.core_stop * factor >= 39
        assert abs(span.image_start - span.start / factor) <= 0.5 * length / total + 0.5


@pytest.mark.parametrize("factor", [1.0, 0.36, 0.87, 1.5])
@pytest.mark.parametrize("channels", [1, 3])
def test_windows_are_parts_of_the_resized_image(factor, channels):
    image = np.random.default_rng(0).integers(0, 255, (300, 417, channels), dtype=np.uint8)
    sides = [round(side * factor) for side in (300, 417)]
    whole = T.ResizeTransform(300, 417, *sides).apply_image(image).reshape(*sides, channels)
    for rows in spans(300, factor, 64, 32):
        for columns in spans(417, factor, 64, 32):
            part = whole[rows.start : rows.stop, columns.start : columns.stop].astype(int)
            found = resized_window(image, factor, rows, columns)
            assert np.abs(found - part).max() <= 2  # rounding


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_objects_are_the_same_as_in_the_whole_image(segmenter, scale):
    image, labels = ellipses(900, 60, 60)
    model = segmenter(SCALE=scale)
    whole, tiled = model.predict(image, tile=0), model.predict(image, tile=160)
    assert len(whole) == len(tiled) == labels.max()
    iou = label_overlaps(tiled.labels, whole.labels).iou
    assert (iou >= 0.9).sum() == labels.max()
    assert label_metrics(tiled.labels, labels)["S@0.5"] == 1
    boxes = tiled.instances.pred_boxes.tensor.long().tolist()
    for number, (mask, (x0, y0, x1, y1)) in enumerate(zip(tiled.instances.pred_masks, boxes)):
        np.testing.assert_array_equal(mask, tiled.labels[y0:y1, x0:x1] == number + 1)
        assert mask.sum() == (tiled.labels == number + 1).sum()
    assert (np.diff(tiled.scores) <= 0).all() and tiled.classes == ["bright"] * len(tiled)


@pytest.mark.parametrize("norm", ["BN", "GN"])
def test_what_is_predicted_for_a_pixel_does_not_depend_on_the_tile(norm):
    found = settings(MEASURES, "embeddings")
    norms = [setting.value for setting in found if setting.key.endswith(".NORM")]
    assert norms == ["BN", "BN"]
    cfg = rpe_d2.get_cfg(MODELS["embeddings"])
    for setting in found:
        is_norm = setting.key.endswith(".NORM")
        cfg.merge_from_list([setting.key, norm if is_norm else setting.value])
    cfg.MODEL.DEVICE = "cpu"
    torch.manual_seed(0)
    model = build_model(cfg)
    image = F.interpolate(255 * torch.rand(1, 3, 40, 56), scale_factor=16, mode="bilinear")[0]
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # statistics of this image
        model.train().predict_maps([{"image": image}])
        model.eval()
        whole = model.predict_maps([{"image": image}])[0]
        tile = model.predict_maps([{"image": image[:, 64:576, 128:768]}])[0]
    stride, margin = whole.stride, _MARGIN // whole.stride
    corner = torch.tensor([128.0, 64.0])  # x and y of the tile
    whole = whole._replace(votes=whole.votes - corner[:, None, None])
    for name in ("embeddings", "logits", "votes"):
        expected = getattr(whole, name)[:, 64 // stride :, 128 // stride :]
        pred = getattr(tile, name)
        core = tuple(slice(margin, side - margin) for side in pred.shape[1:])
        error = (pred - expected[:, : pred.shape[1], : pred.shape[2]]).abs()[:, core[0], core[1]]
        # The statistics of group normalization are those of the tile.
        assert (error.max() < 1e-4 * expected.std()) == (norm == "BN"), name


def test_an_object_larger_than_a_tile_is_whole(segmenter):
    image = np.zeros((700, 900), np.uint8)
    cv2.ellipse(image, (450, 350), (400, 40), 20, 0, 360, 255, -1)
    found = segmenter(SCALE=1.0).predict(image, tile=128)
    assert len(found) == 1 and label_overlaps(found.labels, image > 0).iou[0] > 0.99


def test_the_higher_score_is_in_front_whichever_tile_finds_it_first():
    canvas = _Canvas(np.zeros((40, 40), np.uint32))
    disc = np.hypot(*np.indices((21, 21)) - 10) <= 10
    canvas.add(_Object(disc, 5, 5, 0.1, 0))
    canvas.add(_Object(disc, 6, 5, 0.9, 1))  # the same object
    canvas.add(_Object(disc, 15, 14, 0.5, 0))  # another one, which overlaps it
    labels, scores, class_ids = canvas.found()
    assert scores.tolist() == pytest.approx([0.9, 0.5]) and class_ids.tolist() == [1, 0]
    np.testing.assert_array_equal(labels[6:27, 5:26] == 1, disc)
    assert (labels == 2).sum() < disc.sum()


def test_only_images_that_are_too_large_are_divided(segmenter):
    image, labels = ellipses(1300, 30, 90)
    model = segmenter(MIN_SIZE_TEST=0)
    network = model._predictor.model
    assert len(model.predict(image)) == labels.max()
    assert network.largest <= 1024**2
    model.predict(image, tile=0)
    assert network.largest == 1300**2
    # A tile of 400 pixels is what images of INPUT.MIN_SIZE_TEST are.
    small = segmenter(MIN_SIZE_TEST=200, MAX_SIZE_TEST=300)
    assert len(small.predict(image, tile=400)) == labels.max()
    # A core of 192 pixels, on the grid of the strides, and the margin on both sides.
    assert small._predictor.model.largest == (192 + 2 * _MARGIN) ** 2
    with pytest.raises(ValueError, match="tile is 10; allowed: 0, or 64 or more pixels"):
        small.predict(image, tile=10)


def test_files_are_read_and_written_in_parts(segmenter, tmp_path, monkeypatch):
    monkeypatch.setattr("rpe_d2.inference.segmenter.MOST_READ", 1000)
    monkeypatch.setattr("rpe_d2.inference.tiles._MOST_IN_MEMORY", 1000)
    image, labels = ellipses(700, 30, 60)
    path = tmp_path / "image.tif"
    tifffile.imwrite(path, image.astype(np.uint16) * 16, tile=(128, 128))
    array = zarr.open(str(tmp_path / "image.zarr"), mode="w", shape=image.shape, dtype="uint8")
    array[:] = image
    model = segmenter(SCALE=0.5)
    whole = model.predict(image, tile=160)
    for source in (path, tmp_path / "image.zarr"):
        seen = []
        found = model.predict(
            source, tile=160, progress=lambda tiles: (seen.append(t) or t for t in tiles)
        )
        assert len(seen) == len(set(seen)) == 25  # cores of 64 pixels in 350
        assert isinstance(found.labels, np.memmap) and found.image is None
        assert np.array_equal(found.labels, whole.labels)
        assert np.array_equal(found.scores, whole.scores)
        for suffix in (".tif", ".zarr"):
            found.save(tmp_path / f"{source.suffix[1:]}_labels{suffix}")
    assert np.array_equal(tifffile.imread(tmp_path / "tif_labels.tif"), whole.labels)
    stored = zarr.open(str(tmp_path / "zarr_labels.zarr"), mode="r")
    assert np.array_equal(stored[:], whole.labels)
    found.save(tmp_path / "zarr_labels.zarr", overwrite=True)
    with pytest.raises(FileExistsError):
        found.save(tmp_path / "zarr_labels.zarr")
    with pytest.raises(ValueError, match="cannot hold the objects of an image of 700 x 700"):
        found.save(tmp_path / "labels.json")
    with pytest.raises(ValueError, match="has no fixed scale; allowed: a tile of the size"):
        segmenter().predict(path)
