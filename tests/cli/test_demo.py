"""rpe-d2 demo on tiny networks with random weights, on images and videos."""

import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image

from rpe_d2.cli.demo import RESULTS, _parse, main
from rpe_d2.data import render_shapes
from rpe_d2.inference.predictor import Predictor
from tests.conftest import ROOT
from tests.helpers.runs import CONFIG, INSTANT, TINY, few_images, save_random, train_net

RETINANET = """
MODEL:
  META_ARCHITECTURE: RetinaNet
  DEVICE: cpu
  BACKBONE: {NAME: build_retinanet_resnet_fpn_backbone}
  RESNETS: {DEPTH: 18, RES2_OUT_CHANNELS: 64, OUT_FEATURES: [res3, res4, res5]}
  FPN: {IN_FEATURES: [res3, res4, res5], OUT_CHANNELS: 32}
  RETINANET: {NUM_CLASSES: 4, NUM_CONVS: 1, SCORE_THRESH_TEST: 0.0}
INPUT: {MIN_SIZE_TEST: 64}
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    return save_random(CONFIG, TINY, tmp_path_factory.mktemp("weights") / "random.pth")


@pytest.fixture(autouse=True)
def no_display(monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)


@pytest.fixture
def pictures(tmp_path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for index in range(2):
        Image.fromarray(render_shapes("val", index)[:100]).save(folder / f"{index}.png")
    return folder


def run(output: Path, *arguments: str, config: str = CONFIG, opts: list = TINY) -> int:
    return main(["--config-file", config, *arguments, "--output", str(output), *opts])


def test_folder_with_broken_files(weights, pictures, tmp_path, capsys):
    (pictures / "cut.png").write_bytes((pictures / "0.png").read_bytes()[:2000])
    (pictures / "text.jpg").write_text("not an image")
    out = tmp_path / "out"
    arguments = ["--weights", weights, "--input", str(pictures), "--confidence-threshold", "0"]
    assert run(out, *arguments) == 0
    assert sorted(path.name for path in out.iterdir()) == ["0.png", "1.png", RESULTS]
    captured = capsys.readouterr()
    skipped = [line for line in captured.err.splitlines() if "skipped" in line]
    assert len(skipped) == 2 and "cut.png" in skipped[0] and "text.jpg" in skipped[1]
    assert captured.out.splitlines() == [str(out / name) for name in ("0.png", "1.png", RESULTS)]

    picture = np.asarray(Image.open(out / "0.png"))
    assert picture.shape == (100, 128, 3)  # the size of the file
    results = json.loads((out / RESULTS).read_text())
    assert results and {r["image_id"] for r in results} <= {1, 2}
    for result in results:
        assert result["file_name"] == str(pictures / f"{result['image_id'] - 1}.png")
        assert mask_util.decode(result["segmentation"]).shape == (100, 128)
        assert 0 <= result["category_id"] <= 4 and len(result["bbox"]) == 4
    plain = np.asarray(Image.open(pictures / "0.png"))
    assert (picture != plain).any()

    before = (out / "0.png").read_bytes()
    assert run(out, "--weights", weights, "--input", str(pictures / "0*.png")) == 0
    assert (out / "0.png").read_bytes() == before and (out / "0-2.png").exists()
    assert (out / RESULTS).with_stem("coco_instances_results-2").exists()
    assert run(out, "--weights", weights, "--input", str(pictures / "text.jpg")) == 1
    assert "none of 1 images could be read" in capsys.readouterr().err


def test_video(weights, tmp_path):
    source = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(source), cv2.VideoWriter_fourcc(*"MJPG"), 12.0, (96, 80))
    for index in range(4):
        writer.write(np.ascontiguousarray(render_shapes("val", 0)[index : 80 + index, :96, ::-1]))
    writer.release()
    out = tmp_path / "out"
    arguments = ["--weights", weights, "--video-input", str(source), "--confidence-threshold", "0"]
    assert run(out, *arguments) == 0
    capture = cv2.VideoCapture(str(out / "clip.mp4"))
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(12)
    frames = 0
    while True:
        success, frame = capture.read()
        if not success:
            break
        assert frame.shape == (80, 96, 3)
        frames += 1
    assert frames == 4
    assert {r["image_id"] for r in json.loads((out / RESULTS).read_text())} <= {1, 2, 3, 4}
    before = (out / "clip.mp4").read_bytes()
    assert run(out, *arguments) == 0
    assert (out / "clip.mp4").read_bytes() == before and (out / "clip-2.mp4").exists()


def test_a_truncated_video_is_said_to_be_truncated(weights, tmp_path, capfd):
    source = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(source), cv2.VideoWriter_fourcc(*"MJPG"), 12.0, (96, 80))
    for index in range(8):
        writer.write(np.ascontiguousarray(render_shapes("val", index)[:80, :96]))
    writer.release()
    content = source.read_bytes()
    source.write_bytes(content[: len(content) // 3])
    assert run(tmp_path / "out", "--weights", weights, "--video-input", str(source)) == 0
    assert re.search(r"clip.avi: \d of 8 frames .* truncated", capfd.readouterr().err)


def test_overrides_after_input_are_no_pictures(tmp_path):
    (tmp_path / "MODEL").mkdir()
    flags = ["--config-file", CONFIG, "--output", "out", "--input", "big", str(tmp_path / "MODEL")]
    args = _parse([*flags, "MODEL.DEVICE", "cpu", "SEED", "3"])
    assert args.input == ["big", str(tmp_path / "MODEL")]
    assert args.opts == ["MODEL.DEVICE", "cpu", "SEED", "3"]


def test_an_instance_keeps_its_color_through_a_video():
    from detectron2.data import Metadata

    from rpe_d2.cli.demo import _Painter

    painter = _Painter(Metadata(), 0.0)

    def frame(*lefts):
        instances = Instances((40, 60))
        masks = torch.zeros(len(lefts), 40, 60, dtype=torch.bool)
        for mask, left in zip(masks, lefts):
            mask[10:30, left : left + 15] = True
        instances.pred_masks, instances.scores = masks, torch.ones(len(lefts))
        instances.pred_classes = torch.zeros(len(lefts), dtype=torch.long)
        return painter.paint(np.zeros((40, 60, 3), np.uint8), {"instances": instances})[0]

    first = frame(2, 40)
    second = frame(41, 5)  # both moved slightly, and in the opposite order
    # Row 28 is below the labels, whose size depends on OpenCV.
    assert (first[28, 10] == second[28, 12]).all() and (first[28, 50] == second[28, 50]).all()
    assert (first[28, 10] != first[28, 50]).any()


def test_a_model_without_masks(pictures, tmp_path):
    config = tmp_path / "retinanet.yaml"
    config.write_text(RETINANET)
    random = save_random(str(config), [], tmp_path / "random.pth")
    arguments = ["--weights", random, "--input", str(pictures / "0.png")]
    arguments += ["--confidence-threshold", "0.0"]
    assert run(tmp_path / "out", *arguments, config=str(config), opts=[]) == 0
    assert (tmp_path / "out" / "0.png").exists()
    results = json.loads((tmp_path / "out" / RESULTS).read_text())
    assert all("segmentation" not in result for result in results)


@pytest.mark.parametrize("name, with_masks", [("rpe_shapes", True), ("rpn_shapes", False)])
def test_proposals_are_shown_and_stored(name, with_masks, pictures, tmp_path):
    config = str(ROOT / f"configs/proposals/{name}.yaml")
    on_cpu = ["MODEL.DEVICE", "cpu"]
    random = save_random(config, on_cpu, tmp_path / "random.pth")
    arguments = ["--weights", random, "--input", str(pictures / "0.png")]
    arguments += ["--confidence-threshold", "0.0"]
    assert run(tmp_path / "out", *arguments, config=config, opts=on_cpu) == 0
    assert (tmp_path / "out" / "0.png").exists()
    results = json.loads((tmp_path / "out" / RESULTS).read_text())
    assert results and all(0 <= result["score"] <= 1 for result in results)
    assert all(("segmentation" in result) == with_masks for result in results)


def test_no_instance_above_the_threshold_is_said(weights, pictures, tmp_path, capsys):
    arguments = ["--weights", weights, "--input", str(pictures), "--confidence-threshold", "1"]
    assert run(tmp_path / "out", *arguments) == 0
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("no instance has a score of 1.0 or more; a lower --confidence-threshold")


def test_an_oversized_picture_is_skipped(weights, pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100 * 128)  # Pillow refuses twice as many
    Image.new("RGB", (400, 400)).save(pictures / "00.png")
    arguments = ["--weights", weights, "--input", str(pictures / "0*.png")]
    assert run(tmp_path / "out", *arguments) == 0
    (skipped,) = [line for line in capsys.readouterr().err.splitlines() if "skipped" in line]
    assert "00.png" in skipped and "exceeds limit" in skipped
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0.png", RESULTS]


def test_pictures_that_are_too_small_are_skipped(pictures, tmp_path, capsys):
    """The model has one channel in each group of its norms, which need more than one value."""
    Image.new("RGB", (3000, 1)).save(pictures / "00.png")
    weights = save_random(INSTANT, ["MODEL.DEVICE", "cpu"], tmp_path / "weights.pth")
    for side, written in (("128", 3), ("16", 0)):
        opts = ["MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TEST", side, "INPUT.MAX_SIZE_TEST", "256"]
        arguments = ["--weights", weights, "--input", str(pictures)]
        status = run(tmp_path / side, *arguments, config=INSTANT, opts=opts)
        assert status == (0 if written else 1)
        assert len(list((tmp_path / side).iterdir())) == written
        lines = [line for line in capsys.readouterr().err.splitlines() if "skipped" in line]
        thin = [line for line in lines if "an image of 3000 x 1 pixels has no pixels left" in line]
        assert len(thin) == 1 and "00.png: " in thin[0]
        others = [line for line in lines if line not in thin]
        assert len(others) == (0 if written else 2)
        assert all("a single value" in line for line in others)


def test_a_web_address_is_no_image(weights, tmp_path, capfd):
    with pytest.raises(SystemExit):
        run(tmp_path / "out", "--weights", weights, "--input", "http://localhost:1/a.png[0]")
    assert "--input http://localhost:1/a.png[0]: no image found" in capfd.readouterr().err


def test_results_before_an_unexpected_error_are_kept(
    weights, pictures, tmp_path, monkeypatch, capsys
):
    images = []

    def fail_on_the_second(predictor, image):
        images.append(image)
        if len(images) == 2:
            raise KeyError("a bug")
        return {"instances": Instances(image.shape[:2], **no_instances(image))}

    monkeypatch.setattr(Predictor, "__call__", fail_on_the_second)
    with pytest.raises(KeyError, match="a bug"):
        run(tmp_path / "out", "--weights", weights, "--input", str(pictures / "[01].png"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0.png", RESULTS]
    assert (tmp_path / "out" / RESULTS).read_text() == "[]"
    assert capsys.readouterr().out.splitlines() == [
        str(tmp_path / "out" / name) for name in ("0.png", RESULTS)
    ]


def no_instances(image) -> dict:
    return {
        "pred_masks": torch.zeros(0, *image.shape[:2], dtype=torch.bool),
        "pred_boxes": Boxes(torch.zeros(0, 4)),
        "scores": torch.zeros(0),
        "pred_classes": torch.zeros(0, dtype=torch.long),
    }


@pytest.mark.parametrize(
    "name, opts",
    [
        # The data sets do not exist.
        ("semantic/embedding_shapes", ["DATASETS.TEST", "('absent',)"]),
        ("semantic/panoptic_shapes", ["DATASETS.TEST", "('absent',)"]),
        ("boundary/bsds_R_18", []),
    ],
)
def test_models_without_instances(name, opts, pictures, tmp_path):
    config = str(ROOT / f"configs/{name}.yaml")
    opts = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", *opts]
    random = save_random(config, opts, tmp_path / "random.pth")
    arguments = ["--weights", random, "--input", str(pictures / "0.png")]
    assert run(tmp_path / "out", *arguments, config=config, opts=opts) == 0
    picture = np.asarray(Image.open(tmp_path / "out" / "0.png"))
    plain = np.asarray(Image.open(pictures / "0.png"))
    assert picture.shape == plain.shape and (picture != plain).any()


def test_the_data_of_the_run_are_not_needed(pictures, tmp_path, caplog):
    """Names and ids of the classes come from classes.json of the run, and are optional."""
    data = tmp_path / "data"
    data.mkdir()
    opts = few_images(data, 3)
    content = json.loads((data / "data.json").read_text())
    for annotation in content["annotations"]:
        annotation["category_id"] *= 7
    for category in content["categories"]:
        category["id"] *= 7
    (data / "data.json").write_text(json.dumps(content))
    out = tmp_path / "run"
    instant = ["--config-file", INSTANT, *opts, "OUTPUT_DIR", out, "SOLVER.MAX_ITER", 1]
    assert train_net(*instant, "MODEL.DEVICE", "cpu", "TEST.EVAL_PERIOD", 0).returncode == 0
    shutil.rmtree(data)
    arguments = ["--weights", str(out / "model_final.pth"), "--input", str(pictures / "0.png")]
    arguments += ["--confidence-threshold", "0"]

    def found() -> set:
        folder = tmp_path / f"found{len(list(tmp_path.iterdir()))}"
        assert run(folder, *arguments, config=str(out / "config.yaml"), opts=[]) == 0
        return {result["category_id"] for result in json.loads((folder / RESULTS).read_text())}

    assert found() <= {7, 14, 21, 28} and "data set skipped" not in caplog.text
    (out / "classes.json").unlink()
    assert found() <= {0, 1, 2, 3} and "no such file" in caplog.text
    assert "data set skipped" in caplog.text
    (out / "classes.json").write_text('{"thing_classes": 3}')
    with pytest.raises(SystemExit):
        found()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--input", "absent.png"], "--input absent.png"),
        (["--video-input", "absent.mp4"], "absent.mp4: no such file"),
        (["--video-input", CONFIG], "is not a video"),
        (["--input", CONFIG, "--weights", "absent.pth"], "absent.pth: no such file"),
        (["--input", CONFIG, "--weights", CONFIG], "not a checkpoint"),
        (["--input", CONFIG, "MODEL.RPE.GROUPING", "kmeans"], "MODEL.RPE.GROUPING is kmeans"),
        (["--input", CONFIG, "INPUT.FORMAT", "XYZ"], "INPUT.FORMAT is 'XYZ'; allowed: BGR, RGB"),
        (["--input", CONFIG, "INPUT.MIN_SIZE_TEST", "-1"], "INPUT.MIN_SIZE_TEST is -1; allowed"),
        (
            ["--input", CONFIG, "INPUT.MAX_SIZE_TEST", "0"],
            "INPUT.MAX_SIZE_TEST is 0; allowed: 1 or",
        ),
        (["--input", CONFIG, "INPUT.PLANE", "-2"], "INPUT.PLANE is -2; allowed: -1"),
        (["--input", CONFIG, "MODEL.META_ARCHITECTURE", "SPNRefiner"], "rpe-d2 refine-masks"),
    ],
)
def test_one_line_errors(arguments, words, weights, tmp_path, capfd):
    flags, opts = arguments, TINY
    if arguments[2:3] and not arguments[2].startswith("--"):
        flags, opts = arguments[:2], [*TINY, *arguments[2:]]
    given = flags if "--weights" in flags else [*flags, "--weights", weights]
    with pytest.raises(SystemExit) as stop:
        run(tmp_path / "out", *given, opts=opts)
    assert stop.value.code == 2
    line = capfd.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: ") and words in line
