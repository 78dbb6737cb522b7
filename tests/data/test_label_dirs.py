"""Folders of images and instance label maps: classes, errors, and a real training."""

import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
import tifffile
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from rpe_d2.data import register_label_dirs, render_shapes
from rpe_d2.data.datasets.coco_report import coco_report
from rpe_d2.data.datasets.shapes import load_shapes
from rpe_d2.evaluation.ground_truth import coco_ground_truth
from tests.helpers.runs import INSTANT, train_net


@pytest.fixture
def folders(tmp_path):
    """Three images with touching objects, their label maps, and maps of classes 1 and 3."""
    for name in ("images", "labels", "classes"):
        (tmp_path / name).mkdir()
    for number in range(3):
        labels = np.zeros((30, 40), np.uint16)
        labels[3:12, 4:15], labels[3:12, 15:22] = 7, 300
        labels[20:28, 10 : 14 + number] = 12
        classes = np.where(labels == 300, 3, np.where(labels > 0, 1, 0)).astype(np.uint8)
        classes[3:5, 15:22] = 1  # the minority of the object
        image = np.random.default_rng(number).integers(0, 255, (30, 40), dtype=np.uint8)
        Image.fromarray(image).save(tmp_path / "images" / f"a{number}.png")
        tifffile.imwrite(tmp_path / "labels" / f"a{number}_masks.tif", labels)
        Image.fromarray(classes).save(tmp_path / "classes" / f"a{number}.png")
    return tmp_path


@pytest.fixture
def name(request):
    chosen = f"label_dirs_{request.node.name}"
    yield chosen
    for registry in (DatasetCatalog, MetadataCatalog):
        if chosen in registry.list():
            registry.remove(chosen)


def entry(name, folder, classes=""):
    return f"{name}={folder}/images/:{folder}/labels" + (f":{classes}" if classes else "")


def test_objects_are_those_of_the_label_maps(folders, name):
    register_label_dirs([entry(name, folders)])
    register_label_dirs([entry(name, folders)])  # once more has no effect
    metadata = MetadataCatalog.get(name)
    assert metadata.thing_classes == ["object"] and metadata.evaluator_type == "coco"
    records = DatasetCatalog.get(name)
    assert [record["image_id"] for record in records] == ["a0", "a1", "a2"]
    truth = coco_ground_truth(name)
    for number, record in enumerate(records):
        labels = tifffile.imread(folders / "labels" / f"a{number}_masks.tif")
        assert (record["height"], record["width"]) == labels.shape
        masks = [truth.annToMask(a).astype(bool) for a in truth.imgToAnns[f"a{number}"]]
        assert len(masks) == 3
        for mask, label in zip(masks, (7, 12, 300)):
            assert np.array_equal(mask, labels == label)
    report = coco_report(name)
    assert report.num_instances == 9 and report.most_in_one_image == 3
    assert report.areas.max() == 99


def test_callers_may_change_the_dicts(folders, name):
    register_label_dirs([entry(name, folders)])
    DatasetCatalog.get(name)[0]["annotations"][0].pop("bbox")
    assert "bbox" in DatasetCatalog.get(name)[0]["annotations"][0]


@pytest.mark.parametrize("names", [None, ["round", "", "long", "flat"]])
def test_the_class_of_most_pixels(folders, name, names):
    if names:
        (folders / "classes" / "classes.txt").write_text("round\nx\nlong\nflat\n")
    register_label_dirs([entry(name, folders, folders / "classes")])
    expected = ["round", "x", "long", "flat"] if names else ["class 1", "class 2", "class 3"]
    assert MetadataCatalog.get(name).thing_classes == expected
    for record in DatasetCatalog.get(name):
        assert [a["category_id"] for a in record["annotations"]] == [0, 0, 2]


def test_a_table_of_classes(folders, name):
    rows = ["file,id,class"]
    for number in range(3):
        rows += [f"a{number}.png,7,cell", f"a{number}_masks.tif,12,cell", f"a{number},300,body"]
    (folders / "classes.csv").write_text("\ufeff" + "\n".join(rows))  # as Excel writes it
    register_label_dirs([entry(name, folders, folders / "classes.csv")])
    assert MetadataCatalog.get(name).thing_classes == ["body", "cell"]
    for record in DatasetCatalog.get(name):
        assert [a["category_id"] for a in record["annotations"]] == [1, 1, 0]


def test_images_and_label_maps_in_one_folder(folders, name):
    for file in (folders / "labels").iterdir():
        file.rename(folders / "images" / file.name)
    text = f"{name}={folders}/images:{folders}/images:{folders}/classes"
    register_label_dirs([text])
    assert [len(record["annotations"]) for record in DatasetCatalog.get(name)] == [3, 3, 3]


def write(path, array):
    tifffile.imwrite(path, array)


def damage(folders, kind):
    labels = folders / "labels" / "a1_masks.tif"
    if kind == "size":
        write(labels, np.zeros((30, 41), np.uint16))
    elif kind == "float":
        write(labels, np.zeros((30, 40), np.float32))
    elif kind == "negative":
        write(labels, np.full((30, 40), -2, np.int32))
    elif kind == "missing":
        labels.unlink()
    elif kind == "columns":
        (folders / "classes.csv").write_text("name,id,class\n")
    elif kind == "row":
        (folders / "classes.csv").write_text("file,id,class\na0.png,7,cell\n")
    elif kind == "number":
        (folders / "classes.csv").write_text("file,id,class\na0.png,seven,cell\n")
    elif kind == "twice":
        (folders / "classes.csv").write_text("file,id,class\na0.png,7,cell\na0,7,body\n")
    elif kind == "quote":
        (folders / "classes.csv").write_text('file,id,class\n"' + "x" * 140_000)
    elif kind == "lost":
        (folders / "classes" / "a1.png").unlink()
    elif kind == "large":
        (folders / "classes" / "a1.png").unlink()
        image = np.zeros((30, 40), np.uint32)
        image[5, 5] = 70_000
        write(folders / "classes" / "a1.tif", image)
    elif kind == "none":
        image = np.zeros((30, 40), np.uint8)
        image[0, 0] = 2
        Image.fromarray(image).save(folders / "classes" / "a1.png")


@pytest.mark.parametrize(
    "kind, classes, message",
    [
        ("size", "", "a1.png is 40 x 30 pixels, its label map .*a1_masks.tif 41 x 30; allowed"),
        ("float", "", "a1_masks.tif has indices of float32; allowed: one index per pixel"),
        ("negative", "", "a1_masks.tif has the label -2; allowed: 0 or more"),
        ("missing", "", "images: .*a1.png has no partner in .*labels; allowed: a file of the same"),
        ("columns", "classes.csv", "has the columns name, id, class; allowed: file, id, class"),
        ("row", "classes.csv", "has no class of object 12 of .*a0.png; allowed: a row for every"),
        ("number", "classes.csv", "line 2: id 'seven', class 'cell'; allowed: a number and a name"),
        ("twice", "classes.csv", "line 3: object 7 of a0 is 'body' and 'cell'; allowed: one class"),
        ("quote", "classes.csv", "is not CSV .*; allowed: rows of file, id, class"),
        ("large", "classes", "a1.tif has the classes 0 to 70000; allowed: 0 to 65535"),
        ("lost", "classes", "which has no class map for .*a1.png; allowed: one of the same name"),
        ("none", "classes", "a1.png has no class at object 7; allowed: 1 to 3"),
        ("", "nothing.csv", "classes is .*nothing.csv; there is no such file or folder"),
    ],
)
def test_one_line_errors(folders, name, kind, classes, message):
    damage(folders, kind)
    text = entry(name, folders, folders / classes if classes else "")
    with pytest.raises(ValueError, match=message) as error:
        register_label_dirs([text])
    assert "\n" not in str(error.value) and "DATASETS.LABEL_DIRS" in str(error.value)
    assert name not in DatasetCatalog.list()


@pytest.mark.parametrize("wrong", ["x", "x=", "x=a", "=a:b", "x=a:", "x=a:b:c:d", 3])
def test_malformed_entries(wrong):
    with pytest.raises(ValueError, match="malformed entry .*; allowed: 'name=images/:labels/' or"):
        register_label_dirs([wrong])


def test_a_training_and_its_measures(tmp_path):
    """The shapes as label folders with class maps, in a real run."""
    for name in ("images", "labels", "classes"):
        (tmp_path / name).mkdir()
    for number, record in enumerate(load_shapes("val")[:4]):
        labels = np.zeros((128, 128), np.uint16)
        classes = np.zeros((128, 128), np.uint8)
        for label, annotation in enumerate(record["annotations"], start=1):
            mask = mask_util.decode(annotation["segmentation"]) > 0
            labels[mask], classes[mask] = label, annotation["category_id"] + 1
        Image.fromarray(render_shapes("val", number)).save(tmp_path / "images" / f"{number}.png")
        Image.fromarray(labels).save(tmp_path / "labels" / f"{number}.png")
        Image.fromarray(classes).save(tmp_path / "classes" / f"{number}.png")
    (tmp_path / "classes" / "classes.txt").write_text("ellipse\nrectangle\ntriangle\nstar\n")
    text = f"mine={tmp_path}/images:{tmp_path}/labels:{tmp_path}/classes"
    done = train_net(
        *["--config-file", INSTANT, "MODEL.DEVICE", "cpu", "SOLVER.MAX_ITER", 2],
        *["DATASETS.LABEL_DIRS", json.dumps([text]), "OUTPUT_DIR", tmp_path / "out"],
        *["DATASETS.TRAIN", "('mine',)", "DATASETS.TEST", "('mine',)"],
    )
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "out" / "result.json").read_text())["metrics"]
    assert {"S", "S@0.5", "PQ", "AJI", "SBD", "true"} <= set(metrics["labels"])
    assert metrics["labels"]["true"] > 0 and "AP" in metrics["segm"]
    assert (tmp_path / "out" / "data_report.json").exists()
