"""Label maps from instances: COCO's format, shapes with and without noise, panoptic shapes."""

import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager

from rpe_d2.data import load_shapes, load_shapes_sem_seg, register_coco_jsons
from rpe_d2.data.datasets.label_noise import corrupt_labels
from rpe_d2.evaluation.ground_truth import has_semantic_maps
from rpe_d2.utils.label_maps import read_label_map
from tests.helpers.coco_files import entry, make_content

# ---- Datasets in COCO's format


def test_maps_of_masks(coco_folder):
    content = make_content()
    content["annotations"] += [
        # A small mask in front of the first one, a crowd behind all, and a box without a mask.
        {"id": 3, "image_id": 5, "category_id": 70, "bbox": [4, 4, 2, 2], "iscrowd": 0,
         "segmentation": [[4, 4, 6, 4, 6, 6, 4, 6]]},
        {"id": 4, "image_id": 5, "category_id": 3, "bbox": [0, 0, 20, 8], "iscrowd": 1,
         "segmentation": {"size": [16, 20], "counts": [0] + [8, 8] * 20}},
        {"id": 5, "image_id": 5, "category_id": 70, "bbox": [12, 10, 3, 4], "iscrowd": 0},
        # Two corners have no area, alone or beside a polygon.
        {"id": 6, "image_id": 5, "category_id": 3, "bbox": [15, 10, 4, 4],
         "segmentation": [[15, 10, 19, 14]]},
        {"id": 7, "image_id": 5, "category_id": 3, "bbox": [17, 12, 2, 2],
         "segmentation": [[15, 10, 19, 14], [17, 12, 19, 12, 19, 14, 17, 14]]},
    ]  # fmt: skip
    register_coco_jsons([entry(coco_folder, content)])
    metadata = MetadataCatalog.get("mine_sem_seg")
    assert metadata.stuff_classes == ["background", "cell", "zebra"]
    assert (metadata.ignore_label, metadata.evaluator_type) == (255, "sem_seg")
    with_objects, without = DatasetCatalog.get("mine_sem_seg")
    assert "annotations" not in with_objects and with_objects["image_id"] == 5
    assert with_objects["file_name"] == str(coco_folder / "images/a.png")
    result = read_label_map(with_objects["sem_seg_file_name"])
    expected = np.zeros((16, 20), int)
    expected[:8] = 255
    expected[1:7, 1:9] = 1
    expected[0:3, 1:3] = 2
    expected[4:6, 4:6] = 2
    expected[10:14, 12:15] = 2
    expected[12:14, 17:19] = 1
    assert np.array_equal(result, expected)
    assert not read_label_map(without["sem_seg_file_name"]).any()


def test_a_taken_name_and_an_absent_image_are_named(coco_folder):
    register_coco_jsons([entry(coco_folder, make_content(), "one")])
    path = DatasetCatalog.get("one_sem_seg")[0]["sem_seg_file_name"].replace("#5", "#6")
    with pytest.raises(FileNotFoundError, match="#6: there is no such image"):
        PathManager.open(path, "rb")
    DatasetCatalog.register("two_sem_seg", lambda: [])
    MetadataCatalog.get("two_sem_seg")
    with pytest.raises(ValueError, match="two_sem_seg, the name of its semantic maps, is taken"):
        register_coco_jsons([entry(coco_folder, make_content(), "two")])


def test_more_classes_than_a_map_holds(coco_folder):
    content = make_content()
    content["categories"] += [{"id": 100 + n, "name": f"class {n}"} for n in range(253)]
    register_coco_jsons([entry(coco_folder, content)])
    assert "mine" in DatasetCatalog.list() and "mine_sem_seg" not in DatasetCatalog.list()


def test_nuclei_foreground(real_data):
    root = real_data("nuclei")
    before = set(DatasetCatalog.list())
    try:
        register_coco_jsons([f"nuclei_test={root}/val.json"])
        instances = DatasetCatalog.get("nuclei_test")[0]
        record = DatasetCatalog.get("nuclei_test_sem_seg")[0]
        result = read_label_map(record["sem_seg_file_name"])
        assert result.shape == (instances["height"], instances["width"])
        assert set(np.unique(result)) == {0, 1} and len(instances["annotations"]) > 0
    finally:
        for name in set(DatasetCatalog.list()) - before:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


# ---- Shapes


@pytest.mark.parametrize("split", ["train", "large_train"])
def test_noise_changes_the_maps_alone(split):
    clean, noisy = DatasetCatalog.get(f"shapes_{split}_sem_seg"), DatasetCatalog.get(
        f"shapes_{split}_noisy_sem_seg"
    )
    assert len(clean) == len(noisy)
    assert [r["file_name"] for r in clean] == [r["file_name"] for r in noisy]
    metadata = MetadataCatalog.get(f"shapes_{split}_noisy_sem_seg")
    assert metadata.stuff_classes == MetadataCatalog.get(f"shapes_{split}_sem_seg").stuff_classes
    wrong = lost = added = foreground = 0
    for one, other in list(zip(clean, noisy))[:4]:
        true = read_label_map(one["sem_seg_file_name"])
        result = read_label_map(other["sem_seg_file_name"])
        again = load_shapes_sem_seg(split, noisy=True)[one["image_id"]]["sem_seg_file_name"]
        assert np.array_equal(result, read_label_map(again))
        assert set(np.unique(result)) <= set(np.unique(true)) | {0}
        wrong += (result != true).mean() / 4
        lost += ((true > 0) & (result == 0)).sum()
        added += ((true == 0) & (result > 0)).sum()
        foreground += (true > 0).sum()
    assert 0.05 < wrong < 0.2
    assert 0.1 < lost / foreground < 0.3 and 0.01 < added / foreground < 0.15


def test_evaluation_is_on_clean_maps():
    assert not [name for name in DatasetCatalog.list() if "val_noisy" in name]


def test_noise_depends_on_the_generator_alone():
    labels = np.zeros((60, 80), np.uint8)
    labels[10:50, 10:60] = 3
    before = labels.copy()
    one, same, other = (corrupt_labels(labels, np.random.default_rng(n)) for n in (0, 0, 1))
    assert np.array_equal(one, same) and not np.array_equal(one, other)
    assert np.array_equal(labels, before) and one.dtype == np.uint8
    inner = one[16:44, 16:54]
    assert 0.03 < (inner == 0).mean() < 0.3  # holes
    assert not corrupt_labels(np.zeros((9, 9), np.uint8), np.random.default_rng(0)).any()


def test_panoptic_records_have_both():
    record = DatasetCatalog.get("shapes_val_panoptic")[3]
    assert record["annotations"] == load_shapes("val")[3]["annotations"]
    stuff = read_label_map(record["sem_seg_file_name"])
    semantic = read_label_map(DatasetCatalog.get("shapes_val_sem_seg")[3]["sem_seg_file_name"])
    assert np.array_equal(stuff == 1, semantic == 0)
    metadata = MetadataCatalog.get("shapes_val_panoptic")
    # A type for which Detectron2's own training script has an evaluator.
    assert metadata.evaluator_type == "coco" and has_semantic_maps("shapes_val_panoptic")
    assert not has_semantic_maps("shapes_val")
    assert (len(metadata.thing_classes), metadata.stuff_classes[0]) == (4, "things")
    assert json.dumps(record)
