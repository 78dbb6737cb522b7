"""Label maps, tables and files of segmented objects."""

import csv
import json
import zipfile

import cv2
import numpy as np
import pytest
import tifffile
import torch
from detectron2.structures import Boxes, Instances
from matplotlib.path import Path as Polygon
from pycocotools import mask as mask_util
from pycocotools.coco import COCO

from rpe_d2.inference import Segmentation
from rpe_d2.inference.label_formats import outlines

SIZE = (40, 50)


def rectangle(y0, x0, y1, x1, size=SIZE):
    mask = np.zeros(size, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def instances_of(masks, scores, classes):
    instances = Instances(masks[0].shape if masks else SIZE)
    instances.pred_masks = torch.from_numpy(np.array(masks, bool).reshape(-1, *SIZE))
    instances.pred_boxes = Boxes(torch.zeros(len(masks), 4))
    instances.scores = torch.tensor(scores, dtype=torch.float32)
    instances.pred_classes = torch.tensor(classes, dtype=torch.int64)
    return instances


@pytest.fixture
def segmentation():
    """A ring with a hole, an object in two parts, one below others, and one that is covered."""
    ring = rectangle(2, 2, 14, 14) & ~rectangle(5, 5, 9, 10)
    parts = rectangle(20, 5, 24, 9) | rectangle(30, 5, 38, 12)
    below = rectangle(10, 10, 20, 30)
    covered = rectangle(31, 6, 34, 8)
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    return Segmentation.from_instances(
        instances_of([below, ring, covered, parts], [0.5, 0.9, 0.2, 0.6], [1, 0, 1, 0]),
        ["cell", "other"],
        category_ids=[7, "b"],
        image=image,
        name="a.png",
    )


def test_the_highest_score_is_in_front_and_covered_objects_are_left_out(segmentation):
    assert len(segmentation) == 3 and segmentation.labels.dtype == np.uint16
    assert segmentation.scores.tolist() == pytest.approx([0.9, 0.6, 0.5])
    assert segmentation.classes == ["cell", "cell", "other"]
    assert segmentation.labels[3, 3] == 1 and segmentation.labels[6, 6] == 0
    assert segmentation.labels[32, 7] == 2 and segmentation.labels[12, 12] == 1
    assert segmentation.labels[18, 25] == 3
    assert np.array_equal(np.unique(segmentation.labels), range(4))
    assert segmentation.instances.pred_masks[2].sum() == 200  # whole, although the ring covers it
    assert repr(segmentation) == "Segmentation('a.png', 3 objects, 50 x 40 pixels)"


@pytest.mark.parametrize("columns, is_visible", [(10, True), (11, False)])
def test_an_object_that_is_mostly_behind_a_better_one_is_left_out(columns, is_visible):
    """Two halves of an object, and the whole one, which a lower score makes an alternative."""
    whole, front = rectangle(10, 10, 20, 30), rectangle(10, 10, 20, 10 + columns)
    found = Segmentation.from_instances(instances_of([whole, front], [0.5, 0.9], [0, 0]))
    assert found.scores.tolist() == pytest.approx([0.9, 0.5] if is_visible else [0.9])
    assert (found.labels[whole & ~front] == 2 * is_visible).all()


def test_the_probability_knows_of_objects_below_the_lowest_score():
    masks = [rectangle(10, 10, 20, 30), rectangle(2, 2, 14, 14), rectangle(12, 20, 30, 30)]
    instances = instances_of(masks, [0.5, 0.9, 0.2], [0, 0, 0])
    found = Segmentation.from_instances(instances, min_score=0.3)
    expected = (np.array(masks) * np.float32([0.5, 0.9, 0.2])[:, None, None]).max(axis=0)
    assert len(found) == 2 and found.probability.dtype == np.float32
    np.testing.assert_array_equal(found.probability, expected)
    # A label map alone knows the objects that it holds.
    alone = Segmentation(found.labels, found.scores).probability
    np.testing.assert_array_equal(alone, np.where(found.labels > 0, expected, 0))
    with pytest.raises(ValueError, match=r"probability has shape .2, 2.; allowed: .40, 50."):
        Segmentation(found.labels, probability=np.ones((2, 2)))


def test_an_image_without_objects_and_one_without_background():
    empty = Segmentation.from_instances(instances_of([], [], []))
    assert len(empty) == 0 and not empty.labels.any() and empty.overlay().shape == (*SIZE, 3)
    assert set(map(len, empty.table().values())) == {0}
    full = Segmentation.from_instances(instances_of([np.ones(SIZE, bool)], [0.5], [0]))
    assert (full.labels == 1).all()
    assert full.table()["area"].tolist() == [2000]


def test_the_table_measures_each_object(segmentation):
    table = segmentation.table()
    assert table["label"].tolist() == [1, 2, 3]
    assert table["area"].tolist() == [(segmentation.labels == n).sum() for n in (1, 2, 3)]
    y, x = np.nonzero(segmentation.labels == 2)
    assert table["centroid_y"][1] == pytest.approx(y.mean())
    assert table["centroid_x"][1] == pytest.approx(x.mean())
    assert [table[name][1] for name in ("y0", "x0", "y1", "x1")] == [20, 5, 38, 12]
    expected = segmentation.image[y, x].mean()
    assert table["mean_intensity"][1] == pytest.approx(expected)
    assert table["class"].tolist() == segmentation.classes


def read_labels(path):
    if path.suffix == ".tif":
        return tifffile.imread(path)
    if path.suffix == ".png":
        return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    return np.load(path)["labels"]


@pytest.mark.parametrize("suffix", [".tif", ".png", ".npz"])
def test_label_maps_come_back(segmentation, suffix, tmp_path):
    path = segmentation.save(tmp_path / f"x{suffix}")
    found = read_labels(path)
    assert found.dtype == np.uint16 and np.array_equal(found, segmentation.labels)


def test_coco_comes_back(segmentation, tmp_path):
    path = segmentation.save(tmp_path / "x.json")
    truth = COCO(str(path))
    labels = np.zeros(SIZE, int)
    for number, annotation in truth.anns.items():
        labels[truth.annToMask(annotation) > 0] = number
    assert np.array_equal(labels, segmentation.labels)
    assert [a["category_id"] for a in truth.anns.values()] == [7, 7, "b"]
    assert [a["score"] for a in truth.anns.values()] == pytest.approx([0.9, 0.6, 0.5])
    assert truth.anns[1]["area"] == mask_util.area(truth.annToRLE(truth.anns[1]))
    (image,) = truth.imgs.values()
    assert (image["file_name"], image["height"], image["width"]) == ("a.png", 40, 50)


def rasterized(polygons, size=SIZE):
    """Returns the pixels whose centers are in an outer ring and in none of its holes."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    centers = np.column_stack([x.ravel(), y.ravel()])
    mask = np.zeros(len(centers), bool)
    for outer, *inner in polygons:
        part = Polygon(outer).contains_points(centers)
        for ring in inner:
            part &= ~Polygon(ring).contains_points(centers)
        mask |= part
    return mask.reshape(size)


def test_geojson_comes_back(segmentation, tmp_path):
    path = segmentation.save(tmp_path / "x.geojson")
    features = json.loads(path.read_text())["features"]
    kinds = [feature["geometry"]["type"] for feature in features]
    assert kinds == ["Polygon", "MultiPolygon", "Polygon"]
    for label, feature in enumerate(features, start=1):
        polygons = feature["geometry"]["coordinates"]
        polygons = polygons if kinds[label - 1] == "MultiPolygon" else [polygons]
        assert np.array_equal(rasterized(polygons), segmentation.labels == label)
        assert all(ring[0] == ring[-1] for rings in polygons for ring in rings)
        assert feature["properties"]["score"] == pytest.approx(segmentation.scores[label - 1])
        assert feature["properties"]["classification"]["name"] == segmentation.classes[label - 1]
    assert len(features[0]["geometry"]["coordinates"]) == 2  # the ring has a hole


def test_outlines_of_random_masks_come_back():
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = rng.random((15, 18)) < 0.6
        assert np.array_equal(rasterized(outlines(mask), mask.shape), mask)


def test_rois_of_imagej_are_the_outer_outlines(segmentation, tmp_path):
    roifile = pytest.importorskip("roifile")
    path = segmentation.save(tmp_path / "x.zip")
    with zipfile.ZipFile(path) as archive:
        assert len(archive.namelist()) == 3
    rois = roifile.roiread(path)
    assert [roi.name for roi in rois] == ["00001", "00002", "00003"]
    assert np.array_equal(rasterized([[rois[0].coordinates()]]), rectangle(2, 2, 14, 14))


def test_the_table_is_a_csv_file(segmentation, tmp_path):
    path = segmentation.save(tmp_path / "x.csv")
    rows = list(csv.DictReader(path.open()))
    assert [row["label"] for row in rows] == ["1", "2", "3"]
    assert rows[0]["class"] == "cell" and float(rows[2]["score"]) == 0.5


def test_nothing_is_overwritten_unless_asked(segmentation, tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="x.csv exists; allowed: a new name, or overwrite="):
        segmentation.save(path)
    assert path.read_text() == "mine"
    segmentation.save(path, overwrite=True)
    assert path.read_text().startswith("label,class,score")
    with pytest.raises(ValueError, match="x.jpg ends in '.jpg'; allowed: .tif, .png"):
        segmentation.save(tmp_path / "x.jpg")


def test_more_objects_than_16_bits_hold(tmp_path):
    count, side = 65_600, 512
    labels = np.zeros(side * side, np.uint32)
    labels[:count] = np.arange(1, count + 1)
    segmentation = Segmentation(labels.reshape(side, side), name="many")
    with pytest.raises(ValueError, match="many has 65600 objects, and PNG holds 65535; allowed: "):
        segmentation.save(tmp_path / "x.png")
    assert not list(tmp_path.iterdir())
    found = tifffile.imread(segmentation.save(tmp_path / "x.tif"))
    assert found.dtype == np.uint32 and found.max() == count


def test_the_overlay_colors_objects_only(segmentation):
    picture = segmentation.overlay()
    outside = segmentation.labels == 0
    assert np.array_equal(picture[outside], segmentation.image[outside])
    assert (picture[~outside] != segmentation.image[~outside]).any(axis=1).mean() > 0.95


def test_models_without_masks_are_refused():
    instances = Instances(SIZE)
    instances.scores = torch.zeros(0)
    with pytest.raises(ValueError, match="the model predicts no masks; allowed: models that do"):
        Segmentation.from_instances(instances)


def test_of_a_label_map():
    labels = np.zeros(SIZE, np.int64)
    labels[2:9, 3:8], labels[20:30, 10:20] = 70_000, 5
    found = Segmentation(labels, [0.2, 0.7], [1, 0], ["a", "b"], name="x")
    assert found.labels.max() == 2 and found.labels[25, 15] == 1 and found.labels[3, 4] == 2
    assert found.classes == ["b", "a"]
    assert torch.equal(found.instances.pred_masks[0], torch.from_numpy(labels == 5))
    assert found.instances.pred_boxes.tensor[1].tolist() == [3, 2, 8, 9]
    again = Segmentation.from_instances(found.instances, ["a", "b"])
    assert again.classes == ["a", "b"]  # by score
    with pytest.raises(ValueError, match=r"scores has shape \(1,\); allowed: \(2,\)"):
        Segmentation(labels, [0.2])
