"""rpe-d2 precompute-proposals: its files in Detectron2, continuation and wrong arguments."""

import json
import re
import shutil

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.data.build import load_proposals_into_dataset
from scipy.io import savemat

from rpe_d2.cli import precompute_proposals
from rpe_d2.cli.precompute_proposals import main
from rpe_d2.data import ImageMapper, register_mask_proposals
from rpe_d2.engine.datasets import register_datasets
from rpe_d2.utils.safe_loading import guard_proposals, load_arrays
from tests.conftest import ROOT
from tests.helpers.configs import small_cfg_with
from tests.helpers.runs import few_images, save_random

SHAPES = str(ROOT / "configs/proposals/rpe_shapes.yaml")
CONTOURS = str(ROOT / "configs/boundary/bsds_R_18.yaml")
has_ximgproc = pytest.mark.skipif(
    not hasattr(cv2, "ximgproc"), reason="this package of OpenCV has no ximgproc"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The overrides that register four shapes images as "few_4"."""
    opts = few_images(tmp_path_factory.mktemp("few"), 4)
    return [*opts, "MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0"]


def run(method, output, data, *flags, config=SHAPES):
    arguments = ["--config-file", config, "--dataset", "few_4", "--method", method]
    return main([*arguments, "--output", str(output), *map(str, flags), *data])


def error_of(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "Traceback" not in error
    return error.strip().splitlines()[-1]


@has_ximgproc
def test_selective_search_writes_what_detectron2_reads(data, tmp_path, capsys):
    output, scores = tmp_path / "out" / "boxes.pkl", tmp_path / "scores.json"
    assert run("selective_search", output, data, "--evaluate", scores, "--max-proposals", 50) == 0
    assert "of 4 images" in capsys.readouterr().out
    with open(output, "rb") as file:
        content = load_arrays(file)
    assert set(content) == {"ids", "boxes", "objectness_logits", "bbox_mode"}
    guard_proposals()
    items = load_proposals_into_dataset(DatasetCatalog.get("few_4"), str(output))
    cfg = small_cfg_with("INPUT: {MIN_SIZE_TEST: 64}", "MODEL: {LOAD_PROPOSALS: True}")
    for item, boxes, logits in zip(items, content["boxes"], content["objectness_logits"]):
        assert boxes.dtype == logits.dtype == np.float32 and 0 < len(boxes) <= 50
        proposals = ImageMapper(cfg, is_train=False)(item)["proposals"]
        np.testing.assert_allclose(proposals.proposal_boxes.tensor, boxes / 2, atol=1e-3)
        assert (proposals.objectness_logits.diff() <= 0).all()
    record = json.loads(scores.read_text())
    assert set(record["metrics"]) == {"proposals_segm_of_filled_boxes", "proposals_bbox"}
    assert record["metrics"]["proposals_bbox"]["AR@100"] > 20
    assert record["cpu_seconds"] > 0 and record["proposals_per_image"] <= 50
    assert not list(tmp_path.rglob("*.partial"))
    assert "exists already" in error_of(capsys, "selective_search", output, data)
    again = error_of(
        capsys, "selective_search", tmp_path / "b.pkl", data, "--evaluate", str(scores)
    )
    assert "--evaluate" in again and "exists already" in again


@has_ximgproc
@pytest.mark.parametrize("damage", ["", '{"image_id": 3, "boxes": [[1, 2'])
def test_an_interrupted_run_is_continued(data, tmp_path, capsys, monkeypatch, damage):
    whole, output = tmp_path / "whole.pkl", tmp_path / "boxes.pkl"
    assert run("selective_search", whole, data) == 0
    calls, original = [], precompute_proposals.selective_search

    def search(image, *options):
        calls.append(image)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(image, *options)

    monkeypatch.setattr(precompute_proposals, "selective_search", search)
    assert run("selective_search", output, data) == 130
    assert "continues from" in capsys.readouterr().err
    partial = tmp_path / "boxes.pkl.partial"
    with open(partial, "a") as file:
        file.write(damage)
    other = error_of(capsys, "selective_search", output, data, "--max-proposals", "7")
    assert "belongs to a run with another --max-proposals" in other
    assert run("selective_search", output, data) == 0
    assert "2 of 4 images are finished already" in capsys.readouterr().err
    assert len(calls) == 5 and not partial.exists()
    with open(output, "rb") as found, open(whole, "rb") as expected:
        found, expected = load_arrays(found), load_arrays(expected)
    assert found["ids"] == expected["ids"]
    for name in ("boxes", "objectness_logits"):
        for one, other in zip(found[name], expected[name]):
            np.testing.assert_array_equal(one, other)


@has_ximgproc
def test_edge_boxes_take_the_contours_of_a_model(data, tmp_path):
    weights = save_random(CONTOURS, ["MODEL.DEVICE", "cpu"], tmp_path / "weights.pth")
    output = tmp_path / "boxes.pkl"
    flags = ["--weights", weights, "--min-area", "25"]
    assert run("edge_boxes", output, data, *flags, config=CONTOURS) == 0
    with open(output, "rb") as file:
        boxes = np.concatenate(load_arrays(file)["boxes"])
    assert boxes.shape[1] == 4 and (boxes >= 0).all() and (boxes <= 128).all()


@has_ximgproc
def test_a_model_without_contours_is_refused(data, tmp_path, capsys):
    weights = save_random(SHAPES, ["MODEL.DEVICE", "cpu"], tmp_path / "weights.pth")
    line = error_of(capsys, "edge_boxes", tmp_path / "a.pkl", data, "--weights", weights)
    assert "which finds no contours; allowed with --method edge_boxes" in line


@pytest.fixture
def mat(data, tmp_path):
    """A folder with the objects of every image as unions of superpixels, like MCG's files."""
    cfg = small_cfg_with()
    cfg.merge_from_list(data[:2])
    register_datasets(cfg)
    folder = tmp_path / "mat"
    folder.mkdir()
    for item in DatasetCatalog.get("few_4"):
        masks = [mask_util.decode(a["segmentation"]) for a in item["annotations"]]
        superpixels = np.ones((128, 128), np.uint16)
        labels = np.empty((len(masks), 1), object)
        for number, mask in enumerate(masks):
            superpixels[mask > 0] = number + 2  # visible masks do not overlap
            labels[number, 0] = np.array([[number + 2.0]])
        scores = np.linspace(1, 0.1, len(masks))[:, None]
        name = f"{item['file_name'].rsplit('/', 1)[1][:-4]}.mat"
        savemat(folder / name, {"superpixels": superpixels, "labels": labels, "scores": scores})
    return folder


def test_regions_of_matlab_files_become_coco_results(data, mat, tmp_path, capsys):
    output, scores = tmp_path / "regions.json", tmp_path / "scores.json"
    assert run("mat", output, data, "--input", mat, "--evaluate", scores) == 0
    record = json.loads(scores.read_text())
    assert record["metrics"]["proposals_segm"]["AR@100"] == 100
    results = json.loads(output.read_text())
    assert set(results[0]) == {"image_id", "category_id", "segmentation", "score"}
    register_mask_proposals("KEY", [f"few_4={output}"])
    item = DatasetCatalog.get("few_4")[1]
    mapped = ImageMapper(small_cfg_with("INPUT: {MIN_SIZE_TEST: 128}"), is_train=False)(item)
    assert len(mapped["proposals"]) == len(item["annotations"])
    assert mapped["proposals"].proposal_masks.dtype == torch.uint8
    again = tmp_path / "again.json"
    assert run("json", again, data, "--input", output, "--max-proposals", 2) == 0
    best = json.loads(again.read_text())
    assert [entry for entry in results if entry in best] == best and len(best) <= 8
    # A missing file and one of another size.
    first = sorted(mat.iterdir())[0]
    shutil.move(first, tmp_path / "moved.mat")
    line = error_of(capsys, "mat", tmp_path / "b.json", data, "--input", str(mat))
    assert first.name in line and "No such file" in line
    savemat(first, {"masks": np.ones((64, 128, 2))})
    line = error_of(capsys, "mat", tmp_path / "b.json", data, "--input", str(mat))
    assert "is for an image of [64, 128]" in line and "has [128, 128]" in line


@pytest.mark.parametrize(
    "method, output, flags, message",
    [
        ("selective_search", "a.json", [], "--output is .*a.json; allowed with --method sele"),
        ("mat", "a.pkl", ["--input", "x"], "allowed with --method mat: a .json file"),
        ("mat", "a.json", [], "--input is for --method mat and json, which need it"),
        ("json", "a.json", ["--input", "nowhere.json"], "No such file.*nowhere.json"),
        ("mat", "a.json", ["--input", "nowhere"], "--input nowhere: no such folder"),
        ("selective_search", "a.pkl", ["--input", "x"], "--input is for --method mat"),
        ("selective_search", "a.pkl", ["--weights", "x"], "--weights is for --method edge_boxes"),
        ("selective_search", "a.pkl", ["--evaluate", "x.txt"], "--evaluate is x.txt; allowed"),
    ],
)
def test_wrong_arguments_are_reported_in_one_line(
    data, tmp_path, capsys, method, output, flags, message
):
    line = error_of(capsys, method, tmp_path / output, data, *flags)
    assert re.search(message, line), line
    assert not list(tmp_path.iterdir())


def test_a_missing_module_of_opencv_is_reported(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cv2, "ximgproc", None, raising=False)
    line = error_of(capsys, "selective_search", tmp_path / "a.pkl", data)
    assert "has no ximgproc" in line and not list(tmp_path.iterdir())
