"""rpe-d2 evaluate: label maps of files and folders against true ones."""

import json

import numpy as np
import pytest
import tifffile
from PIL import Image

from rpe_d2.cli.evaluate import main
from rpe_d2.evaluation.label_metrics import label_metrics, mean_label_metrics


def labels(seed):
    rng = np.random.default_rng(seed)
    return np.kron(rng.integers(0, 6, (4, 5)), np.ones((5, 5))).astype(np.uint16)


@pytest.fixture
def folders(tmp_path):
    for name in ("pred", "true"):
        (tmp_path / name).mkdir()
    for seed in range(3):
        tifffile.imwrite(tmp_path / "pred" / f"{seed}.tif", labels(seed))
        Image.fromarray(labels(seed if seed else 7)).save(tmp_path / "true" / f"{seed}_masks.png")
    return [str(tmp_path / name) for name in ("pred", "true")]


def test_folders(folders, tmp_path, capsys):
    assert main([*folders, "--json", str(tmp_path / "scores.json")]) == 0
    content = json.loads((tmp_path / "scores.json").read_text())
    expected = [label_metrics(labels(seed), labels(seed if seed else 7)) for seed in range(3)]
    assert content["mean"] == pytest.approx(mean_label_metrics(expected), abs=1e-6)
    for name, metrics in zip(("0_masks", "1_masks", "2_masks"), expected):
        assert content["images"][name] == pytest.approx(metrics, abs=1e-6)
    output = capsys.readouterr().out
    assert "AJI+" in output and output.splitlines()[-1].startswith("all")
    assert main([*folders, "--rows", "1"]) == 0
    assert "1 of 3 images, those with the lowest S@0.5:" in capsys.readouterr().out


def test_single_files_and_stacks(tmp_path, capsys):
    stack = np.stack([labels(0), labels(1)])
    tifffile.imwrite(tmp_path / "a.tif", stack, metadata={"axes": "ZYX"})
    tifffile.imwrite(tmp_path / "b.tif", stack[::-1], metadata={"axes": "ZYX"})
    same = [str(tmp_path / "a.tif")] * 2
    assert main([*same, "--json", str(tmp_path / "x.json")]) == 0
    content = json.loads((tmp_path / "x.json").read_text())
    assert list(content["images"]) == ["a[0]", "a[1]"] and content["mean"]["S"] == 1
    assert main([str(tmp_path / "a.tif"), str(tmp_path / "b.tif")]) == 0
    assert "1.000" not in capsys.readouterr().out.splitlines()[-1]


def test_empty_maps_have_no_score(tmp_path, capsys):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((4, 4), np.uint16))
    file = str(tmp_path / "a.tif")
    assert main([file, file, "--json", str(tmp_path / "x.json")]) == 0
    assert json.loads((tmp_path / "x.json").read_text())["mean"]["S"] is None
    assert " - " in capsys.readouterr().out


def test_one_line_errors(folders, tmp_path, capsys):
    tifffile.imwrite(tmp_path / "small.tif", np.zeros((4, 4), np.uint16))
    stack = np.zeros((3, 4, 4), np.uint16)
    tifffile.imwrite(tmp_path / "stack.tif", stack, photometric="minisblack")
    (tmp_path / "text.tif").write_text("text")
    one = f"{folders[0]}/0.tif"
    for pred, truth, message in (
        (str(tmp_path / "none"), folders[1], "PRED is "),
        (one, str(tmp_path / "small.tif"), "0.tif is 25 x 20 pixels; allowed with"),
        (str(tmp_path / "stack.tif"), str(tmp_path / "small.tif"), "has 3 planes; allowed with"),
        (str(tmp_path / "text.tif"), one, "text.tif"),
    ):
        with pytest.raises(SystemExit) as exit_:
            main([pred, truth])
        assert exit_.value.code == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ") and message in error
