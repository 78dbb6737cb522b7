"""rpe-d2 visualize on a tiny network with random weights."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from PIL import Image
from pycocotools.coco import COCO

from rpe_d2.cli import compare
from rpe_d2.cli.stored_predictions import StoredPredictions
from rpe_d2.cli.visualize import main
from rpe_d2.data import load_shapes, render_shapes
from tests.conftest import ROOT
from tests.helpers.boundary_tree import make_tree
from tests.helpers.runs import CONFIG, TINY, save_random

MASK_RCNN = """
MODEL:
  META_ARCHITECTURE: GeneralizedRCNN
  MASK_ON: True
  DEVICE: cpu
  BACKBONE: {NAME: build_resnet_fpn_backbone}
  RESNETS: {DEPTH: 18, RES2_OUT_CHANNELS: 64, OUT_FEATURES: [res2, res3, res4, res5]}
  FPN: {IN_FEATURES: [res2, res3, res4, res5], OUT_CHANNELS: 32}
  RPN: {IN_FEATURES: [p2, p3, p4, p5], POST_NMS_TOPK_TEST: 20}
  ROI_HEADS: {NAME: StandardROIHeads, IN_FEATURES: [p2, p3, p4, p5], NUM_CLASSES: 1}
  ROI_BOX_HEAD: {NAME: FastRCNNConvFCHead, NUM_FC: 1, FC_DIM: 16}
  ROI_MASK_HEAD: {NAME: MaskRCNNConvUpsampleHead, NUM_CONV: 1, CONV_DIM: 8}
  ANCHOR_GENERATOR: {SIZES: [[16], [32], [64], [128]]}
INPUT: {MIN_SIZE_TEST: 128, MASK_FORMAT: bitmask}
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Random weights of the tiny network."""
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    save_random(CONFIG, TINY, path)
    return str(path)


def run(output: Path, *arguments: str, config: str = CONFIG, opts: list = TINY) -> int:
    return main(["--config-file", config, *arguments, "--output", str(output), *opts])


def test_dataset(weights: str, tmp_path: Path, capsys) -> None:
    arguments = ["--weights", weights, "--dataset", "shapes_val", "--num-images", "2"]
    assert run(tmp_path, *arguments) == 0
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["000000.png", "000001.png"]
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / name) for name in files]
    picture = np.asarray(Image.open(tmp_path / files[0]).convert("RGB"))
    assert min(picture.shape[:2]) > 800 and picture[0, 0].tolist() == [255] * 3
    assert picture.std() > 10

    before = (tmp_path / files[0]).read_bytes()
    assert run(tmp_path / "pixel", *arguments[:-1], "1", "--pixel", "20", "90") == 0
    assert (tmp_path / "pixel" / "000000.png").read_bytes() != before  # another kernel
    with pytest.raises(SystemExit):
        run(tmp_path / "wrong", *arguments[:-1], "1", "--pixel", "20", "128")
    error = "error: --pixel is 20 128; allowed: inside the image of 128 x 128 pixels"
    assert capsys.readouterr().err.strip().splitlines()[-1] == error
    assert run(tmp_path, *arguments[:-1], "1") == 0
    assert (tmp_path / files[0]).read_bytes() == before
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / "000000-2.png")]


def test_folder_with_a_truncated_image(weights: str, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for index in range(2):
        Image.fromarray(render_shapes("val", index)[:100]).save(folder / f"{index}.png")
    (folder / "broken.png").write_bytes((folder / "0.png").read_bytes()[:2000])
    (folder / "notes.txt").write_text("not an image")
    assert run(tmp_path / "out", "--weights", weights, "--input", str(folder)) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0.png", "1.png"]
    skipped = [line for line in capsys.readouterr().err.splitlines() if "skipped" in line]
    assert len(skipped) == 1 and "broken.png" in skipped[0]

    broken = str(folder / "brok*.png")
    assert run(tmp_path / "out", "--weights", weights, "--input", broken) == 1
    assert "none of 1 images could be read" in capsys.readouterr().err


def test_model_of_detectron2(tmp_path: Path) -> None:
    """Mask R-CNN, on a data set with a crowd and an image without objects."""
    config = tmp_path / "mask_rcnn.yaml"
    config.write_text(MASK_RCNN)
    for index in range(2):
        Image.fromarray(render_shapes("val", index)).save(tmp_path / f"{index}.png")
    square = {"image_id": 0, "category_id": 1, "area": 400, "bbox": [10, 10, 20, 20]}
    annotations = [
        {"id": 1, "iscrowd": 0, "segmentation": [[10, 10, 30, 10, 30, 30, 10, 30]], **square},
        {
            "id": 2,
            "iscrowd": 1,
            "segmentation": {"size": [128, 128], "counts": [9000, 900, 6484]},
            **square,
        },
    ]
    images = [{"id": i, "file_name": f"{i}.png", "height": 128, "width": 128} for i in range(2)]
    categories = [{"id": 1, "name": "square"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "data.json").write_text(json.dumps(content))
    save_random(str(config), [], tmp_path / "random.pth")
    opts = ["DATASETS.COCO_JSONS", f'["visualize_crowd={tmp_path}/data.json:{tmp_path}"]']
    arguments = ["--weights", str(tmp_path / "random.pth"), "--confidence-threshold", "0.05"]
    arguments += ["--dataset", "visualize_crowd"]
    for masks in ("True", "False"):
        overrides = [*opts, "MODEL.MASK_ON", masks]
        assert run(tmp_path / "out", *arguments, config=str(config), opts=overrides) == 0
    files = sorted((tmp_path / "out").iterdir())
    assert [file.name for file in files] == ["0-2.png", "0.png", "1-2.png", "1.png"]
    for file in files:
        Image.open(file).load()


@pytest.mark.parametrize(
    "arguments, opts, words",
    [
        (["--config-file", "absent.yaml", "--dataset", "shapes_val"], [], "absent.yaml"),
        (["--dataset", "shapes_val", "--weights", "absent.pth"], [], "absent.pth"),
        (["--dataset", "shapes_val", "--weights", CONFIG], [], "rpe_shapes.yaml"),
        (["--dataset", "shapes_val"], [], "--weights"),
        (["--dataset", "absent", "--weights", "w.pth"], [], "--dataset absent is not registered"),
        (["--input", "absent*.png", "--weights", "w.pth"], [], "absent*.png"),
        (["--dataset", "shapes_val"], ["MODEL.RPE.ABSENT", "1"], "MODEL.RPE.ABSENT"),
        (["--dataset", "shapes_val"], ["MODEL.RPE.NUM_CLASSES", "7"], "MODEL.RPE.NUM_CLASSES"),
        (["--dataset", "shapes_val"], ["MODEL.DEVICE", "cpu", "--weights", "w.pth"], "--weights"),
        (["--dataset", "shapes_val"], ["MODEL.RPE.GROUPING", "kmeans"], "MODEL.RPE.GROUPING"),
    ],
)
def test_one_line_errors(arguments: list, opts: list, words: str, tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        run(tmp_path / "out", *arguments, opts=[*TINY, *opts])
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and words in lines[0]


def test_an_output_folder_that_cannot_be_written(capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        run(Path("/proc"), "--dataset", "shapes_val", "--source", "annotation")
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: --output /proc cannot be written: ")


def test_annotations_and_training_inputs_need_no_model(tmp_path: Path) -> None:
    base = ["--dataset", "shapes_val", "--num-images", "1"]
    assert run(tmp_path / "as_is", *base, "--source", "annotation") == 0
    assert run(tmp_path / "turned", *base, "--source", "dataloader") == 0
    pictures = [
        np.asarray(Image.open(tmp_path / folder / "000000.png")) for folder in ("as_is", "turned")
    ]
    assert all(picture.std() > 10 for picture in pictures)
    # The training input is resized and flipped at random.
    assert pictures[0].shape != pictures[1].shape or (pictures[0] != pictures[1]).any()


def test_stored_predictions_with_text_ids(tmp_path: Path) -> None:
    metadata = Metadata(
        thing_classes=["cell", "nucleus"], thing_dataset_id_to_contiguous_id={"cell": 0, "n": 1}
    )
    square = [[1, 1, 5, 1, 5, 5, 1, 5]]
    result = {"image_id": "11", "category_id": "n", "score": 1.0, "segmentation": square}
    path = tmp_path / "results.json"
    path.write_text(json.dumps([result]))
    stored = StoredPredictions(str(path), metadata, ["1", "11"], 0.5)
    predictions = stored.masks({"image_id": "11", "file_name": "a.png"}, (8, 8))
    assert predictions.masks.sum() == 16 and list(predictions.names) == ["nucleus"]
    path.write_text(json.dumps([{**result, "image_id": 11}]))
    with pytest.raises(ValueError, match="has image_id 11, .* allowed: '1', '11'"):
        StoredPredictions(str(path), metadata, ["1", "11"], 0.5)
    for key in ("image_id", "category_id"):
        path.write_text(json.dumps([{**result, key: ["11"]}]))
        with pytest.raises(ValueError, match="results.json is not in COCO's .* type: 'list'"):
            StoredPredictions(str(path), metadata, ["1", "11"], 0.5)


def test_true_masks_of_an_image_with_a_text_id() -> None:
    truth = COCO()
    rle = {"size": [2, 2], "counts": [2, 2]}
    truth.dataset = {
        "images": [{"id": "11", "height": 2, "width": 2}],
        "annotations": [{"id": "a", "image_id": "11", "iscrowd": 0, "segmentation": rle}],
    }
    truth.createIndex()
    item = {"image_id": "11", "height": 2, "width": 2}
    assert compare._true_masks(SimpleNamespace(truth=truth), item).tolist() == [[[0, 1], [0, 1]]]


def test_stored_predictions_the_worst_first(tmp_path: Path, capsys) -> None:
    """All objects of image 0, none of image 1 and half of those of image 2 are predicted."""
    items = load_shapes("val")[:3]
    annotations = []
    for index, item in enumerate(items):
        Image.fromarray(render_shapes("val", index)).save(tmp_path / f"{index}.png")
        for annotation in item["annotations"]:
            ids = {"id": len(annotations) + 1, "image_id": index, "iscrowd": 0}
            annotations.append({**annotation, **ids, "bbox": [0, 0, 9, 9], "area": 81})
    images = [{"id": i, "file_name": f"{i}.png", "height": 128, "width": 128} for i in range(3)]
    categories = [{"id": i, "name": str(i)} for i in range(4)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "data.json").write_text(json.dumps(content))
    half = [a for a in annotations if a["image_id"] == 2][::2]
    found = [a for a in annotations if a["image_id"] == 0] + half
    path = tmp_path / "results.json"
    path.write_text(json.dumps([{**a, "score": 0.9} for a in found]))

    opts = [*TINY, "DATASETS.COCO_JSONS", f'["visualize_worst={tmp_path}/data.json:{tmp_path}"]']
    arguments = ["--dataset", "visualize_worst", "--predictions", str(path)]
    assert run(tmp_path / "out", *arguments, "--worst", opts=opts) == 0
    names = [Path(line).name for line in capsys.readouterr().out.splitlines()]
    assert names == ["1.png", "2.png", "0.png"]
    assert run(tmp_path / "out", *arguments, "--num-images", "1", opts=opts) == 0
    assert [Path(line).name for line in capsys.readouterr().out.splitlines()] == ["0-2.png"]

    other_size = mask_util.encode(np.ones((64, 64), np.uint8, order="F"))
    other_size["counts"] = other_size["counts"].decode()
    first = {"image_id": 0, "category_id": 0, "score": 0.9}
    for stored, words in (
        ([{"image_id": 0}], "COCO's results format"),
        (
            [{**found[0], "score": 0.9, "image_id": 7}],
            "has image_id 7, which the data set does not have; allowed: 0, 1, 2",
        ),
        (
            [{**found[0], "score": 0.9, "category_id": 9}],
            "has category_id 9, which the data set does not have",
        ),
        ([{**first, "segmentation": other_size}], "0.png: its mask cannot be decoded: an RLE mask"),
        (
            [{**found[0], "score": 0.9, "segmentation": {"size": [128, 128], "counts": [9, 7]}}],
            "results.json: 1 of 1 masks or boxes cannot be used: entry 0 has RLE runs that sum to "
            "16 in 128 x 128 = 16384 pixels",
        ),
        ([{**first, "segmentation": [[1, 1, 9, 1, 9, 1e8]]}], "the coordinate 1e+08 in an image"),
        ([{**first, "segmentation": "text"}], "0.png: its mask cannot be decoded"),
    ):
        path.write_text(json.dumps(stored))
        for worst in ([], ["--worst"]):
            with pytest.raises(SystemExit) as stop:
                run(tmp_path / "out", *arguments, *worst, opts=opts)
            assert stop.value.code == 2
            error = capsys.readouterr().err
            assert "Traceback" not in error and words in error.strip().splitlines()[-1], error
    # Polygons are accepted, too.
    square = [[10, 10, 30, 10, 30, 30, 10, 30]]
    path.write_text(json.dumps([{**first, "segmentation": square}]))
    assert run(tmp_path / "out", *arguments, "--num-images", "1", opts=opts) == 0


def test_the_worst_of_a_data_set_without_instances(tmp_path: Path, capsys) -> None:
    (tmp_path / "results.json").write_text("[]")
    arguments = ["--predictions", str(tmp_path / "results.json"), "--worst"]
    with pytest.raises(SystemExit) as stop:
        run(tmp_path / "out", "--dataset", "shapes_val_sem_seg", *arguments)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: --dataset shapes_val_sem_seg has images without ")


def test_semantic_maps_of_a_picture_without_a_data_set(tmp_path: Path) -> None:
    config = str(ROOT / "configs/semantic/embedding_shapes.yaml")
    opts = ["MODEL.DEVICE", "cpu", "DATASETS.TEST", "('absent',)"]
    weights = save_random(config, opts, tmp_path / "random.pth")
    Image.fromarray(render_shapes("val", 0)).save(tmp_path / "0.png")
    arguments = ["--weights", weights, "--input", str(tmp_path / "0.png")]
    assert run(tmp_path / "out", *arguments, config=config, opts=opts) == 0
    assert (tmp_path / "out" / "0.png").exists()


def test_only_the_data_set_that_is_drawn_has_to_be_there(tmp_path: Path, capsys) -> None:
    opts = [*TINY, "DATASETS.COCO_JSONS", "['gone=absent.json', 'gone_too=too.json']"]
    base = ["--num-images", "1", "--source", "annotation"]
    assert run(tmp_path / "out", "--dataset", "shapes_val", *base, opts=opts) == 0
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run(tmp_path / "out", "--dataset", "gone", *base, opts=opts)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: gone is not available; ") and "absent.json" in line


def test_boundaries(tmp_path: Path) -> None:
    """A contour model, its data set alone, and an image without ground truth."""
    root = make_tree(tmp_path / "bsds", splits=["val"], per_split=1)
    config = str(ROOT / "configs/boundary/bsds_R_18.yaml")
    opts = ["MODEL.DEVICE", "cpu", "DATASETS.BSDS", root]
    weights = save_random(config, opts, tmp_path / "random.pth")
    of_model = ["--weights", weights]
    try:
        for name, arguments in (
            ("model", [*of_model, "--dataset", "bsds_val", "--projection", "pca"]),
            ("annotation", ["--dataset", "bsds_val", "--source", "annotation"]),
            ("input", [*of_model, "--input", f"{root}/images/val/7.jpg"]),
        ):
            assert run(tmp_path / name, *arguments, config=config, opts=opts) == 0
            picture = np.asarray(Image.open(tmp_path / name / "7.png").convert("RGB"))
            assert picture.shape[1] > 800 and picture.std() > 10
    finally:
        DatasetCatalog.remove("bsds_val")
        MetadataCatalog.pop("bsds_val")
