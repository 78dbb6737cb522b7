"""``rpe-d2 propagate-video`` with optical flow, and with a network of a plugin's user."""

import json
import sys

import cv2
import numpy as np
import pytest
import tifffile
import torch
from detectron2.modeling import META_ARCH_REGISTRY
from PIL import Image
from torch import nn

from rpe_d2.cli.main import main as program
from rpe_d2.utils.frame_properties import join_lab, split_lab
from tests.conftest import ROOT
from tests.helpers.clips import moving_square, write_clip, write_frames, write_wheel
from tests.helpers.runs import Running, save_random

COUNT = 8
REFINER = str(ROOT / "configs" / "spn" / "refiner_shapes.yaml")
NETWORK = str(ROOT / "configs" / "spn" / "tpn.yaml")
CONFIG = """
MODEL:
  META_ARCHITECTURE: ShiftingNet
  DEVICE: cpu
  TPN: {PROPERTY: masks}
"""


@META_ARCH_REGISTRY.register()
class ShiftingNet(nn.Module):
    """A network that moves a property by a learned number of pixels to the right and down."""

    def __init__(self, cfg):
        super().__init__()
        self.pixels = nn.Parameter(torch.ones(()))

    def propagate(self, key_property, key_guidance, target_guidance):
        assert key_guidance.shape == target_guidance.shape
        shift = int(self.pixels)
        return torch.roll(key_property, (shift, shift), (-2, -1))


def main(*arguments) -> int:
    try:
        return program(["propagate-video", *map(str, arguments)])
    except SystemExit as error:  # one_line_errors ends the process
        return error.code


@pytest.fixture(scope="module")
def scene():
    return moving_square(COUNT)


@pytest.fixture
def gray(scene, tmp_path):
    """The folder of the clip without colors."""
    frames = [np.asarray(Image.fromarray(f).convert("L").convert("RGB")) for f in scene[0]]
    return write_frames(tmp_path / "gray", frames)


@pytest.fixture
def keys(scene, tmp_path):
    """Key frames 0 and 7 in color."""
    folder = tmp_path / "keys"
    folder.mkdir()
    for number in (0, 7):
        Image.fromarray(scene[0][number]).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def network(tmp_path):
    """Arguments of a network that moves as the square does."""
    (tmp_path / "config.yaml").write_text(CONFIG)
    weights = save_random(str(tmp_path / "config.yaml"), [], tmp_path / "weights.pth")
    return ["--model", tmp_path / "config.yaml", "--weights", weights]


def pictures(folder) -> list:
    return [np.asarray(Image.open(folder / f"frame_{n}.png")) for n in range(COUNT)]


def test_colors_follow_the_flow_and_nothing_is_done_twice(gray, keys, scene, tmp_path, capsys):
    output = tmp_path / "output"
    arguments = [gray, "--model", "flow", "--keys", keys, "--output", output]
    assert main(*arguments) == 0
    out = capsys.readouterr().out
    assert "8 of 8 frames propagated from 2 key frames" in out
    found, wanted = pictures(output), scene[0]
    errors = [np.abs(a.astype(int) - b).mean() for a, b in zip(found, wanted)]
    plain = [np.abs(a.astype(int) - b).mean() for a, b in zip(pictures(gray), wanted)]
    assert max(errors) < 0.35 * min(plain)
    report = json.loads((output / "run" / "report.json").read_text())
    assert report["key frames"] == [0, 7] and report["done"] == 8
    assert report["command"].startswith("rpe-d2 propagate-video ")
    before = (output / "frame_2.png").stat().st_mtime_ns
    (output / "frame_5.png").unlink()
    assert main(*arguments, "--video") == 0
    out = capsys.readouterr().out
    assert "1 of 8 frames" in out and "7 were done before" in out
    assert (output / "frame_2.png").stat().st_mtime_ns == before
    assert np.array_equal(pictures(output)[5], found[5])
    assert cv2.VideoCapture(str(output / "gray.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == 8
    assert main(*arguments, "--mode", "chained") == 2
    assert "belongs to a run with another --mode" in capsys.readouterr().err
    Image.fromarray(scene[0][3]).save(keys / "7.png")
    assert main(*arguments) == 2
    assert "belongs to a run with another --keys" in capsys.readouterr().err
    first = next(gray.glob("*0.png"))
    Image.fromarray(255 - np.asarray(Image.open(first))).save(first)
    assert main(*arguments) == 2
    assert "belongs to a run with another clip" in capsys.readouterr().err


def test_an_untrained_network_copies_colors(gray, keys, scene, tmp_path):
    """It is the network of the configuration, with all that it does."""
    (keys / "7.png").unlink()
    weights = save_random(NETWORK, ["MODEL.DEVICE", "cpu"], tmp_path / "weights.pth")
    arguments = [gray, "--model", NETWORK, "--weights", weights, "--device", "cpu"]
    assert main(*arguments, "--keys", keys, "--output", tmp_path / "output") == 0
    found, (_, colors) = pictures(tmp_path / "output"), split_lab(scene[0][0])
    for picture, frame in zip(found, pictures(gray)):
        expected = join_lab(split_lab(frame)[0], colors)
        assert np.abs(picture.astype(int) - expected).max() <= 1


def test_masks_of_the_first_frame_go_through_a_video(network, scene, tmp_path, capsys):
    """The network moves them exactly, from frame to frame."""
    frames, labels = scene
    clip = write_clip(tmp_path / "clip.avi", frames)
    tifffile.imwrite(tmp_path / "first.tif", labels[0].astype(np.uint32) * 70_000)
    output = tmp_path / "output"
    arguments = [clip, *network, "--keys", tmp_path / "first.tif"]
    arguments += ["--mode", "chained", "--output", output, "--video"]
    assert main(*arguments) == 2
    assert "--format is png; allowed with the label 70000: tif" in capsys.readouterr().err
    assert main(*arguments, "--format", "tif") == 0
    for index in range(COUNT):
        found = tifffile.imread(output / f"{index:06d}.tif")
        assert found.dtype == np.uint32
        np.testing.assert_array_equal(found, labels[index].astype(np.uint32) * 70_000)
    drawn = cv2.VideoCapture(str(output / "clip.mp4"))
    assert drawn.get(cv2.CAP_PROP_FPS) == pytest.approx(12)
    assert not (output / "run" / "states").exists()


def test_nothing_crosses_a_cut(gray, keys, tmp_path, capsys):
    arguments = [gray, "--model", "flow", "--keys", keys, "--output", tmp_path / "output"]
    assert main(*arguments, "--cuts", 3, 5) == 2
    assert "shot of frames 4 to 5 has no key frame" in capsys.readouterr().err
    assert main(*arguments, "--cuts", 99) == 2
    assert "--cuts has the frame number 99; allowed" in capsys.readouterr().err
    assert main(*arguments, "--cuts", 3) == 0


def test_strokes_on_a_key_frame(gray, scene, tmp_path, capsys):
    frames, labels = scene
    strokes = np.zeros((*labels[0].shape, 4), np.uint8)
    strokes[::3, ::3, :3] = frames[0][::3, ::3]
    strokes[::3, ::3, 3] = 255
    Image.fromarray(strokes).save(tmp_path / "0.png")
    arguments = [gray, "--model", "flow", "--strokes", tmp_path / "0.png"]
    weights = save_random(REFINER, ["MODEL.DEVICE", "cpu"], tmp_path / "refiner.pth")
    spn = ["--spn", REFINER, "--spn-weights", weights, "--device", "cpu"]
    for name, more in (("edges", []), ("spn", spn)):
        assert main(*arguments, "--output", tmp_path / name, *more) == 0, capsys.readouterr().err
        found = pictures(tmp_path / name)
        for index in (0, COUNT - 1):
            error, plain = (
                np.abs(picture.astype(int) - frames[index]).mean()
                for picture in (found[index], pictures(gray)[index])
            )
            assert error < 0.7 * plain, name
    assert main(*arguments, "--output", tmp_path / "edges", *spn) == 2
    assert "belongs to a run with another --spn" in capsys.readouterr().err


def test_a_killed_process_continues_where_it_stopped(gray, keys, tmp_path):
    """The result has the bytes of a run that was not interrupted."""
    clip = tmp_path / "large"
    clip.mkdir()
    for number in range(20):  # enough work to be interrupted in
        picture = Image.open(gray / f"frame_{number % COUNT}.png").resize((240, 180))
        picture.save(clip / f"frame_{number}.png")
    for path in keys.iterdir():
        Image.open(path).resize((240, 180)).save(path)
    (keys / "7.png").rename(keys / "19.png")
    tool = str(ROOT / "tools" / "propagate_video.py")
    arguments = ["--model", "flow", "--mode", "chained", "--keys", str(keys), "--output"]
    command = [sys.executable, tool, str(clip), *arguments]
    process = Running([*command, str(tmp_path / "stopped")], cwd=ROOT)
    process.wait_for(tmp_path / "stopped" / "frame_6.png")
    process.kill()
    process.wait()
    done = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "stopped").glob("*.png")}
    assert 6 < len(done) < 20
    for folder in ("stopped", "whole"):
        assert main(clip, *arguments, tmp_path / folder) == 0
    for path in (tmp_path / "whole").glob("*.png"):
        again = tmp_path / "stopped" / path.name
        assert again.read_bytes() == path.read_bytes()
        assert done.get(path.name, again.stat().st_mtime_ns) == again.stat().st_mtime_ns


def test_a_clip_in_a_wheel(network, scene, tmp_path):
    video = write_clip(tmp_path / "square.avi", scene[0])
    wheel = write_wheel(tmp_path / "clips-1.0-py3-none-any.whl", [video])
    Image.fromarray(scene[1][0]).save(tmp_path / "first.png")
    output = tmp_path / "output"
    arguments = [f"{wheel}/square", *network, "--align"]
    assert main(*arguments, "--keys", tmp_path / "first.png", "--output", output) == 0
    assert len(list(output.glob("*.png"))) == COUNT


@pytest.mark.parametrize(
    "change, message",
    [
        (["CLIP", "absent.mp4"], "CLIP absent.mp4: no such file or folder"),
        (["--keys", "absent"], "--keys absent: no such file or folder"),
        (["--model", "absent"], "there is no model absent"),
        (["--model", "quickstart/rpe_shapes.yaml"], "allowed: models that carry a property"),
        (["--property", "masks"], "allowed: one index per pixel"),
        (["--align"], "--align is for a model"),
        (["--spn", REFINER], "--spn spreads strokes; allowed with --strokes"),
        (["--mode", "both"], "invalid choice: 'both'"),
    ],
)
def test_wrong_arguments_are_one_line(gray, keys, tmp_path, monkeypatch, capsys, change, message):
    monkeypatch.chdir(tmp_path)
    flags = {"CLIP": gray, "--model": "flow", "--keys": keys, "--output": "output"}
    flags.update([change] if len(change) == 2 else [(change[0], None)])
    clip = flags.pop("CLIP")
    arguments = [text for pair in flags.items() for text in pair if text is not None]
    assert main(clip, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error.strip().splitlines()[-1] and "Traceback" not in error


def test_the_property_is_that_of_the_network(network, gray, keys, tmp_path, capsys):
    arguments = [gray, *network, "--keys", keys, "--output", tmp_path / "output"]
    assert main(*arguments, "--property", "ab") == 2
    assert "--property is ab; allowed with this model: masks" in capsys.readouterr().err
    assert main(*arguments, "--opts", "MODEL.TPN.PROPERTY", "rgb") == 2
    assert "MODEL.TPN.PROPERTY is rgb; allowed here: ab, masks" in capsys.readouterr().err


def test_foreign_files_are_not_overwritten(gray, keys, tmp_path, capsys):
    output = tmp_path / "output"
    output.mkdir()
    (output / "frame_3.png").write_text("mine")
    assert main(gray, "--model", "flow", "--keys", keys, "--output", output) == 2
    assert "frame_3.png and no run/propagate_video.json" in capsys.readouterr().err
    assert (output / "frame_3.png").read_text() == "mine"


def test_a_refiner_that_does_not_refine_masks(gray, tmp_path, capsys):
    Image.fromarray(np.zeros((48, 64), np.uint8)).save(tmp_path / "0.png")
    arguments = [gray, "--model", "flow", "--strokes", tmp_path / "0.png", "--output", "x"]
    assert main(*arguments, "--spn", "quickstart/rpe_shapes.yaml") == 2
    assert "allowed: models that spread labels or refine masks" in capsys.readouterr().err
