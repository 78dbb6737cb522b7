"""The report of a dataset in COCO's format, and datasets from which nothing can be learned."""

import json
import logging

import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog

from rpe_d2.config import add_rpe_config
from rpe_d2.data import coco_report, register_coco_jsons
from rpe_d2.engine.datasets import (
    check_datasets,
    log_reports,
    warn_of_unreachable_objects,
    write_data_report,
)
from tests.helpers.coco_files import entry, make_content


def report_of(folder, content):
    register_coco_jsons([entry(folder, content)])
    return coco_report("mine")


def test_numbers(coco_folder):
    content = make_content()
    content["annotations"].append(dict(content["annotations"][0], id=3, iscrowd=1))
    report = report_of(coco_folder, content)
    assert report.summary.startswith(
        "mine: 2 images (1 without instances); 2 instances; 1 crowds; by class cell 1, zebra 1;"
        " most in one image 2 (a.png); square roots of areas"
    )
    # Areas of 6 and 48 pixels.
    assert "2.5, 3.6, 4.7, 5.8, 6.9 px" in report.summary
    assert report.warnings == [] and report.num_instances == 2


def test_a_dataset_in_no_objects(coco_folder):
    record = {"file_name": str(coco_folder / "images/a.png"), "image_id": 1, "annotations": []}
    DatasetCatalog.register("no_objects", lambda: [dict(record, height=4, width=4)])
    MetadataCatalog.get("no_objects").set(thing_classes=["cell"])
    report = coco_report("no_objects")
    assert report.summary.startswith("no_objects: 1 images (1 without instances); 0 instances")
    assert report.warnings == ["no_objects: there are no annotations"]


def test_names_of_files_that_are_no_text_can_be_logged(coco_folder):
    content = make_content()
    content["images"][0]["file_name"] = content["images"][1]["file_name"] = "\udcff.png"
    (coco_folder / "images/a.png").rename(coco_folder / "images/\udcff.png")
    report = report_of(coco_folder, content)
    assert r"(\udcff.png)" in report.summary and r"(\udcff.png)" in report.warnings[0]
    "\n".join([report.summary, report.fullest_image, *report.warnings]).encode()


def all_crowds(content):
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1


def fractions(content):
    annotation = content["annotations"][0]
    annotation.update(bbox=[0.1, 0.1, 0.5, 0.5], segmentation=[[0.1, 0.1, 0.6, 0.1, 0.6, 0.6]])


def duplicates(content):
    content["annotations"].append(dict(content["annotations"][0], id=3))


def one_picture_with_two_ids(content):
    content["images"][1]["file_name"] = "./a.png"


def one_class(content):
    content["annotations"].pop()


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda content: content["annotations"].clear(), "there are no annotations"),
        (all_crowds, "all 2 annotations are crowds (iscrowd 1), which are not learned"),
        (fractions, "1 of 2 instances have coordinates from 0 to 1, which look like fractions"),
        (duplicates, "1 instances are duplicates of others"),
        (one_picture_with_two_ids, "1 files have several image ids (a.png)"),
        (one_class, "1 classes have no instance (zebra)"),
    ],
)
def test_warnings(coco_folder, change, words):
    content = make_content()
    change(content)
    warnings = report_of(coco_folder, content).warnings
    assert len([text for text in warnings if text.startswith("mine: ") and words in text]) == 1


def test_a_run_logs_the_report_once_and_refuses_to_learn_from_nothing(coco_folder, caplog):
    content = make_content()
    all_crowds(content)
    register_coco_jsons([entry(coco_folder, make_content(), "good")])
    register_coco_jsons([entry(coco_folder, content, "crowds")])
    cfg = get_cfg()
    add_rpe_config(cfg)
    cfg.MODEL.RPE.NUM_CLASSES = cfg.MODEL.ROI_HEADS.NUM_CLASSES = 2
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("good",), ("good", "crowds")
    with caplog.at_level(logging.INFO, logger="rpe_d2"):
        check_datasets(cfg)
        log_reports(cfg)
    messages = [record.getMessage() for record in caplog.records]
    assert sum("2 instances" in message for message in messages) == 1
    assert sum("all 2 annotations are crowds" in message for message in messages) == 1
    cfg.DATASETS.TRAIN = ("crowds",)
    with pytest.raises(ValueError, match="DATASETS.TRAIN: crowds: all 2 annotations are crowds"):
        check_datasets(cfg)


def grid_of_squares(count, side, size=(600, 600)):
    """Returns the content of a file with one image of many squares."""
    content = make_content()
    content["images"] = [{"id": 5, "file_name": "a.png", "height": size[0], "width": size[1]}]
    content["annotations"] = []
    for number in range(count):
        y, x = (side + 10) * (number // 20), (side + 10) * (number % 20)
        polygon = [x, y, x + side, y, x + side, y + side, x, y + side]
        content["annotations"].append(
            {"id": number + 1, "image_id": 5, "category_id": 3, "bbox": [x, y, side, side],
             "iscrowd": 0, "area": side**2, "segmentation": [polygon]}
        )  # fmt: skip
    return content


def test_settings_with_which_objects_cannot_be_found_are_named_once(coco_folder, tmp_path, caplog):
    register_coco_jsons([entry(coco_folder, grid_of_squares(150, 3), "many")])
    cfg = get_cfg()
    add_rpe_config(cfg)
    cfg.merge_from_list(
        ["MODEL.META_ARCHITECTURE", "PixelEmbeddingNet", "MODEL.RPE.NUM_CLASSES", 2,
         "DATASETS.TRAIN", ("many",), "DATASETS.TEST", ("many",), "OUTPUT_DIR", str(tmp_path),
         "INPUT.MIN_SIZE_TEST", 600, "INPUT.MIN_SIZE_TRAIN", (300,), "MODEL.RPE.STRIDE", 4]
    )  # fmt: skip
    check_datasets(cfg)
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="rpe_d2"):
        warn_of_unreachable_objects(cfg)
    texts = [record.getMessage() for record in caplog.records]
    assert len(texts) == 3
    assert "TEST.DETECTIONS_PER_IMAGE is 100, but" in texts[0] and "at least 150 can" in texts[0]
    assert "MODEL.RPE.MIN_AREA is 16, above the area of 150 of 150 objects of many" in texts[1]
    assert "set it to 9 or less to keep them" in texts[1]
    assert "INPUT.MIN_SIZE_TEST is 600, at which 150 of 150 objects of many" in texts[2]
    assert "MODEL.RPE.STRIDE 1, or INPUT.MIN_SIZE_TEST 1600 with MAX_SIZE_TEST 3555" in texts[2]
    # With the values that the messages name there is no warning.
    caplog.clear()
    cfg.TEST.DETECTIONS_PER_IMAGE, cfg.MODEL.RPE.MIN_AREA, cfg.MODEL.RPE.STRIDE = 150, 9, 1
    warn_of_unreachable_objects(cfg)
    cfg.MODEL.RPE.STRIDE, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 4, 1600, 3555
    warn_of_unreachable_objects(cfg)
    assert not caplog.records

    write_data_report(cfg)
    stored = json.loads((tmp_path / "data_report.json").read_text())["many"]
    assert stored["instances"] == stored["most_in_one_image"] == 150
    assert stored["sides_px"] == [3.0] * 5 and stored["sides_px_at_training_scale"] == [1.5] * 5
    assert stored["sides_px_at_test_scale"] == [8.0] * 5
