"""rpe-d2 prepare-voc on complete and incomplete folders."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from rpe_d2.cli.prepare_voc import main
from tests.conftest import ROOT
from tests.helpers import voc_tree

VOC = "VOCdevkit/VOC2012"
SBD = "benchmark_RELEASE/dataset"


@pytest.fixture
def root(tmp_path):
    return voc_tree.write_tree(tmp_path / "data")


def failed(capsys, *argv) -> str:
    """Returns the error line of a call that fails."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in argv])
    assert stop.value.code == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error:")]
    return line


def test_a_complete_folder_as_a_process(root, tmp_path):
    output = tmp_path / "new" / "report.json"
    command = [sys.executable, "tools/prepare_voc.py", str(root), "--json", str(output)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (
        "voc_2012_train: 3 images listed; found 3 images, 3 object maps, 3 class maps\n"
        in done.stdout
    )
    assert "voc_2012_sbd_train: 2 images listed" in done.stdout
    assert "missing" not in done.stdout and "voc_2012_val" in done.stderr  # progress
    report = json.loads(output.read_text())
    assert sorted(report["available"]) == sorted(
        name + suffix for name in voc_tree.SPLITS for suffix in ("", "_sem_seg")
    )
    assert report["splits"]["sbd_train"]["object_maps"] == {
        "listed": 2, "found": 2, "missing": 0, "first_missing": None
    }  # fmt: skip


def test_what_is_missing_is_counted_and_named(root, tmp_path, capsys):
    for name in voc_tree.TRAIN[1:]:
        (root / VOC / "SegmentationObject" / f"{name}.png").unlink()
    (root / VOC / "JPEGImages" / f"{voc_tree.VAL[1]}.jpg").write_bytes(b"")
    (root / SBD / "cls" / f"{voc_tree.SBD_VAL[0]}.mat").unlink()
    (root / SBD / "train.txt").unlink()
    output = tmp_path / "report.json"
    assert main([str(root), "--json", str(output)]) == 0
    text = capsys.readouterr().out
    first = root / VOC / "SegmentationObject" / f"{voc_tree.TRAIN[1]}.png"
    assert f"2 object maps missing or empty, first {first}" in text
    assert f"sbd_train: there is no list {root / SBD / 'train.txt'}" in text
    report = json.loads(output.read_text())
    # SBD's masks need no class maps, and VOC's semantic maps no object maps. Both need the image,
    # which is empty here.
    assert report["available"] == ["voc_2012_train_sem_seg", "sbd_val"]
    assert f"DATASETS.VOC {root} provides: voc_2012_train_sem_seg, sbd_val\n" in text
    assert report["splits"]["voc_2012_train"]["object_maps"] == {
        "listed": 3, "found": 1, "missing": 2, "first_missing": str(first)
    }  # fmt: skip
    assert report["splits"]["sbd_train"]["list"].endswith("train.txt")


def test_nothing_complete_is_one_line(root, tmp_path, capsys):
    shutil.rmtree(root / "benchmark_RELEASE")
    shutil.rmtree(root / VOC / "JPEGImages")
    assert "holds no complete data set; 3 images missing or empty, first" in failed(capsys, root)
    (root / VOC / "ImageSets/Segmentation/train.txt").write_text("\n")
    assert "there is no image in" in failed(capsys, root)
    empty = tmp_path / "empty"
    empty.mkdir()
    for folder in (empty, tmp_path / "absent"):
        assert f"{folder} holds none of VOCdevkit/VOC2012" in failed(capsys, folder)


def test_nothing_is_overwritten(root, tmp_path, capsys):
    output = tmp_path / "report.json"
    output.write_text("mine")
    assert "exists already; it is not overwritten" in failed(capsys, root, "--json", output)
    assert output.read_text() == "mine"
