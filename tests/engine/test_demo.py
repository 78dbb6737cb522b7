"""tools/demo.py on tiny networks with random weights: pictures, videos, any Detectron2 configuration."""

import json
from pathlib import Path

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from PIL import Image

from rpe_d2.data import render_shapes
from rpe_d2.engine.demo import RESULTS, main
from tests.conftest import ROOT

from .helpers import CONFIG, TINY, save_random

RETINANET = (
    "MODEL: {META_ARCHITECTURE: RetinaNet, DEVICE: cpu, BACKBONE: {NAME: build_retinanet_resnet_fpn_backbone}, "
    "RESNETS: {DEPTH: 18, RES2_OUT_CHANNELS: 64, OUT_FEATURES: [res3, res4, res5]}, "
    "FPN: {IN_FEATURES: [res3, res4, res5], OUT_CHANNELS: 32}, "
    "RETINANET: {NUM_CLASSES: 4, NUM_CONVS: 1, SCORE_THRESH_TEST: 0.0}}\n"
    "INPUT: {MIN_SIZE_TEST: 64}\n"
)


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
    assert picture.shape == (100, 128, 3)  # the image's own size
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


def test_an_instance_keeps_its_colour_through_a_video():
    from detectron2.data import Metadata
    from detectron2.structures import Instances

    from rpe_d2.engine.demo import _Painter

    painter = _Painter(Metadata(), 0.0)

    def frame(*lefts):
        found = Instances((40, 60))
        masks = torch.zeros(len(lefts), 40, 60, dtype=torch.bool)
        for mask, left in zip(masks, lefts):
            mask[10:30, left : left + 15] = True
        found.pred_masks, found.scores = masks, torch.ones(len(lefts))
        found.pred_classes = torch.zeros(len(lefts), dtype=torch.long)
        return painter.paint(np.zeros((40, 60, 3), np.uint8), {"instances": found})[0]

    first = frame(2, 40)
    second = frame(41, 5)  # both moved a little, in the other order
    assert (first[20, 10] == second[20, 12]).all() and (first[20, 50] == second[20, 50]).all()
    assert (first[20, 10] != first[20, 50]).any()


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


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--input", "absent.png"], "--input absent.png"),
        (["--video-input", "absent.mp4"], "absent.mp4: no such file"),
        (["--video-input", CONFIG], "is not a video"),
        (["--input", CONFIG, "--weights", "absent.pth"], "absent.pth: no such file"),
        (["--input", CONFIG, "--weights", CONFIG], "not a checkpoint"),
    ],
)
def test_one_line_errors(arguments, words, weights, tmp_path, capfd):
    given = arguments if "--weights" in arguments else [*arguments, "--weights", weights]
    with pytest.raises(SystemExit) as stop:
        run(tmp_path / "out", *given)
    assert stop.value.code == 2
    line = capfd.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: ") and words in line
