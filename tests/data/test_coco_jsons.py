"""Checks and registration of datasets in COCO's format."""

import json
import logging

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from rpe_d2.data import PixelLabelMapper, register_coco_jsons
from rpe_d2.utils.label_maps import read_label_map
from tests.helpers.coco_files import POLYGON, entry, make_content


def error_of(entries, kind=ValueError):
    with pytest.raises(kind) as error:
        register_coco_jsons(entries)
    message = str(error.value)
    assert "\n" not in message and "DATASETS.COCO_JSONS" in message
    assert entries[-1] in message
    return message


def test_loads(coco_folder):
    register_coco_jsons([entry(coco_folder, make_content())])
    metadata = MetadataCatalog.get("mine")
    assert metadata.thing_classes == ["cell", "zebra"]
    assert metadata.evaluator_type == "coco"
    records = DatasetCatalog.get("mine")
    assert MetadataCatalog.get("mine").thing_classes == ["cell", "zebra"]
    assert [a["category_id"] for a in records[0]["annotations"]] == [0, 1]
    assert records[1]["annotations"] == []
    assert records[1]["file_name"] == str(coco_folder / "images/sub/b.png")

    mapper = PixelLabelMapper(True, augmentations=[], image_format="RGB")
    masks = mapper(records[0])["instances"].gt_masks.tensor
    assert masks.sum(dim=(1, 2)).tolist() == [48, 6]


def test_image_root_may_be_omitted(coco_folder):
    path = coco_folder / "images/mine.json"
    path.write_text(json.dumps(make_content()))
    register_coco_jsons([f"mine={path}"])
    assert DatasetCatalog.get("mine")[0]["file_name"] == str(coco_folder / "images/a.png")


def test_colon_in_a_path(coco_folder):
    odd = coco_folder / "12:30"
    odd.mkdir()
    (coco_folder / "images").rename(odd / "images")
    register_coco_jsons([entry(odd, make_content())])
    assert len(DatasetCatalog.get("mine")) == 2


def test_repeated_setup(coco_folder):
    entries = [entry(coco_folder, make_content(), name) for name in ("mine", "yours")]
    register_coco_jsons(entries)
    (coco_folder / "mine.json").unlink()  # the file is not read again
    register_coco_jsons(entries)
    assert DatasetCatalog.get("yours")


def test_name_is_taken(coco_folder):
    register_coco_jsons([entry(coco_folder, make_content())])
    assert "mine" in error_of([f"mine={coco_folder / 'other.json'}:{coco_folder}"])
    taken = entry(coco_folder, make_content(), "shapes_val")
    assert "shapes_val" in error_of([taken])


@pytest.mark.parametrize(
    "wrong", ["a.json", "=a.json:b", "x=", "x=a.txt:b", "x=a.json:", "x=.json", "x=a", ""]
)
def test_malformed_entry(wrong):
    assert "name=path.json:image_root" in error_of([wrong])


def test_missing_file_and_folder(coco_folder):
    error_of([f"mine={coco_folder / 'none.json'}:{coco_folder}"], FileNotFoundError)
    error_of([f"mine=http://localhost:1/a.json:{coco_folder}"], FileNotFoundError)
    wrong = entry(coco_folder, make_content()) + "_none"
    assert "images_none" in error_of([wrong], FileNotFoundError)


def test_missing_images(coco_folder):
    content = make_content()
    (coco_folder / "images/sub/b.png").unlink()
    message = error_of([entry(coco_folder, content)], FileNotFoundError)
    assert "1 of the 2 images checked" in message and "sub/b.png" in message


@pytest.mark.parametrize("content", ["", "{", "\x00\x01", "[1", "hello", "9" * 5000])
def test_not_json(coco_folder, content):
    assert "not JSON" in error_of([entry(coco_folder, content)])


@pytest.mark.parametrize("content", ["[]", "3", "null"])
def test_not_coco(coco_folder, content):
    assert "images" in error_of([entry(coco_folder, content)])


@pytest.mark.parametrize("part", ["images", "annotations", "categories"])
def test_missing_part(coco_folder, part):
    content = make_content()
    del content[part]
    assert f"{part!r}" in error_of([entry(coco_folder, content)])


@pytest.mark.parametrize("part", ["images", "categories"])
def test_empty_part(coco_folder, part):
    content = dict(make_content(), **{part: []})
    assert f"{part!r} is empty" in error_of([entry(coco_folder, content)])


def test_no_annotations_is_fine(coco_folder):
    register_coco_jsons([entry(coco_folder, dict(make_content(), annotations=[]))])
    assert [r["annotations"] for r in DatasetCatalog.get("mine")] == [[], []]


@pytest.mark.parametrize("key", ["id", "image_id", "category_id", "bbox"])
def test_missing_key(coco_folder, key):
    content = make_content()
    del content["annotations"][1][key]
    message = error_of([entry(coco_folder, content)])
    assert "annotations[1]" in message and f"no {key};" in message


def test_ids_not_unique(coco_folder):
    content = make_content()
    content["annotations"][1]["id"] = 1
    assert "not unique" in error_of([entry(coco_folder, content)])


@pytest.mark.parametrize("key", ["image_id", "category_id"])
def test_unknown_reference(coco_folder, key):
    content = make_content()
    content["annotations"][1][key] = 777
    message = error_of([entry(coco_folder, content)])
    assert key in message and "777" in message and "1 of 2" in message


def test_text_and_numbers_are_told_apart_by_quotes(coco_folder):
    content = make_content()
    for annotation in content["annotations"]:
        annotation["image_id"] = str(annotation["image_id"])
    message = error_of([entry(coco_folder, content)])
    assert "2 of 2" in message and "('5', '5'); 'images' has 5, 9" in message


def test_ids_as_text(coco_folder):
    content = make_content()
    for image in content["images"]:
        image["id"] = f"cell #{image['id']}"
    for annotation in content["annotations"]:
        annotation["image_id"] = f"cell #{annotation['image_id']}"
        annotation["category_id"] = str(annotation["category_id"])
    for category in content["categories"]:
        category["id"] = str(category["id"])
    register_coco_jsons([entry(coco_folder, content)])
    records = DatasetCatalog.get("mine")
    assert [len(record["annotations"]) for record in records] == [2, 0]
    maps = [read_label_map(r["sem_seg_file_name"]) for r in DatasetCatalog.get("mine_sem_seg")]
    assert [np.bincount(labels.ravel()).tolist() for labels in maps] == [[270, 44, 6], [320]]


def test_rle_of_the_wrong_size(coco_folder):
    content = make_content()
    content["annotations"][1]["segmentation"]["size"] = [20, 16]
    message = error_of([entry(coco_folder, content)])
    assert "annotation 2" in message and "[20, 16]" in message and "[16, 20]" in message


@pytest.mark.parametrize(
    "part, key, value, allowed",
    [
        ("images", "id", [5], "a number or text"),
        ("images", "file_name", 7, "text"),
        ("images", "height", "16", "a whole number of pixels above 0"),
        ("images", "width", 0, "a whole number of pixels above 0"),
        ("annotations", "id", {}, "a number or text"),
        ("annotations", "id", [5], "a number or text"),
        ("categories", "id", [3], "a number or text"),
        ("annotations", "image_id", [5], "a number or text"),
        ("annotations", "category_id", [3], "a number or text"),
        ("annotations", "bbox", 3, "4 numbers"),
        ("annotations", "bbox", [1, 1, 8], "4 numbers"),
        ("annotations", "bbox", [1, 1, 8, "6"], "4 numbers"),
        ("annotations", "bbox", [1, 1, 8, float("nan")], "4 numbers"),
        ("annotations", "iscrowd", "no", "0 or 1"),
        ("annotations", "area", "48", "a number of pixels"),
        ("annotations", "area", -1, "a number of pixels"),
        ("categories", "name", 1, "text"),
        ("categories", "name", "a\ud800", "text in Unicode"),
    ],
)
def test_values_that_are_not_allowed(coco_folder, part, key, value, allowed):
    content = make_content()
    content[part][0][key] = value
    message = error_of([entry(coco_folder, content)])
    assert f"{part}[0] has the {key} {value!r}; allowed: {allowed}" in message


def test_ids_that_mix_numbers_and_text(coco_folder):
    content = make_content()
    content["categories"].append({"id": "7", "name": "lion"})
    assert "ids of 'categories'" in error_of([entry(coco_folder, content)])


@pytest.mark.parametrize(
    "segmentation, problem",
    [
        ("1 1 9 1 9 7", "has the segmentation '1 1 9 1 9 7'; allowed: a list of polygons"),
        (POLYGON[0], "has the segmentation [1, 1, 9, "),  # one polygon in place of a list
        ([["1", "1", "9", "1", "9", "7"]], "has the segmentation [['1', "),
        ([[1, 1, 9, 1, 9, None]], "has the segmentation [[1, 1, 9, "),
        ({"size": [16, 20]}, "has an RLE mask with counts None; allowed: compressed text, or"),
        ({"size": [16, 20], "counts": 7}, "counts 7;"),
        ({"size": [16, 20], "counts": ["16", 304]}, "counts ['16', 304];"),
        ({"size": [16, 20], "counts": [-16, 304]}, "counts [-16, 304];"),
        ({"size": [16, 20], "counts": [16, 305]}, "sum to 321 in 16 x 20 = 320 pixels"),
        ({"size": [16, 20], "counts": [16, 3]}, "sum to 19 in 16 x 20 = 320 pixels"),
    ],
)
def test_invalid_masks(coco_folder, segmentation, problem):
    content = make_content()
    content["annotations"][1]["segmentation"] = segmentation
    message = error_of([entry(coco_folder, content)])
    assert "annotation 2 has" in message and problem in message


def test_all_masks_that_cannot_be_decoded_are_counted(coco_folder):
    content = make_content()
    short = {"size": [16, 20], "counts": [16, 3]}
    first = content["annotations"][0]
    content["annotations"] += [dict(first, id=i, segmentation=short) for i in range(11, 18)]
    message = error_of([entry(coco_folder, content)])
    assert "7 of 9 masks or boxes cannot be used: annotation 11 has RLE runs" in message
    assert message.count("sum to 19 in 16 x 20 = 320 pixels") == 5 and "annotation 15" in message


@pytest.mark.parametrize(
    "change, words",
    [
        ({"bbox": [0, 0, 1e8, 5]}, "the coordinate 1e+08 in an image of 16 x 20"),
        ({"segmentation": [[1, 1, -1e9, 1, 9, 7]]}, "the coordinate -1e+09 in an image of 16 x 20"),
        ({"segmentation": [[1, 1, 9, 1, 9, 161]]}, "the coordinate 161 in an image of 16 x 20"),
    ],
)
def test_coordinates_far_outside_of_the_image(coco_folder, change, words):
    content = make_content()
    content["annotations"][0].update(change)
    message = error_of([entry(coco_folder, content)])
    assert words in message and message.endswith("allowed: at most 10 times the size of the image")


def test_masks_that_cannot_be_learned(coco_folder, caplog):
    content = make_content()
    masks = {
        11: [[1, 1, 5, 5, 3, 3], []],  # collinear
        12: {"size": [16, 20], "counts": [320]},
        13: [[30, 1, 40, 1, 40, 9]],
        14: [[15, 1, 40, 1, 40, 9], []],  # partly outside, which is allowed
        15: [[1, 1, 9, 7]],  # two corners
        16: [[1, 1, 9, 1, 9, 7, 1]],  # an odd number of coordinates
    }
    for i, segmentation in masks.items():
        box = [15, 1, 5, 8] if i == 14 else [1, 1, 8, 6]
        content["annotations"].append(
            dict(content["annotations"][0], id=i, segmentation=segmentation, bbox=box)
        )
    with caplog.at_level(logging.WARNING, logger="rpe_d2.data.datasets.coco_jsons"):
        register_coco_jsons([entry(coco_folder, content)])
    messages = [r.getMessage() for r in caplog.records if r.name.startswith("rpe_d2")]
    assert len(messages) == 1 and "\n" not in messages[0]
    assert "4 masks without area (11, 12, 15, 16)" in messages[0]
    assert "1 masks outside of the image (13)" in messages[0]
    mapper = PixelLabelMapper(True, augmentations=[], image_format="RGB")
    assert len(mapper(DatasetCatalog.get("mine")[0])["instances"]) == 3


@pytest.mark.parametrize(
    "box, count",
    [
        ([0, 0, 0, 0], 1),
        ([30, 1, 8, 6], 1),
        ([1, 1, 20, 12], 1),
        ([1, 1, 9, 7], 0),  # IoU 48 / 63
        ([0, 0, 9, 8], 0),
    ],
)
def test_boxes_that_cannot_be_right_are_replaced(coco_folder, caplog, box, count):
    content = make_content()
    content["annotations"][0]["bbox"] = box
    with caplog.at_level(logging.WARNING, logger="rpe_d2.data.datasets.coco_jsons"):
        register_coco_jsons([entry(coco_folder, content)])
    messages = [r.getMessage() for r in caplog.records if r.name.startswith("rpe_d2")]
    assert len(messages) == count
    if count:
        assert "1 of 2 boxes are empty" in messages[0] and "(1)" in messages[0]
    annotations = DatasetCatalog.get("mine")[0]["annotations"]
    assert annotations[0]["bbox"] == ([1, 1, 8, 6] if count else box)
    assert annotations[1]["bbox"] == [1, 0, 2, 3]
    mapper = PixelLabelMapper(True, augmentations=[], image_format="RGB")
    assert len(mapper(DatasetCatalog.get("mine")[0])["instances"]) == 2


def test_real_data(coco_folder, real_data, caplog):
    coco, nuclei = real_data("tiny_coco"), real_data("nuclei")
    with caplog.at_level(logging.WARNING, logger="rpe_d2.data.datasets.coco_jsons"):
        register_coco_jsons(
            [
                f"my_coco={coco}/annotations/instances_val2017.json:{coco}/val2017",
                f"my_nuclei={nuclei}/val.json",
            ]
        )
    assert not [r for r in caplog.records if r.name.startswith("rpe_d2")]
    assert len(MetadataCatalog.get("my_coco").thing_classes) == 80
    assert len(DatasetCatalog.get("my_coco")) == 50
    assert len(DatasetCatalog.get("my_nuclei")) == 59
