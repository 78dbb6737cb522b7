"""Datasets of image folders and label maps: registration, errors and training."""

import json
import logging
import shutil

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data import transforms as T
from PIL import Image

from rpe_d2.data import NameUnreadable, UnreadableImage, register_sem_seg_dirs
from rpe_d2.utils.label_maps import read_class_indices, read_label_map
from tests.helpers.training import train

NAMES = ("a", "b", "sub/c")
SIZE = (40, 48)  # height, width


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for part in ("images", "labels"):
        (tmp_path / part / "sub").mkdir(parents=True)
    for name in NAMES:
        picture = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        Image.fromarray(picture).save(tmp_path / "images" / f"{name}.jpg")
        save_labels(tmp_path, name, rng.choice([0, 1, 2, 255], SIZE))
    (tmp_path / "classes.txt").write_text("sky\nwall\n\nroad\n")
    before = set(DatasetCatalog.list())
    yield tmp_path
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def save_labels(folder, name, labels):
    Image.fromarray(np.asarray(labels, np.uint8)).save(folder / "labels" / f"{name}.png")


def entry(folder, name="mine", rest=""):
    return f"{name}={folder}/images/:{folder}/labels/{rest}"


def error_of(folder, kind=ValueError, entries=None, num_classes=3):
    with pytest.raises(kind) as error:
        register_sem_seg_dirs(entries or [entry(folder)], num_classes, 255)
    message = str(error.value)
    assert "\n" not in message and "DATASETS.SEM_SEG_DIRS" in message
    return message


def test_images_label_maps_and_names(folder):
    entries = [entry(folder), entry(folder, "named", f":{folder}/classes.txt")]
    register_sem_seg_dirs(entries, 3, 255)
    register_sem_seg_dirs(entries, 3, 255)  # a second time, as a second run of a process does
    records = DatasetCatalog.get("mine")
    assert [record["image_id"] for record in records] == list(NAMES)
    assert all((record["height"], record["width"]) == SIZE for record in records)
    metadata = MetadataCatalog.get("mine")
    assert metadata.stuff_classes == ["class 0", "class 1", "class 2"]
    assert (metadata.ignore_label, metadata.evaluator_type) == (255, "sem_seg")
    assert MetadataCatalog.get("named").stuff_classes == ["sky", "wall", "road"]
    expected = np.asarray(Image.open(folder / "labels/sub/c.png"))
    assert np.array_equal(read_label_map(records[2]["sem_seg_file_name"]), expected)
    mapper = DatasetMapper(True, augmentations=[T.NoOpTransform()], image_format="BGR")
    assert np.array_equal(mapper(records[2])["sem_seg"].numpy(), expected)


def test_palette_indices_are_the_labels(folder):
    image = Image.open(folder / "labels/a.png")
    expected = np.asarray(image)
    image.putpalette(list(range(255, -1, -1)) * 3)
    image.save(folder / "labels/a.png")
    assert Image.open(folder / "labels/a.png").mode == "P"
    register_sem_seg_dirs([entry(folder)], 3, 255)
    record = DatasetCatalog.get("mine")[0]
    assert np.array_equal(read_label_map(record["sem_seg_file_name"]), expected)


def test_masks_of_0_and_255_are_an_error(folder):
    rng = np.random.default_rng(0)
    for name in NAMES:
        save_labels(folder, name, rng.choice([0, 255], SIZE))
    message = error_of(folder)
    assert "all pixels are 255 or 0, but 255 means 'unlabeled'" in message
    assert "(labels == 255).astype('uint8')" in message
    save_labels(folder, NAMES[-1], rng.choice([0, 1, 255], SIZE))  # one good map is enough
    register_sem_seg_dirs([entry(folder)], 3, 255)


def test_classes_that_occur_in_none_of_many_maps(folder, caplog):
    with caplog.at_level(logging.WARNING, logger="rpe_d2"):
        register_sem_seg_dirs([entry(folder)], 5, 255)
        assert not caplog.records  # three maps are few
        for number in range(20):
            shutil.copy(folder / "images/a.jpg", folder / f"images/{number}.jpg")
            shutil.copy(folder / "labels/a.png", folder / f"labels/{number}.png")
        register_sem_seg_dirs([entry(folder, "many")], 5, 255)
    (record,) = caplog.records
    assert "2 of 5 classes occur in none of the 23 label maps" in record.getMessage()
    assert record.getMessage().endswith("class 3, class 4")


@pytest.mark.parametrize("suffix", [".png", ".tif", ".tiff", ".npy"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.uint32])
def test_kinds_of_label_maps(folder, suffix, dtype):
    if dtype in (np.int32, np.uint32) and suffix == ".png":
        pytest.skip("PNG has 16 bits at most")
    expected = np.asarray(Image.open(folder / "labels/a.png"))
    (folder / "labels/a.png").unlink()
    path = folder / f"labels/a{suffix}"
    labels = expected.astype(dtype)
    if suffix == ".npy":
        np.save(path, labels)
    elif dtype == np.uint32:
        Image.fromarray(labels.astype(np.int32)).save(path)
    else:
        Image.fromarray(labels).save(path)
    register_sem_seg_dirs([entry(folder)], 3, 255)
    record = DatasetCatalog.get("mine")[0]
    assert np.array_equal(read_label_map(record["sem_seg_file_name"]), expected)
    assert (read_class_indices(path) == expected).all()


@pytest.mark.parametrize("wrong", ["mine", "mine=images", "=a:b", "mine=a:b:c:d", "mine=a::c", 3])
def test_malformed_entries(wrong, folder):
    assert "malformed entry" in error_of(folder, entries=[wrong])


def test_missing_files(folder):
    (folder / "labels/b.png").unlink()
    message = error_of(folder, FileNotFoundError)
    assert "1 of 3 images have no label map" in message and "labels/b.png" in message
    wrong = [f"mine={folder}/none:{folder}/labels"]
    assert f"no folder {folder}/none" in error_of(folder, FileNotFoundError, wrong)
    wrong = [f"mine={folder}/images:{folder}/none"]
    assert f"no folder {folder}/none" in error_of(folder, FileNotFoundError, wrong)
    wrong = [entry(folder, rest=":none.txt")]
    assert "no file none.txt" in error_of(folder, FileNotFoundError, wrong)
    (folder / "empty").mkdir()
    assert "has no images" in error_of(folder, entries=[f"mine={folder}/empty:{folder}/labels"])


def test_numbers_and_sizes_that_do_not_fit(folder):
    named = [entry(folder, rest=f":{folder}/classes.txt")]
    message = error_of(folder, entries=named, num_classes=5)
    assert "names 3 classes; MODEL.SEM_SEG_HEAD.NUM_CLASSES is 5" in message
    message = error_of(folder, UnreadableImage, num_classes=2)
    assert "has the label 2; allowed: 0 to 1" in message and "a.png" in message
    save_labels(folder, "a", np.zeros((40, 47)))
    message = error_of(folder, UnreadableImage)
    assert "48 x 40 pixels" in message and "47 x 40; allowed: the same" in message
    Image.new("RGB", (48, 40)).save(folder / "labels/a.png")
    assert "has the mode RGB; allowed: one index per pixel" in error_of(folder, UnreadableImage)
    (folder / "labels/a.png").write_bytes(b"no picture")
    assert "a.png" in error_of(folder, UnreadableImage)
    taken = error_of(folder, entries=[entry(folder, "shapes_train_sem_seg")])
    assert "'shapes_train_sem_seg' is taken by another dataset" in taken


def test_exif_orientation_swaps_the_sides(folder):
    picture = Image.open(folder / "images/a.jpg")
    labels = np.asarray(Image.open(folder / "labels/a.png"))
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise
    picture.save(folder / "images/a.jpg", exif=exif)
    assert "48 x 40; allowed: the same" in error_of(folder, UnreadableImage)
    save_labels(folder, "a", np.rot90(labels, -1))
    register_sem_seg_dirs([entry(folder)], 3, 255)
    record = DatasetCatalog.get("mine")[0]
    assert (record["height"], record["width"]) == SIZE[::-1]
    mapper = DatasetMapper(True, augmentations=[T.NoOpTransform()], image_format="BGR")
    assert mapper(record)["image"].shape[1:] == SIZE[::-1]


def test_images_that_are_too_large(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 48 // 2 - 1)
    assert "a.jpg" in error_of(folder, UnreadableImage)


def test_labels_are_checked_whenever_they_are_read(folder):
    register_sem_seg_dirs([entry(folder)], 3, 255)
    record = DatasetCatalog.get("mine")[1]
    save_labels(folder, "b", np.full(SIZE, 9))
    mapper = NameUnreadable(DatasetMapper(True, augmentations=[], image_format="BGR"))
    with pytest.raises(UnreadableImage, match="b.png has the label 9; allowed: 0 to 2"):
        mapper(record)
    save_labels(folder, "b", np.zeros((7, 8)))
    with pytest.raises(UnreadableImage, match="8 x 7; allowed: the same"):
        DatasetCatalog.get("mine")


@pytest.mark.parametrize("config", ["embedding_shapes", "embedding_ade"])
def test_training_and_evaluation(config, folder, tmp_path):
    output = tmp_path / "out"
    text = f"""
DATASETS:
  SEM_SEG_DIRS: {json.dumps([entry(folder, rest=f":{folder}/classes.txt")])}
  TRAIN: [mine]
  TEST: [mine]
INPUT: {{MIN_SIZE_TRAIN: [64], MIN_SIZE_TEST: 64}}
MODEL:
  WEIGHTS: ""
  RESNETS: {{DEPTH: 18, RES2_OUT_CHANNELS: 64}}
  SEM_SEG_HEAD: {{NUM_CLASSES: 3}}
TEST: {{BOUNDARIES: True}}
"""
    assert train(output, f"semantic/{config}.yaml", text) == 0
    metrics = json.loads((output / "result.json").read_text())["metrics"]
    assert {"mIoU", "IoU-sky", "IoU-wall", "IoU-road"} <= set(metrics["sem_seg"])
    assert "mIoU" in metrics["sem_seg_boundary_1px"]
