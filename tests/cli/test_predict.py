"""rpe-d2 predict: files, stacks, parts, interrupted commands and failures."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from rpe_d2.cli import predict
from rpe_d2.cli.predict import main
from rpe_d2.inference import Segmenter
from rpe_d2.inference.stitching import stitch_planes
from rpe_d2.utils.tiff_files import tiff_layout
from tests.helpers.runs import CONFIG, TINY, save_random

OPTS = ["--min-score", "0", "--opts", *TINY]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save_random(CONFIG, TINY, tmp_path_factory.mktemp("weights") / "rpe.pth")


@pytest.fixture
def model(weights):
    return ["--model", CONFIG, "--weights", weights]


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(4):
        image = np.random.default_rng(number).integers(0, 99, (48, 64, 3), dtype=np.uint8)
        image[10:30, 10:40] += 100
        cv2.imwrite(str(folder / f"{number}.png"), image)
    return folder


def names(folder):
    """Returns the names of the files for the user, without those about the run."""
    return sorted(path.name for path in Path(folder).iterdir() if path.is_file())


def test_a_folder_of_pictures(pictures, model, weights, tmp_path, capsys):
    output = tmp_path / "output"
    saved = ["--save", "tif", "csv", "overlay", "json"]
    assert main([str(pictures), *model, "--output", str(output), *saved, *OPTS]) == 0
    expected = [f"{n}{s}" for n in range(4) for s in (".tif", ".csv", ".json")]
    assert names(output) == sorted(expected)
    assert names(output / "overlays") == [f"{n}.png" for n in range(4)]
    assert names(output / "run") == ["model.json", "pictures.jsonl", "report.json"]
    segmenter = Segmenter.load(CONFIG, weights, min_score=0.0, opts=TINY)
    total = 0
    for number in range(4):
        found = segmenter.predict(pictures / f"{number}.png")
        assert np.array_equal(tifffile.imread(output / f"{number}.tif"), found.labels)
        assert (output / f"{number}.csv").read_text().count("\n") == len(found) + 1
        overlay = cv2.imread(str(output / "overlays" / f"{number}.png"))
        assert np.array_equal(overlay[:, :, ::-1], found.overlay())
        total += len(found)
    report = json.loads((output / "run" / "report.json").read_text())
    assert (report["pictures"], report["done"], report["objects"]) == (4, 4, total) and total > 0
    assert report["failures"] == {} and report["command"].startswith("tools/predict.py ")
    assert f"4 of 4 pictures segmented, {total} objects" in capsys.readouterr().out


def test_an_interrupted_command_continues(pictures, model, tmp_path, monkeypatch, capsys):
    output = str(tmp_path / "output")
    command = [str(pictures), *model, "--output", output, *OPTS]
    write, written = predict._write, []

    def interrupted(found, kind, path):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        write(found, kind, path)

    monkeypatch.setattr(predict, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        main(command)
    assert names(output) == ["0.tif", "1.tif"]
    stamp = (tmp_path / "output" / "0.tif").stat().st_mtime_ns
    monkeypatch.setattr(predict, "_write", write)
    assert main(command) == 0
    assert (tmp_path / "output" / "0.tif").stat().st_mtime_ns == stamp
    assert "2 of 4 pictures segmented" in capsys.readouterr().out
    (tmp_path / "output").rename(tmp_path / "overlays")  # a folder may be moved
    command[command.index(output)] = str(tmp_path / "overlays")
    assert main(command) == 0
    assert "4 were done before" in capsys.readouterr().out
    assert "report-2.json" in names(tmp_path / "overlays" / "run")  # the first report is kept


def test_parts_share_the_pictures(pictures, model, tmp_path):
    output = tmp_path / "output"
    for number in (1, 2, 3):
        part = ["--shard", f"{number}/3"]
        assert main([str(pictures), *model, "--output", str(output), *part, *OPTS]) == 0
    labels = [f"{n}.tif" for n in range(4)]
    reports = [f"report-{n}-of-3.json" for n in (1, 2, 3)]
    assert names(output) == labels
    done = [json.loads((output / "run" / name).read_text())["done"] for name in reports]
    assert done == [2, 1, 1]


def test_a_stack_is_segmented_plane_by_plane(pictures, model, tmp_path):
    stack = np.stack([cv2.imread(str(pictures / f"{n}.png"), 0) for n in range(3)])
    tifffile.imwrite(tmp_path / "stack.tif", stack, metadata={"axes": "ZYX"})
    output = tmp_path / "output"
    command = [str(tmp_path / "stack.tif"), *model, "--output", str(output)]
    assert main([*command, "--save", "tif", "csv", *OPTS]) == 0
    expected = [f"stack_{n:04d}.csv" for n in range(3)]
    assert names(output) == sorted([*expected, "stack.tif"])
    labels = tifffile.imread(output / "stack.tif")
    assert labels.shape == stack.shape and labels.dtype == np.uint16
    with tifffile.TiffFile(output / "stack.tif") as file:
        assert file.series[0].axes == "ZYX"
    alone = tmp_path / "alone"
    assert main([f"{tmp_path}/stack.tif[1]", *model, "--output", str(alone), *OPTS]) == 0
    assert np.array_equal(tifffile.imread(alone / "stack[1].tif"), labels[1])


def test_pictures_of_one_name_do_not_overwrite_each_other(pictures, model, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for name in ("0.png", "5.png", "5.bmp"):
        cv2.imwrite(str(other / name), np.zeros((40, 50, 3), np.uint8))
    output = tmp_path / "output"
    assert main([str(pictures), str(other), *model, "--output", str(output), *OPTS]) == 0
    expected = ["1.tif", "2.tif", "3.tif", "5.bmp.tif", "5.png.tif", "other__0.png.tif"]
    assert names(output) == sorted([*expected, "pictures__0.png.tif"])


def test_a_picture_that_cannot_be_read_is_reported(pictures, model, tmp_path, capsys):
    (pictures / "2.png").write_bytes(b"no picture")
    output = tmp_path / "output"
    assert main([str(pictures), *model, "--output", str(output), *OPTS]) == 1
    assert names(output) == ["0.tif", "1.tif", "3.tif"]
    failures = json.loads((output / "run" / "report.json").read_text())["failures"]
    assert list(failures) == [str(pictures / "2.png")]
    assert "failed: " in capsys.readouterr().out


def test_predictions_of_different_models_are_not_mixed(pictures, model, weights, tmp_path, capsys):
    output = str(tmp_path / "output")
    assert main([str(pictures), *model, "--output", output, *OPTS]) == 0
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        main([str(pictures), *model, "--output", output, "--min-score", "0.2", "--opts", *TINY])
    assert exit_.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "predictions with min_score 0.0, and this command has 0.2; allowed: another" in error


def test_another_configuration_is_another_model(pictures, model, tmp_path, capsys):
    output = ["--output", str(tmp_path / "output")]
    assert main([str(pictures), *model, *output, *OPTS]) == 0
    with pytest.raises(SystemExit):
        main([str(pictures), *model, *output, *OPTS, "INPUT.MIN_SIZE_TEST", "96"])
    assert "has predictions with fingerprint" in capsys.readouterr().err.splitlines()[-1]


def test_files_of_other_pictures_are_neither_replaced_nor_taken_for_done(
    pictures, model, tmp_path, capsys
):
    """Another day's picture of the same name, and label maps that would replace pictures."""
    output, other = tmp_path / "output", tmp_path / "other"
    other.mkdir()
    cv2.imwrite(str(other / "0.png"), np.zeros((40, 50, 3), np.uint8))
    assert main([str(pictures), *model, "--output", str(output), *OPTS]) == 0
    before = (output / "0.tif").read_bytes()
    assert main([str(other), *model, "--output", str(output), *OPTS]) == 1
    assert "0.tif belongs to" in capsys.readouterr().out
    assert (output / "0.tif").read_bytes() == before
    content = (other / "0.png").read_bytes()
    same = ["--output", str(other), "--save", "png"]
    assert main([str(other / "0.png"), *model, *same, *OPTS]) == 1
    assert "0.png exists and was not written by predict" in capsys.readouterr().out
    assert (other / "0.png").read_bytes() == content


def test_a_plane_and_a_picture_of_its_name_do_not_share_a_file(pictures, model, tmp_path, capsys):
    stack = np.stack([cv2.imread(str(pictures / f"{n}.png"), 0) for n in range(2)])
    tifffile.imwrite(tmp_path / "s.tif", stack, metadata={"axes": "ZYX"})
    cv2.imwrite(str(tmp_path / "s_0000.png"), stack[1])
    files = [str(tmp_path / name) for name in ("s.tif", "s_0000.png")]
    output = tmp_path / "output"
    assert main([*files, *model, "--output", str(output), "--save", "csv", *OPTS]) == 1
    assert "s_0000.csv belongs to" in capsys.readouterr().out
    assert names(output) == ["s_0000.csv", "s_0001.csv"]


def test_a_picture_that_needs_too_much_memory_is_reported(
    pictures, model, tmp_path, capsys, monkeypatch
):
    predicted = Segmenter.predict

    def limited(self, image, *arguments):
        if str(image).endswith("1.png"):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return predicted(self, image, *arguments)

    monkeypatch.setattr(Segmenter, "predict", limited)
    output = tmp_path / "output"
    assert main([str(pictures), *model, "--output", str(output), *OPTS]) == 1
    assert "1.png: out of memory" in capsys.readouterr().out
    assert names(output) == ["0.tif", "2.tif", "3.tif"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["none/*.png"], "none/*.png: no image found"),
        (["{pictures}", "--shard", "3/2"], "'3/2'; allowed: I/N with I from 1 to N"),
        (["{pictures}", "--min-score", "nan"], "'nan'; allowed: 0 to 1"),
        (["{pictures}", "--save", "jpg"], "invalid choice: 'jpg'"),
        (["{pictures}", "--weights", "none.pth"], "weights none.pth: no such file"),
        (["{pictures}", "--channels", "x"], "INPUT.CHANNELS is 'x'; allowed: "),
    ],
)
def test_one_line_errors(arguments, message, pictures, model, tmp_path, capsys):
    arguments = [a.format(pictures=pictures) for a in arguments]
    with pytest.raises(SystemExit) as exit_:
        main([*model, *arguments, "--output", str(tmp_path / "output"), *OPTS])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_axes_and_pixel_sizes_are_kept_and_planes_are_stitched(pictures, model, tmp_path):
    planes = [cv2.imread(str(pictures / f"{n}.png"), 0) for n in (0, 1, 0, 1, 1, 1)]
    size = {"PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25, "PhysicalSizeZ": 1.5}
    metadata = {"axes": "TZYX", **size, "PhysicalSizeXUnit": "µm"}
    stack = np.stack(planes).reshape(2, 3, 48, 64)
    tifffile.imwrite(tmp_path / "stack.tif", stack, ome=True, metadata=metadata)
    tifffile.imwrite(
        tmp_path / "plane.tif", planes[0], resolution=(200, 100), resolutionunit="CENTIMETER"
    )
    files = [str(tmp_path / "stack.tif"), str(tmp_path / "plane.tif")]
    for name, stitch in (("apart", []), ("linked", ["--stitch", "0.9"])):
        output = ["--output", str(tmp_path / name), *stitch, *OPTS]
        assert main([*files, *model, *output]) == 0
    layout = tiff_layout(str(tmp_path / "apart" / "stack.tif"))
    assert (layout.axes, layout.sides) == ("TZ", (2, 3)) and layout.unit == "µm"
    assert layout.pixel_size == {"X": 0.25, "Y": 0.25, "Z": 1.5}
    layout = tiff_layout(str(tmp_path / "linked" / "plane.tif"))
    assert layout.pixel_size == {"X": 0.005, "Y": 0.01} and layout.unit == "cm"
    apart = tifffile.imread(tmp_path / "apart" / "stack.tif")
    linked = tifffile.imread(tmp_path / "linked" / "stack.tif")
    assert apart.shape == linked.shape == stack.shape
    assert ((apart > 0) == (linked > 0)).all()
    for t in range(2):
        np.testing.assert_array_equal(linked[t], stitch_planes(apart[t], 0.9))
    assert (linked[1, 1] == linked[1, 2]).all()  # equal planes


def test_tiles(pictures, model, tmp_path, capsys):
    large = np.tile(cv2.imread(str(pictures / "0.png")), (3, 3, 1))
    cv2.imwrite(str(pictures / "large.png"), large)
    output = ["--output", str(tmp_path / "output"), *OPTS]
    assert main([str(pictures), *model, "--tile", "64", *output]) == 0
    assert tifffile.imread(tmp_path / "output" / "large.tif").shape == large.shape[:2]
    for tile, message in (
        ("0", "with tile 64, and this command has 0"),
        ("9", "allowed: 0, or 64"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main([str(pictures), *model, "--tile", tile, *output])
        assert stopped.value.code == 2 and message in capsys.readouterr().err
