"""rpe-d2 eval-bsds: official results, continuation after an interruption, invalid files."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rpe_d2.cli import eval_bsds
from rpe_d2.cli.eval_bsds import main
from rpe_d2.evaluation.bsds_counts import count_images
from rpe_d2.ops.boundary_scores import boundary_thresholds
from tests.conftest import ROOT
from tests.helpers.annotations import save_annotations
from tests.helpers.runs import Running

# Official scores of bench/png at 5 thresholds: threshold, recall, precision and F of ODS; recall,
# precision and F of OIS; AP.
OFFICIAL_PNG = "0.166667 0.60236 0.848723 0.704628 0.580822 0.908779 0.708698 0.307627"
SIZE = (60, 80)


def start_eval_bsds(*arguments, **environment) -> Running:
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", **environment}
    command = [sys.executable, "tools/eval_bsds.py", *map(str, arguments)]
    return Running(command, cwd=ROOT, env=variables)


@pytest.fixture
def bench(real_data) -> Path:
    return real_data("bsds500") / "bench"


@pytest.fixture
def small(tmp_path) -> Path:
    """Four images of a few lines: predictions in pred/ and human boundaries in gt/."""
    generator = np.random.default_rng(0)
    for folder in ("pred", "gt"):
        (tmp_path / folder).mkdir()
    for name in "abcd":
        drawn = np.zeros(SIZE, bool)
        drawn[:, generator.integers(0, SIZE[1], 3)] = True
        other = drawn.copy()
        other[generator.integers(0, SIZE[0])] = True
        save_annotations(tmp_path / "gt" / f"{name}.mat", [drawn, other])
        found = drawn * generator.integers(100, 255, SIZE[1]) + (generator.random(SIZE) < 0.1) * 60
        Image.fromarray(found.clip(0, 255).astype(np.uint8)).save(tmp_path / "pred" / f"{name}.png")
    return tmp_path


def run(folder: Path, *arguments, thresholds: int = 9) -> int:
    paths = ["--pred", folder / "pred", "--gt", folder / "gt", "--json", folder / "out.json"]
    return main([str(a) for a in (*paths, "--thresholds", thresholds, "--workers", 1, *arguments)])


def record_of(folder: Path) -> dict:
    return json.loads((folder / "out.json").read_text())


def error_of(capsys, *arguments) -> str:
    """Returns the one line that reports a wrong argument."""
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    lines = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


@pytest.mark.parametrize("kind", ["ucm2", "png"])
def test_official_results(kind, bench, tmp_path):
    arguments = ["--pred", bench / kind, "--gt", bench / "groundTruth", "--thresholds", 5]
    out = ["--json", tmp_path / "out.json", "--workers", 1]
    assert main([str(argument) for argument in (*arguments, *out)]) == 0
    record = record_of(tmp_path)
    assert record["images_used"] == record["images_in_ground_truth"] == 5
    official = OFFICIAL_PNG
    if kind == "ucm2":
        official = (bench / "test_1" / "eval_bdry.txt").read_text()
    threshold, *ods, ois_recall, ois_precision, ois, ap = map(float, official.split())
    found = record["results"]
    names = ("recall", "precision", "f_measure")
    assert found["ODS"]["threshold"] == pytest.approx(threshold, abs=1e-6)
    assert [found["ODS"][name] for name in names] == pytest.approx(ods, abs=0.002)
    official_ois = [ois_recall, ois_precision, ois]
    assert [found["OIS"][name] for name in names] == pytest.approx(official_ois, abs=0.002)
    assert found["AP"] == pytest.approx(ap, abs=0.003)
    if kind == "png":
        return
    # The scores are ratios of counts, so the relative tolerance is that of the counts.
    curve = [list(point.values())[:3] for point in record["per_threshold"]]
    expected = np.loadtxt(bench / "test_1" / "eval_bdry_thr.txt")
    np.testing.assert_allclose(curve, expected[:, :3], rtol=0.005)
    images = [list(point.values()) for point in record["per_image"].values()]
    expected = np.loadtxt(bench / "test_1" / "eval_bdry_img.txt")
    np.testing.assert_allclose(images, expected[:, 1:], rtol=0.005)


def test_report_record_and_plot(small, capsys):
    assert run(small, "--plot", small / "new" / "curve.png") == 0
    captured = capsys.readouterr()
    assert "4 of 4 images" in captured.out and "100%" in captured.err
    for line in ("ODS", "OIS", "AP", "each annotator against the others"):
        assert line in captured.out
    assert captured.out.splitlines()[-2:] == [
        str(small / "new" / "curve.png"),
        str(small / "out.json"),
    ]
    record = record_of(small)
    assert record["benchmark"] == "bsds_boundaries" and record["settings"]["thresholds"] == 9
    assert record["command"].startswith("tools/eval_bsds.py --pred")
    assert {"commit", "hardware", "versions", "finished", "seconds"} <= set(record)
    assert list(record["per_image"]) == list("abcd") and len(record["per_threshold"]) == 9
    thresholds = [point["threshold"] for point in record["per_threshold"]]
    np.testing.assert_allclose(thresholds, boundary_thresholds(9), atol=1e-6)
    # In each pair, one annotator has drawn one more line than the other.
    human = record["results"]["human"]
    assert 0.7 < human["recall"] < 1
    assert human["recall"] == pytest.approx(human["precision"], abs=0.02)
    with Image.open(small / "new" / "curve.png") as image:
        assert min(image.size) > 700


def test_arrays_and_images_give_the_same_results(small):
    assert run(small) == 0
    expected = record_of(small)["results"]
    for path in list((small / "pred").iterdir()):
        np.save(path.with_suffix(".npy"), np.asarray(Image.open(path)) / 255)
        path.unlink()
    assert run(small) == 0
    record = record_of(small)
    assert record["results"] == expected and record["images_counted_in_these_seconds"] == 4


def test_counts_are_reused_only_for_the_same_files_and_thresholds(small, capsys):
    assert run(small) == 0
    first = record_of(small)
    assert run(small, "--plot", small / "a.png") == 0 and run(small, "--plot", small / "a.png") == 0
    again = record_of(small)
    assert again["images_counted_in_these_seconds"] == 0
    assert "4 of 4 images are already counted" in capsys.readouterr().out
    for key in ("results", "per_image", "per_threshold"):
        assert again[key] == first[key]

    Image.fromarray(np.zeros(SIZE, np.uint8)).save(small / "pred" / "b.png")
    assert run(small) == 0
    changed = record_of(small)
    assert changed["images_counted_in_these_seconds"] == 1
    assert changed["per_image"]["b"]["f_measure"] == 0
    save_annotations(small / "gt" / "c.mat", [np.eye(*SIZE)])
    assert run(small) == 0 and record_of(small)["images_counted_in_these_seconds"] == 1
    assert run(small, thresholds=5) == 0
    assert record_of(small)["images_counted_in_these_seconds"] == 4


def test_files_that_change_during_the_evaluation_leave_no_counts(small, monkeypatch, capsys):
    def count_and_change(*arguments):
        for image, counts in count_images(*arguments):
            if image.name == "b":
                Image.fromarray(np.zeros(SIZE, np.uint8)).save(image.prediction)
            yield image, counts

    monkeypatch.setattr(eval_bsds, "count_images", count_and_change)
    assert run(small) == 0
    assert "skipped b: its files have changed" in capsys.readouterr().err
    monkeypatch.undo()
    assert run(small) == 0 and record_of(small)["per_image"]["b"]["f_measure"] == 0


def test_files_of_others_are_not_overwritten(small, capsys):
    (small / "out.json").write_text('{"mine": 1}')
    assert "was not written by this command" in error_of(capsys, small)
    assert (small / "out.json").read_text() == '{"mine": 1}'
    (small / "out.json").unlink()
    Image.new("L", (9, 9)).save(small / "mine.png")
    before = (small / "mine.png").read_bytes()
    assert "not overwritten" in error_of(capsys, small, "--plot", small / "mine.png")
    assert (small / "mine.png").read_bytes() == before
    assert run(small) == 0
    counts = sorted((small / "out_counts").iterdir())
    assert len(counts) == 4
    counts[0].write_text("mine")
    capsys.readouterr()
    assert "holds no counts of this tool" in error_of(capsys, small)
    assert counts[0].read_text() == "mine"


def test_invalid_images_are_left_out_with_a_line_each(small, capsys):
    assert run(small) == 0
    expected = record_of(small)["per_image"]["a"]
    capsys.readouterr()
    Image.fromarray(np.zeros(SIZE[::-1], np.uint8)).save(small / "pred" / "b.png")
    save_annotations(small / "gt" / "c.mat", [np.zeros(SIZE)])
    (small / "pred" / "d.png").unlink()
    Image.new("L", (9, 9)).save(small / "pred" / "extra.png")
    (small / "pred" / "notes.txt").write_text("of no interest")
    assert run(small) == 0
    captured = capsys.readouterr()
    # Without the lines of the progress bar.
    lines = [line for line in captured.err.splitlines() if line.strip() and "images:" not in line]
    assert lines == [
        "note: no ground truth for extra, not evaluated",
        "skipped d: no boundary map",
        f"skipped b: {small}/pred/b.png: the boundary map is 80 x 60 and its ground truth 60 x 80 "
        "(height x width)",
        f"skipped c: {small}/gt/c.mat: the ground truth is empty, "
        "no annotator has a boundary pixel",
    ]
    assert "1 of 4 images" in captured.out
    record = record_of(small)
    assert (record["images_used"], record["images_in_ground_truth"]) == (1, 4)
    assert list(record["left_out"]) == list("bcd") and record["per_image"] == {"a": expected}

    (small / "gt" / "a.mat").unlink()
    os.mkfifo(small / "gt" / "a.mat")  # is not waited for
    assert run(small) == 1
    assert "a.mat is a pipe or a device; allowed: a file" in capsys.readouterr().err
    (small / "gt" / "a.mat").unlink()
    (small / "gt" / "a.mat").write_text("text")
    assert run(small) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == "error: none of 4 images could be used"


def test_wrong_arguments_are_one_line(small, capsys):
    assert "--json" in error_of(capsys, small, "--json", small / "out.txt")
    assert "suffix .png" in error_of(capsys, small, "--plot", small / "a.pdf")
    assert "--pred" in error_of(capsys, small, "--pred", small / "none")
    assert "no such folder" in error_of(capsys, small, "--gt", small / "none")
    message = error_of(capsys, small, "--gt", small / "pred")
    assert "has 0 .mat files" in message and "4 with others" in message
    np.save(small / "pred" / "a.npy", np.zeros(SIZE))
    assert "a.png: a.npy has the same name" in error_of(capsys, small)
    for value in ("0", "-3", "many"):
        with pytest.raises(SystemExit) as stop:
            run(small, "--thresholds", value)
        assert stop.value.code == 2


def group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    "workers, how",
    [(2, signal.SIGKILL), pytest.param(1, signal.SIGINT, marks=pytest.mark.slow)],
)
def test_continues_after_an_interruption(workers, how, bench, tmp_path, capsys):
    """The command is ended while it counts; called again, it counts only the rest."""
    arguments = ["--pred", bench / "png", "--gt", bench / "groundTruth", "--thresholds", 8]
    arguments += ["--json", tmp_path / "out.json", "--workers", workers]
    counts = tmp_path / "out_counts"
    first = start_eval_bsds(*arguments)
    first.wait_for(counts)
    while not any(path.suffix == ".json" for path in counts.iterdir()):
        time.sleep(0.01)
    first.send_signal(how)  # to the main process alone
    answer = first.finish()
    done = {path: path.stat().st_mtime_ns for path in counts.glob("*.json")}
    assert 1 <= len(done) < 5 and not (tmp_path / "out.json").exists()
    if how == signal.SIGINT:
        assert answer.returncode == 130 and "Traceback" not in answer.stderr
        assert answer.stderr.splitlines()[-1].startswith("interrupted; the same command continues")
    end = time.time() + 30
    while group_exists(first.pid):  # the worker processes end, too
        assert time.time() < end
        time.sleep(0.05)

    assert main([*map(str, arguments[:-1]), "1"]) == 0
    assert f"{len(done)} of 5 images are already counted" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert len(list(counts.glob("*.json"))) == 5
    record = record_of(tmp_path)
    assert record["images_counted_in_these_seconds"] == 5 - len(done)
    assert record["images_used"] == 5


def test_the_report_does_not_depend_on_the_number_of_processes(small, capsys):
    (small / "pred" / "b.png").write_text("no picture")
    arguments = ["--pred", small / "pred", "--gt", small / "gt", "--thresholds", 9]
    before = sorted(small.iterdir())
    answer = start_eval_bsds(*arguments, "--workers", 2).finish()
    assert answer.returncode == 0, answer.stderr
    assert answer.stderr.count("skipped b: ") == 1 and "3 of 4 images" in answer.stdout
    assert sorted(small.iterdir()) == before  # without --json nothing is kept
    assert main([str(argument) for argument in (*arguments, "--workers", 1)]) == 0
    assert capsys.readouterr().out == answer.stdout
