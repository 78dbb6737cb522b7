"""The report of a dataset in COCO's format, and datasets from which nothing can be learned."""

import logging

import pytest
from detectron2.config import get_cfg

from rpe_d2.config import add_rpe_config
from rpe_d2.data import coco_report, register_coco_jsons
from rpe_d2.engine.datasets import check_datasets
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


def all_crowds(content):
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1


def fractions(content):
    annotation = content["annotations"][0]
    annotation.update(bbox=[0.1, 0.1, 0.5, 0.5], segmentation=[[0.1, 0.1, 0.6, 0.1, 0.6, 0.6]])


def duplicates(content):
    content["annotations"].append(dict(content["annotations"][0], id=3))


def one_picture_with_two_ids(content):
    content["images"][1]["file_name"] = "a.png"


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
        check_datasets(cfg)
    messages = [record.getMessage() for record in caplog.records]
    assert sum("2 instances" in message for message in messages) == 1
    assert sum("all 2 annotations are crowds" in message for message in messages) == 1
    cfg.DATASETS.TRAIN = ("crowds",)
    with pytest.raises(ValueError, match="DATASETS.TRAIN: crowds: all 2 annotations are crowds"):
        check_datasets(cfg)
