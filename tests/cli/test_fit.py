"""rpe-d2 fit from label folders to label maps, resumed and refused."""

import json
import shutil

import cv2
import numpy as np
import pytest
import tifffile
import torch

from rpe_d2.cli.fit import main
from rpe_d2.cli.predict import main as predict
from rpe_d2.inference.fit_data import read_label_data, split_images
from rpe_d2.inference.fit_rules import MODELS


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fit")
    for name in ("images", "labels"):
        (folder / name).mkdir()
    for n in range(3):
        rng = np.random.default_rng(n)
        labels = np.zeros((96, 96), np.uint16)
        for number in range(1, 6):
            cv2.circle(labels, rng.integers(10, 86, 2).tolist(), 9, number, -1)
        image = np.where(labels > 0, 1500, 300) + rng.normal(0, 50, labels.shape)
        tifffile.imwrite(folder / "images" / f"{n}.tif", image.astype(np.uint16))
        tifffile.imwrite(folder / "labels" / f"{n}_masks.tif", labels)
    return folder


@pytest.fixture(scope="module")
def fitted(data):
    output = data / "output"
    arguments = [str(data / "images"), str(data / "labels"), "--output", str(output)]
    arguments += ["--minutes", "0.01", "--device", "cpu"]
    assert main(arguments) == 0
    return arguments, output


def test_a_model_is_trained_tuned_and_reported(fitted, data, capsys):
    _, output = fitted
    state = json.loads((output / "fit.json").read_text())
    assert state["images"] == {"train": 2, "held_out": 1}
    assert {"S", "AJI", "pred"} < set(state["scores"]) and len(state["tuned"]["tried"]) == 6
    assert state["tuned"]["images"] == 1
    yaml = (output / "fit.yaml").read_text()
    assert "# an image has up to 5 objects" in yaml and "MAX_ITER: 20" in yaml
    report = (output / "report.html").read_text()
    assert report.count("<img") == 1 and "INPUT.SCALE" in report and "<svg" in report
    record = json.loads((output / "result.json").read_text())
    assert record["iterations"] == 20 and "labels" in record["metrics"]

    labels = data / "found"
    pictures = [str(data / "images"), "--model", str(output), "--output", str(labels)]
    assert predict([*pictures, "--device", "cpu"]) == 0
    assert sorted(path.name for path in labels.glob("*.tif")) == ["0.tif", "1.tif", "2.tif"]


def test_the_same_command_continues(fitted, capsys):
    arguments, output = fitted
    before = (output / "fit.json").read_bytes()
    assert main(arguments) == 0
    assert (output / "fit.json").read_bytes() == before
    assert "held-out images (1): " in capsys.readouterr().out
    (output / "report.html").unlink()
    state = json.loads(before)
    (output / "fit.json").write_text(json.dumps({k: v for k, v in state.items() if k != "scores"}))
    with open(output / "metrics.json", "a") as file:
        file.write('{"iteration": 20, "total_l')  # cut by a crash
    moved = output.with_name("moved")
    output.rename(moved)
    assert main([*arguments[:3], str(moved), *arguments[4:]]) == 0
    moved.rename(output)
    assert (output / "report.html").exists()
    assert json.loads((output / "fit.json").read_text())["scores"] == state["scores"]


def test_a_model_starts_from_another_one(fitted, data, tmp_path, capsys):
    _, first = fitted
    output = tmp_path / "second"
    arguments = [str(data / "images"), str(data / "labels"), "--minutes", "0.01", "--device", "cpu"]
    assert main([*arguments, "--output", str(output), "--from", str(first)]) == 0
    assert "EMBEDDING_DIM 8: as in the model to start from" in capsys.readouterr().out
    log = (output / "log.txt").read_text()
    assert f"Loading from {first / 'model_final.pth'}" in log and "not found in" not in log
    assert str(first) not in (output / "config.yaml").read_text()
    # Weights of another kind of model are refused before anything is trained.
    third = ["--output", str(tmp_path / "third"), "--model", "mask_rcnn"]
    with pytest.raises(SystemExit) as stop:
        main([*arguments, *third, "--from", str(first)])
    message = f"--from {first}: its MODEL.META_ARCHITECTURE is PixelEmbeddingNet; allowed: General"
    assert stop.value.code == 2 and message in capsys.readouterr().err
    # So are folders without a model, damaged ones, and layers of another size.
    damaged, other = tmp_path / "damaged", tmp_path / "other"
    for folder, change in ((damaged, "[[[:"), (other, None)):
        folder.mkdir()
        config = (first / "config.yaml").read_text()
        (folder / "config.yaml").write_text(change or config)
        shutil.copy(first / "model_final.pth", folder)
    weights = torch.load(other / "model_final.pth", weights_only=True)["model"]
    weights["backbone.extra.weight"] = weights.pop(next(n for n in weights if "embedding" in n))
    torch.save({"model": weights}, other / "model_final.pth")
    for number, folder in enumerate((tmp_path / "none", damaged, other)):
        with pytest.raises(SystemExit) as stop:
            output = str(tmp_path / f"refused_{number}")
            main([*arguments, "--output", output, "--from", str(folder)])
        lines = capsys.readouterr().err.strip().splitlines()
        assert stop.value.code == 2 and f"--from {folder}: " in lines[-1], lines


@pytest.mark.slow
def test_both_models_are_compared(fitted, data, tmp_path, capsys):
    output = tmp_path / "both"
    shutil.copytree(fitted[1], output / "embeddings")  # is continued, or rather finished
    arguments = [str(data / "images"), str(data / "labels"), "--minutes", "0.01", "--device", "cpu"]
    arguments += ["--output", str(output), "--compare"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-3].startswith("embeddings  S@0.5 ")
    assert printed[-2].startswith("mask_rcnn   S@0.5 ")
    page = (output / "report.html").read_text()
    states = {m: json.loads((output / m / "fit.json").read_text()) for m in MODELS}
    for model, state in states.items():
        assert (output / model / "report.html").exists()
        assert f'<a href="{model}/report.html">' in page
        assert f"<td>{state['scores']['true']:.0f}</td>" in page
        assert f"<td>20</td><td>{state['cpu_seconds'] / 60:.1f}</td></tr>" in page
    # The same images are held out.
    first, second = ((output / m / "data" / "held_out.json").read_bytes() for m in MODELS)
    assert first == second
    assert main(arguments) == 0  # nothing is left to do
    for extra, message in (
        (["--from", str(fitted[1])], "--from is for one model"),
        (["--model", "mask_rcnn"], "not allowed with argument --compare"),
        (["--output", str(fitted[1])], "has classes.json; allowed with --compare: a new folder"),
    ):
        with pytest.raises(SystemExit) as stop:
            main([*arguments, *extra])
        assert stop.value.code == 2 and message in capsys.readouterr().err


def test_wrong_arguments_are_one_line(fitted, data, tmp_path, capsys):
    arguments, output = fitted
    one = tmp_path / "one"
    for name in ("images", "labels"):
        (one / name).mkdir(parents=True)
        source = next(iter(sorted((data / name).glob("0*.tif"))))
        (one / name / "0.tif").write_bytes(source.read_bytes())
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    unreadable = tmp_path / "unreadable"
    shutil.copytree(data / "labels", unreadable / "labels")
    shutil.copytree(data / "images", unreadable / "images")
    content = read_label_data(str(unreadable / "images"), str(unreadable / "labels"))
    (held_out,) = split_images(content)[1]["images"]
    pixels = tifffile.imread(held_out["file_name"])
    pixels = np.stack([pixels] * 5, axis=2)
    options = {"photometric": "minisblack", "planarconfig": "contig"}
    tifffile.imwrite(held_out["file_name"], pixels, **options)
    cases = [
        ([*arguments, "--seed", "2"], "where seed was 1, now 2; allowed: the same arguments"),
        ([*arguments[:2], "--output", str(tmp_path / "taken")], "has file but no fit.json"),
        (
            [str(one / "images"), str(one / "labels"), "--output", str(tmp_path / "a")],
            "1 images, 1 of them with objects; allowed: 2 or more with objects",
        ),
        ([*arguments, "--minutes", "0"], "'0'; allowed: a number above 0"),
        ([*arguments, "--scale", "x"], "'x'; allowed: a number above 0"),
        ([*arguments, "--channels", "x"], "INPUT.CHANNELS is 'x'"),
        ([*arguments, "--num-gpus", "0"], "0; allowed: 1 or more"),
        ([str(tmp_path / "a.json"), "b", "--classes", "c", "--output", "d"], "--classes is for"),
        (
            [*(str(unreadable / n) for n in ("images", "labels")), "--output", str(tmp_path / "c")],
            "has 5 channels; choose with INPUT.CHANNELS",
        ),
        (
            [str(tmp_path / "none.json"), str(tmp_path), "--output", str(tmp_path / "b")],
            "none.json",
        ),
    ]
    for case, message in cases:
        with pytest.raises(SystemExit) as stopped:
            main(case)
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert stopped.value.code == 2 and message in error, error
