"""Measures of data and rules of rpe-d2 fit on images whose properties are known."""

import json
import math

import cv2
import numpy as np
import pytest
import tifffile
import yaml

from rpe_d2 import get_cfg
from rpe_d2.engine.setup import load_config
from rpe_d2.inference.fit_data import (
    LabelMaps,
    measure,
    read_coco_data,
    read_label_data,
    split_images,
)
from rpe_d2.inference.fit_rules import MODELS, config_text, settings
from rpe_d2.ops.sphere import min_margin
from tests.reference.label_shapes import axes_ratio, touches


def disc(labels, number, y, x, radius):
    rows, columns = np.indices(labels.shape)
    labels[(rows - y) ** 2 + (columns - x) ** 2 <= radius**2] = number


@pytest.fixture
def folders(tmp_path):
    """Four images of three discs each, two of which touch, and an image without objects."""
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    for n in range(5):
        labels = np.zeros((100, 120), np.uint16)
        if n < 4:
            disc(labels, 3, 25, 25, 10)
            disc(labels, 7, 25, 46, 10)
            disc(labels, 9, 80, 100, 10)
        image = np.where(labels > 0, 90, 20 + n).astype(np.uint8)
        cv2.imwrite(str(tmp_path / "images" / f"{n}.png"), image)
        tifffile.imwrite(tmp_path / "labels" / f"{n}.tif", labels)
    return str(tmp_path / "images"), str(tmp_path / "labels")


def test_label_folders_become_coco_data(folders, tmp_path):
    content = read_label_data(*folders)
    assert len(content["images"]) == 5 and len(content["annotations"]) == 12
    json_file = tmp_path / "data.json"
    json_file.write_text(json.dumps(content))
    again = read_coco_data(str(json_file), "/")
    assert again == content
    truth = LabelMaps(content)
    for number, image in enumerate(content["images"]):
        labels = tifffile.imread(f"{folders[1]}/{image['id']}.tif")
        assert truth.file(number).name == f"{image['id']}.png"
        found, crowd = truth.target(number)
        assert not crowd.any()
        assert np.array_equal(found > 0, labels > 0)
        assert len(np.unique(np.stack([found, labels]).reshape(2, -1), axis=1).T) == len(
            np.unique(labels)
        )


def test_crowds_are_ignored_and_smaller_objects_are_in_front():
    def annotation(x, y, w, h, is_crowd=0):
        polygon = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        box = {"bbox": [x, y, w, h], "segmentation": polygon, "iscrowd": is_crowd}
        return {"id": x, "image_id": "a", "category_id": 1, **box}

    image = {"id": "a", "file_name": "a.png", "height": 30, "width": 40}
    annotations = [annotation(5, 5, 4, 4), annotation(0, 0, 20, 20), annotation(15, 0, 9, 30, 1)]
    content = {"images": [image], "annotations": annotations}
    labels, crowd = LabelMaps(content).target(0)
    assert crowd.sum() == 9 * 30 and not labels[crowd].any()
    assert labels[6, 6] == 2 and (labels == 2).sum() == 16  # the smaller one
    assert (labels == 1).sum() == 15 * 20 - 16


def test_data_without_a_pixel_are_refused(folders):
    content = read_label_data(*folders)
    empty = [{**a, "segmentation": None, "bbox": [1, 1, 0, 0]} for a in content["annotations"]]
    with pytest.raises(ValueError, match="no object has a pixel; allowed: masks or boxes with"):
        measure({**content, "annotations": empty})


def test_images_without_objects_are_not_held_out(folders):
    content = read_label_data(*folders)
    train, held_out = split_images(content, seed=3)
    assert len(train["images"]) == 4 and len(held_out["images"]) == 1
    assert len(held_out["annotations"]) == 3
    assert split_images(content, seed=3) == (train, held_out)
    chosen = {split_images(content, seed=seed)[1]["images"][0]["id"] for seed in range(30)}
    assert chosen == {"0", "1", "2", "3"}
    one = {**content, "annotations": content["annotations"][:3]}
    with pytest.raises(ValueError, match="5 images, 1 of them with objects; allowed: 2 or more"):
        split_images(one)


def test_measures_of_discs(folders):
    measures = measure(read_label_data(*folders))
    assert (measures.images, measures.objects, measures.most_objects) == (5, 12, 3)
    assert (measures.height, measures.width, measures.smallest_side) == (100, 120, 100)
    area = (np.hypot(*np.indices((21, 21)) - 10) <= 10).sum()
    assert measures.diameters == pytest.approx([2 * math.sqrt(area / math.pi)] * 5)
    assert measures.touching == pytest.approx(2 / 3)
    assert measures.neighbors == 1 and measures.elongation == pytest.approx(1, abs=0.02)
    assert measures.is_gray and not measures.is_directed
    assert measures.peaks == (90, 90) and measures.intensity == "percentile:0.1,99.8"
    assert measures.mean[0] == pytest.approx(255 * 3 * area / 12000, rel=0.02)


def test_elongated_objects_of_one_direction_and_colors(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    ratios, touching = [], []
    for n in range(6):
        labels = np.zeros((150, 150), np.uint8)
        for number in range(1, 13):
            center = rng.integers(15, 135, 2).tolist()
            cv2.ellipse(labels, center, (14, 6), float(rng.normal(0, 10)), 0, 360, number, -1)
        numbers = [int(number) for number in np.unique(labels)[1:]]
        ratios += [axes_ratio(labels == number) for number in numbers]
        touching += [touches(labels, number) for number in numbers]
        image = np.dstack([labels * 20, np.full_like(labels, 200), labels])
        cv2.imwrite(str(tmp_path / "images" / f"{n}.png"), image)
        cv2.imwrite(str(tmp_path / "labels" / f"{n}.png"), labels)
    measures = measure(read_label_data(str(tmp_path / "images"), str(tmp_path / "labels")))
    assert measures.is_directed and not measures.is_gray and measures.intensity == "auto"
    assert measures.elongation == pytest.approx(np.median(ratios), rel=0.05)
    assert measures.touching == pytest.approx(np.mean(touching))


@pytest.mark.parametrize("model", MODELS)
def test_rules(folders, tmp_path, model):
    measures = measure(read_label_data(*folders))
    found = settings(measures, model)
    values = {setting.key: setting.value for setting in found}
    assert all(setting.reason for setting in found)
    # 20 px wide objects stay as they are; those of 100 px are made smaller.
    assert values["INPUT.SCALE"] == 1.0
    large = measures._replace(diameters=tuple(5 * d for d in measures.diameters))
    values_of_large = {s.key: s.value for s in settings(large, model)}
    assert values_of_large["INPUT.SCALE"] == 0.2
    assert values_of_large["INPUT.CROP.SIZE"] == [960, 960]
    assert {s.key: s.value for s in settings(large, model, 0.5)}["INPUT.SCALE"] == 0.5
    tiny = measures._replace(diameters=tuple(d / 10 for d in measures.diameters))
    assert {s.key: s.value for s in settings(tiny, model)}["INPUT.SCALE"] == 2.0
    crowded = measures._replace(most_objects=1000, neighbors=40)
    values_of_crowded = {s.key: s.value for s in settings(crowded, model)}
    assert values_of_crowded["TEST.DETECTIONS_PER_IMAGE"] >= 1500
    if model == "embeddings":
        dim = values_of_crowded["MODEL.RPE.EMBEDDING_DIM"]
        assert min_margin(41, dim)[0] <= 0.5 and values["MODEL.RPE.EMBEDDING_DIM"] == 8
        several = {s.key: s.value for s in settings(measures._replace(classes=["a", "b"]), model)}
        heads = [v["MODEL.RPE.GROUP_CLASSES"] for v in (values, several)]
        assert heads == ["vote", "head"]
    else:
        sizes = np.array(values["MODEL.ANCHOR_GENERATOR.SIZES"]).squeeze(1)
        levels = get_cfg(MODELS[model]).MODEL.RPN.IN_FEATURES
        assert len(sizes) == len(levels)
        # A disc of 20 px has the area of a square of 17.7 px.
        np.testing.assert_allclose(np.sqrt(sizes[0] * sizes[-1]), 17.7, rtol=0.1)

    text = config_text(found, model, {"OUTPUT_DIR": "out", "SOLVER.MAX_ITER": 7})
    path = tmp_path / "fit.yaml"
    path.write_text(text)
    cfg = load_config(str(path), ["DATASETS.TRAIN", "()", "DATASETS.TEST", "()"])
    assert cfg.OUTPUT_DIR == "out" and cfg.SOLVER.MAX_ITER == 7
    for setting in found:
        node = cfg
        for part in setting.key.split("."):
            node = node[part]
        assert node == setting.value or list(node) == list(setting.value), setting
        assert f"# {setting.reason}\n" in text
    assert yaml.safe_load(text)["INPUT"]["SCALE"] == 1.0
