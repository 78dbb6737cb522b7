"""VOC 2012 and SBD on a miniature: registration, masks, label maps, invalid files, training."""

import json
import shutil

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from PIL import Image

from rpe_d2 import add_rpe_config
from rpe_d2.data import (
    VOC_CLASSES,
    PixelLabelMapper,
    UnreadableImage,
    check_voc_files,
    register_voc,
)
from rpe_d2.utils.label_maps import read_label_map
from tests.helpers import voc_tree
from tests.helpers.training import train

VOC = "VOCdevkit/VOC2012"
SBD = "benchmark_RELEASE/dataset"


@pytest.fixture
def root(tmp_path):
    with voc_tree.unregistered_afterwards():
        yield voc_tree.write_tree(tmp_path / "data")


def masks_of(record) -> np.ndarray:
    """Returns masks (N, H, W) bool."""
    masks = mask_util.decode([a["segmentation"] for a in record["annotations"]])
    return masks.transpose(2, 0, 1).astype(bool)


def expected_masks(things) -> list:
    objects, _ = voc_tree.maps(things)
    return [objects == number for number in range(1, len(things) + 1)]


def test_instances_are_the_maps_without_void(root):
    register_voc(str(root))
    register_voc(str(root))  # a second time, as a second run of a process does
    records = DatasetCatalog.get("voc_2012_val")
    assert [r["image_id"] for r in records] == [2007000033, 2007000042]
    for record, name in zip(records, voc_tree.VAL):
        things = voc_tree.THINGS.get(name, voc_tree.DEFAULT)
        assert (record["height"], record["width"]) == voc_tree.SIZE
        assert np.array_equal(masks_of(record), expected_masks(things))
        classes = [VOC_CLASSES[a["category_id"]] for a in record["annotations"]]
        assert classes == [thing.name for thing in things]
        for annotation, (_, (left, top, right, bottom), difficult) in zip(
            record["annotations"], things
        ):
            # The mask does not include the void band.
            box = [left + 1, top + 1, right - left - 2, bottom - top - 2]
            assert annotation["bbox"] == box and annotation["difficult"] is difficult
    records[0]["annotations"].clear()  # every caller gets a copy
    assert len(DatasetCatalog.get("voc_2012_val")[0]["annotations"]) == 3
    metadata = MetadataCatalog.get("voc_2012_val")
    assert metadata.evaluator_type == "voc_instances"
    assert metadata.thing_classes == sorted(VOC_CLASSES) and len(VOC_CLASSES) == 20


def test_sbd_and_the_images_excluded_from_it(root):
    register_voc(str(root))
    ids = {name: [r["image_id"] for r in DatasetCatalog.get(name)] for name in voc_tree.SPLITS}
    assert ids["sbd_train"] == [2008000002, 2007000033] and ids["sbd_val"] == [2008000003]
    assert ids["voc_2012_sbd_train"] == [2008000002, 2008000003]
    record = DatasetCatalog.get("sbd_val")[0]
    assert np.array_equal(masks_of(record), expected_masks(voc_tree.DEFAULT))
    assert [a["category_id"] for a in record["annotations"]] == [0, 14, 14]
    assert not any(a["difficult"] for a in record["annotations"])


@pytest.mark.parametrize("name, file", [("voc_2012_val", "png"), ("sbd_train", "mat")])
def test_semantic_maps_are_indices_not_colors(root, name, file):
    register_voc(str(root))
    record = DatasetCatalog.get(f"{name}_sem_seg")[-1 if file == "mat" else 0]
    assert record["image_id"] == 2007000033 and record["sem_seg_file_name"].endswith(file)
    _, expected = voc_tree.maps(voc_tree.DEFAULT)
    expected = np.where(expected == 255, 0, expected) if file == "mat" else expected
    assert np.array_equal(read_label_map(record["sem_seg_file_name"]), expected)
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TRAIN = (voc_tree.SIZE[0],)
    cfg.INPUT.RANDOM_FLIP = "none"
    mapped = DatasetMapper(cfg, is_train=True)(record)  # it reads label maps in the mode "L"
    assert np.array_equal(mapped["sem_seg"].numpy(), expected)
    assert len(MetadataCatalog.get(f"{name}_sem_seg").stuff_classes) == 21


def test_masks_for_training(root):
    register_voc(str(root))
    cfg = get_cfg()
    add_rpe_config(cfg)
    cfg.INPUT.MIN_SIZE_TRAIN = (voc_tree.SIZE[0],)
    cfg.INPUT.RANDOM_FLIP = "none"
    mapped = PixelLabelMapper(cfg, is_train=True)(DatasetCatalog.get("voc_2012_train")[0])
    result = mapped["instances"].gt_masks.tensor.numpy()
    assert np.array_equal(result, expected_masks(voc_tree.DEFAULT))
    assert mapped["instances"].gt_classes.tolist() == [0, 14, 14]
    void = voc_tree.maps(voc_tree.DEFAULT)[0] == 255
    assert void.any() and np.array_equal(mapped["ignore_mask"].numpy(), void)


@pytest.mark.parametrize("layout", ["VOC2012", "devkit", "only SBD"])
def test_layouts(root, layout):
    if layout == "VOC2012":
        shutil.move(root / SBD, root / VOC / "sbd")
        register_voc(str(root / VOC))
    elif layout == "devkit":
        register_voc(str(root / "VOCdevkit"))
        assert "sbd_train" not in DatasetCatalog.list()
        return
    else:
        shutil.rmtree(root / "VOCdevkit")
        register_voc(str(root))
        assert "voc_2012_sbd_train" not in DatasetCatalog.list()
    assert len(DatasetCatalog.get("sbd_train")) == 2


def test_images_with_other_names_are_numbered(root):
    lists = root / VOC / "ImageSets" / "Segmentation" / "val.txt"
    for folder, suffix in (
        ("JPEGImages", "jpg"), ("SegmentationObject", "png"), ("SegmentationClass", "png")
    ):  # fmt: skip
        name = f"{voc_tree.VAL[0]}.{suffix}"
        shutil.copy(root / VOC / folder / name, root / VOC / folder / f"mine.{suffix}")
    lists.write_text("mine\n\n")
    register_voc(str(root))
    (record,) = DatasetCatalog.get("voc_2012_val")
    assert record["image_id"] == 1
    assert not any(a["difficult"] for a in record["annotations"])  # mine.xml does not exist


def test_nothing_is_registered_without_a_folder():
    before = DatasetCatalog.list()
    register_voc("")
    assert DatasetCatalog.list() == before


def test_a_wrong_folder_is_reported_in_one_line(root, tmp_path):
    with pytest.raises(FileNotFoundError, match="DATASETS.VOC: .*elsewhere holds none of VOCdev"):
        register_voc(str(tmp_path / "elsewhere"))
    register_voc(str(root))
    with pytest.raises(ValueError, match="DATASETS.VOC is .*2012; voc_2012_train is registered fr"):
        register_voc(str(root / VOC))


@pytest.mark.parametrize(
    "missing, name, message",
    [
        ("VOC/JPEGImages/2007_000042.jpg", "voc_2012_val", "lists 2 images; 1 of their files are"),
        ("VOC/SegmentationObject/2007_000032.png", "voc_2012_train", "SegmentationObject/2007"),
        ("VOC/SegmentationClass/2007_000032.png", "voc_2012_train_sem_seg", "prepare_voc.py"),
        ("SBD/inst/2008_000003.mat", "sbd_val", "inst/2008_000003.mat"),
        ("VOC/ImageSets/Segmentation/val.txt", "voc_2012_sbd_train", "there is no list .*val.txt"),
    ],
)
def test_missing_files_are_named(root, missing, name, message):
    (root / missing.replace("VOC", VOC, 1).replace("SBD", SBD, 1)).unlink()
    register_voc(str(root))
    for use in (check_voc_files, DatasetCatalog.get):
        with pytest.raises(FileNotFoundError, match=message) as error:
            use(name)
        assert "\n" not in str(error.value) and "DATASETS.VOC" in str(error.value)
    other = "sbd_train" if name.startswith("voc") else "voc_2012_val"
    assert DatasetCatalog.get(other)


def small(path):
    voc_tree.save_palette_png(np.ones((9, 7), np.uint8), path)


def colors(path):
    Image.open(path).convert("RGB").save(path)


def no_class(path):
    voc_tree.save_palette_png(np.full(voc_tree.SIZE, 21, np.uint8), path)


def only_void(path):
    voc_tree.save_palette_png(np.full(voc_tree.SIZE, 255, np.uint8), path)


def text(path):
    path.write_text("no such file")


def no_categories(path):
    voc_tree.save_structure(path, "GTinst", Segmentation=np.ones(voc_tree.SIZE, np.uint8))


def another_variable(path):
    voc_tree.save_structure(path, "GTcls", Segmentation=np.ones(voc_tree.SIZE, np.uint8))


def few_categories(path):
    fields = {"Segmentation": np.full(voc_tree.SIZE, 2, np.uint8), "Categories": np.ones((1, 1))}
    voc_tree.save_structure(path, "GTinst", **fields)


def small_mat(path):
    fields = {"Segmentation": np.ones((9, 7), np.uint8), "Categories": np.ones((1, 1))}
    voc_tree.save_structure(path, "GTinst", **fields)


@pytest.mark.parametrize(
    "file, spoil, message",
    [
        ("SegmentationObject/2007_000042.png", small, "has 9 x 7 pixels .*Class.* 48 x 64"),
        ("SegmentationClass/2007_000042.png", small, "has 48 x 64 pixels .*Class.* 9 x 7"),
        ("SegmentationObject/2007_000042.png", colors, "has the mode RGB; allowed: one index"),
        ("SegmentationObject/2007_000042.png", text, "2007_000042.png"),
        ("SegmentationClass/2007_000042.png", no_class, "has 21 under object 1 .*allowed: 1 to 20"),
        ("SegmentationClass/2007_000042.png", only_void, "has 255 under object 1 of"),
        ("JPEGImages/2007_000042.jpg", text, "2007_000042.jpg"),
        ("Annotations/2007_000042.xml", text, "2007_000042.xml is not a VOC annotation"),
        ("inst/2008_000003.mat", no_categories, "2008_000003.mat has no GTinst.Categories"),
        ("inst/2008_000003.mat", another_variable, "has no GTinst.Segmentation"),
        ("inst/2008_000003.mat", few_categories, "the class None for object 2; allowed: 1 to 20"),
        ("inst/2008_000003.mat", small_mat, "has 9 x 7 pixels .*2008_000003.jpg has 48 x 64"),
        ("inst/2008_000003.mat", text, "2008_000003.mat is not a MATLAB file"),
    ],
)  # fmt: skip
def test_invalid_files_are_named_in_one_line(root, file, spoil, message):
    is_sbd = file.startswith("inst")
    spoil(root / (SBD if is_sbd else VOC) / file)
    register_voc(str(root))
    with pytest.raises(UnreadableImage, match=message) as error:
        DatasetCatalog.get("sbd_val" if is_sbd else "voc_2012_val")
    assert "\n" not in str(error.value)


def test_semantic_maps_of_another_kind_are_named(root):
    another_variable(root / SBD / "cls" / "2008_000003.mat")
    another_variable(root / SBD / "inst" / "2008_000003.mat")
    shutil.copy(root / SBD / "inst" / "2007_000033.mat", root / SBD / "cls" / "2008_000003.mat")
    register_voc(str(root))
    (record,) = DatasetCatalog.get("sbd_val_sem_seg")
    with pytest.raises(UnreadableImage, match="has no GTcls.Segmentation"):
        read_label_map(record["sem_seg_file_name"])


def run(root, output) -> int:
    text = f"""
DATASETS:
  VOC: {root}
  TRAIN: [voc_2012_train, voc_2012_sbd_train]
  TEST: [voc_2012_val]
INPUT: {{MIN_SIZE_TRAIN: [64], MIN_SIZE_TEST: 64}}
MODEL:
  RPE: {{NUM_CLASSES: 20}}
TEST: {{TOUCHING_INSTANCES: True}}
"""
    return train(output, "quick/rpe_instant_test.yaml", text)


def test_training_and_evaluation(root, tmp_path):
    assert run(root, tmp_path / "out") == 0
    metrics = json.loads((tmp_path / "out" / "result.json").read_text())["metrics"]
    assert list(metrics) == ["bbox", "segm", "segm_touching", "voc_segm"]
    names = [name for name in metrics["voc_segm"] if "-" not in name]
    assert names == ["AP50", "AP70", "AP50_07", "AP70_07", "APvol"]
    assert all(0 <= metrics["voc_segm"][name] <= 100 for name in names)
    assert metrics["voc_segm"]["AP50-cat"] is None or np.isnan(metrics["voc_segm"]["AP50-cat"])


def test_a_missing_file_of_the_test_set_is_named_before_the_training(root, tmp_path, capsys):
    (root / VOC / "SegmentationObject" / "2007_000042.png").unlink()
    with pytest.raises(SystemExit) as stop:
        run(root, tmp_path / "out")
    assert stop.value.code == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error:")]
    assert "voc_2012_val" in line and "SegmentationObject/2007_000042.png" in line
    assert not (tmp_path / "out" / "last_checkpoint").exists()
