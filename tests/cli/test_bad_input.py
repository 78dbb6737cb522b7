"""Mistakes with data, weights and folders: one line each, no traceback, nothing overwritten."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rpe_d2.cli.train_net import main
from rpe_d2.data import render_shapes
from tests.conftest import ROOT

INSTANT = str(ROOT / "configs/quick/rpe_instant_test.yaml")
SQUARE = [20, 20, 60, 20, 60, 60, 20, 60]


@pytest.fixture
def data(tmp_path) -> Path:
    """A COCO-format data set with three images, one square in each."""
    folder = tmp_path / "data"
    folder.mkdir()
    for index in range(3):
        Image.fromarray(render_shapes("val", index)).save(folder / f"{index}.png")
    write_json(folder)
    return folder


def write_json(folder: Path, **changes) -> None:
    content = {
        "images": [
            {"id": i, "file_name": f"{i}.png", "height": 128, "width": 128} for i in range(3)
        ],
        "annotations": [
            {
                "id": i,
                "image_id": i,
                "category_id": 1,
                "iscrowd": 0,
                "area": 1600,
                "bbox": [20, 20, 40, 40],
                "segmentation": [SQUARE],
            }
            for i in range(3)
        ],
        "categories": [{"id": 1, "name": "square"}],
    }
    (folder / "data.json").write_text(json.dumps({**content, **changes}))


def edited(folder: Path, part: str, index: int, **changes) -> None:
    content = json.loads((folder / "data.json").read_text())
    content[part][index].update(changes)
    write_json(folder, **{part: content[part]})


def train(folder: Path, output: Path, *opts: str, flags: tuple = ()) -> int:
    # A name can be registered only once in a process.
    name = f"bad_{abs(hash(str(folder)))}_{folder.name}"
    return main(
        [
            "--config-file", INSTANT, *flags,
            "OUTPUT_DIR", str(output), "MODEL.DEVICE", "cpu", "MODEL.RPE.NUM_CLASSES", "1",
            "DATASETS.COCO_JSONS", json.dumps([f"{name}={folder}/data.json:{folder}"]),
            "DATASETS.TRAIN", f"('{name}',)", "DATASETS.TEST", f"('{name}',)",
            "SOLVER.MAX_ITER", "2", *opts,
        ]
    )  # fmt: skip


def error_line(capfd, *arguments, **options) -> str:
    with pytest.raises(SystemExit) as stop:
        train(*arguments, **options)
    assert stop.value.code == 2
    error = capfd.readouterr().err
    assert "Traceback" not in error, error
    line = error.strip().splitlines()[-1]
    assert line.startswith("error: "), error
    return line


@pytest.mark.parametrize(
    "content, words",
    [
        (None, "no such file"),
        ("", "is not JSON"),
        ('{"images": [', "is not JSON"),
        ("{}", "no list 'images'"),
        ('{"images": [], "annotations": [], "categories": []}', "'images' is empty"),
        ("[1, 2]", "no list 'images'"),
    ],
)
def test_json_missing_malformed_or_empty(content, words, data, tmp_path, capfd):
    (data / "data.json").unlink()
    if content is not None:
        (data / "data.json").write_text(content)
    line = error_line(capfd, data, tmp_path / "out")
    assert words in line and "data.json" in line and "DATASETS.COCO_JSONS" in line


def test_a_batch_without_images(data, tmp_path, capfd):
    line = error_line(capfd, data, tmp_path / "out", "SOLVER.IMS_PER_BATCH", "0")
    assert line == "error: SOLVER.IMS_PER_BATCH is 0; allowed: 1 or more"


def test_category_ids_that_do_not_match(data, tmp_path, capfd):
    edited(data, "annotations", 1, category_id=7)
    line = error_line(capfd, data, tmp_path / "out")
    assert "1 of 3 annotations have a category_id that is not in 'categories' (7)" in line


def test_data_sets_with_different_classes(data, tmp_path, capfd):
    other = tmp_path / "other"
    other.mkdir()
    write_json(other, categories=[{"id": 1, "name": "circle"}])
    for index in range(3):
        Image.fromarray(render_shapes("val", index)).save(other / f"{index}.png")
    jsons = [f"bad_first={data}/data.json:{data}", f"bad_other={other}/data.json:{other}"]
    line = error_line(
        capfd, data, tmp_path / "out",
        "DATASETS.COCO_JSONS", json.dumps(jsons),
        "DATASETS.TRAIN", "('bad_first',)", "DATASETS.TEST", "('bad_other',)",
    )  # fmt: skip
    assert "DATASETS.TEST" in line and "circle" in line and "square" in line


def test_a_missing_image(data, tmp_path, capfd):
    (data / "1.png").unlink()
    line = error_line(capfd, data, tmp_path / "out")
    assert "1.png" in line and "missing" in line


@pytest.mark.parametrize("workers", ["0", "1"])
@pytest.mark.parametrize("content", ["truncated", "no image", "other size"])
def test_an_image_that_cannot_be_read(content, workers, data, tmp_path, capfd):
    picture = data / "1.png"
    if content == "truncated":
        picture.write_bytes(picture.read_bytes()[:3000])
    elif content == "no image":
        picture.write_text("hello")
    else:
        Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(picture)
    for other in ("0.png", "2.png"):  # the order of the images is random
        (data / other).write_bytes(picture.read_bytes())
    line = error_line(capfd, data, tmp_path / "out", "DATALOADER.NUM_WORKERS", workers)
    assert ".png" in line and str(data) in line


def test_an_unreadable_image_in_an_evaluation(data, tmp_path, capfd):
    assert train(data, tmp_path / "out", "SOLVER.MAX_ITER", "1") == 0
    (data / "2.png").write_text("hello")
    capfd.readouterr()
    line = error_line(
        capfd, data, tmp_path / "out",
        "MODEL.WEIGHTS", str(tmp_path / "out/model_final.pth"), flags=("--eval-only",),
    )  # fmt: skip
    assert "2.png" in line


def test_masks_outside_the_image_and_boxes_without_area_are_counted_and_left_out(
    data, tmp_path, caplog
):
    edited(data, "annotations", 0, segmentation=[[200, 200, 240, 200, 240, 240, 200, 240]])
    content = json.loads((data / "data.json").read_text())
    empty = {**content["annotations"][1], "id": 9, "bbox": [5, 5, 0, 10], "segmentation": []}
    write_json(data, annotations=[*content["annotations"], empty])
    assert train(data, tmp_path / "out") == 0
    assert "1 masks outside of the image (0), 1 boxes without area (9)" in caplog.text
    assert (tmp_path / "out/model_final.pth").exists()


def test_more_gpus_than_there_are(data, tmp_path, capfd):
    gpus = torch.cuda.device_count()
    line = error_line(
        capfd, data, tmp_path / "out", "MODEL.DEVICE", "cuda", flags=("--num-gpus", str(gpus + 2))
    )
    assert f"--num-gpus is {gpus + 2}" in line and f"has {gpus} GPUs" in line


def test_more_processes_than_cores(data, tmp_path, capfd):
    cores = max(2, os.cpu_count())
    line = error_line(capfd, data, tmp_path / "out", flags=("--num-gpus", str(cores + 1)))
    assert f"--num-gpus is {cores + 1}" in line and f"up to {cores} processes" in line


def test_flags_among_the_overrides(data, tmp_path, capfd):
    line = error_line(capfd, data, tmp_path / "out", "--resume")
    assert "--resume stands after KEY VALUE overrides" in line


def test_an_output_folder_that_cannot_be_written(data, tmp_path, capfd):
    (tmp_path / "file").write_text("mine")
    line = error_line(capfd, data, tmp_path / "file" / "out")
    assert f"OUTPUT_DIR {tmp_path}/file/out cannot be written" in line
    assert (tmp_path / "file").read_text() == "mine"


def test_a_second_training_in_the_same_folder(data, tmp_path, capfd):
    assert train(data, tmp_path / "out", "SOLVER.MAX_ITER", "1") == 0
    weights = (tmp_path / "out/model_final.pth").read_bytes()
    capfd.readouterr()
    assert "continue it with --resume" in error_line(capfd, data, tmp_path / "out")
    assert (tmp_path / "out/model_final.pth").read_bytes() == weights
    assert train(data, tmp_path / "out", "SOLVER.MAX_ITER", "2", flags=("--resume",)) == 0


def test_an_evaluation_in_a_training_s_folder_overwrites_nothing(data, tmp_path, capfd):
    def files() -> dict:
        found = (path for path in out.rglob("*") if path.is_file() and path.name != "log.txt")
        return {path.relative_to(out): path.read_bytes() for path in found}

    out = tmp_path / "out"
    assert train(data, out, "SOLVER.MAX_ITER", "1") == 0
    (out / "model_0000009.pth.1.tmp").write_text("of a training that goes on meanwhile")
    before = files()
    assert Path("inference/coco_instances_results.json") in before
    control = ["MODEL.WEIGHTS", str(out / "model_final.pth"), "MODEL.RPE.GROUPING", "components"]
    assert train(data, out, *control, flags=("--eval-only",)) == 0
    assert train(data, out, flags=("--eval-only", "--resume")) == 0
    # An evaluation that fails.
    error_line(capfd, data, out, *control, "MODEL.RPE.EMBEDDING_DIM", "16", flags=("--eval-only",))
    after = files()
    assert {name: after[name] for name in before} == before
    for folder, grouping in (("evaluation", "components"), ("evaluation-2", "mean_shift")):
        assert f"GROUPING: {grouping}" in (out / folder / "config.yaml").read_text()
        assert (out / folder / "inference/coco_instances_results.json").exists()
        assert (out / folder / "result.json").exists()
    # A new folder gets the same files as that of a training.
    assert train(data, tmp_path / "new", *control, flags=("--eval-only",)) == 0
    assert {"config.yaml", "inference", "result.json"} <= set(os.listdir(tmp_path / "new"))
    assert "evaluation" not in os.listdir(tmp_path / "new")


def test_weights_of_another_architecture(data, tmp_path, capfd):
    assert train(data, tmp_path / "out", "SOLVER.MAX_ITER", "1") == 0
    weights = str(tmp_path / "out/model_final.pth")
    capfd.readouterr()
    evaluate = {"flags": ("--eval-only",)}
    line = error_line(
        capfd, data, tmp_path / "out",
        "MODEL.WEIGHTS", weights, "MODEL.RPE.EMBEDDING_DIM", "16", **evaluate,
    )  # fmt: skip
    assert weights in line and "has shape" in line and "tensors do not fit" in line
    line = error_line(
        capfd, data, tmp_path / "out",
        "MODEL.WEIGHTS", weights, "MODEL.META_ARCHITECTURE", "RetinaNet",
        "MODEL.RETINANET.NUM_CLASSES", "1", "MODEL.RETINANET.IN_FEATURES", "['p2', 'p3', 'p4']",
        "MODEL.ANCHOR_GENERATOR.SIZES", "[[16], [32], [64]]", **evaluate,
    )  # fmt: skip
    assert weights in line and "tensors do not fit" in line
    torch.save({"model": {"other": torch.zeros(3)}}, tmp_path / "other.pth")
    line = error_line(capfd, data, tmp_path / "new", "MODEL.WEIGHTS", str(tmp_path / "other.pth"))
    assert "other.pth" in line
    (tmp_path / "text.pth").write_text("hello")
    line = error_line(capfd, data, tmp_path / "new", "MODEL.WEIGHTS", str(tmp_path / "text.pth"))
    assert "text.pth: not a checkpoint" in line
