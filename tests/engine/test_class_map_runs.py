"""Whole runs of networks that refine class maps, and that spread sparse labels and colors."""

import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from tests.helpers.training import train


@pytest.fixture
def data(tmp_path):
    """Entries of two data sets of two pictures with 8 classes, and of predictions for them."""
    random = np.random.default_rng(0)
    sets, coarse = [], []
    for name in ("runs_train", "runs_val"):
        for folder in ("images", "labels", "maps"):
            (tmp_path / name / folder).mkdir(parents=True)
        for stem in ("a", "b"):
            image = random.integers(0, 255, (64, 96, 3), dtype=np.uint8)
            labels = random.integers(0, 8, (4, 6), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
            maps = (labels == np.arange(8)[:, None, None]) * 200 + 7
            Image.fromarray(image).save(tmp_path / name / "images" / f"{stem}.png")
            Image.fromarray(labels).save(tmp_path / name / "labels" / f"{stem}.png")
            np.savez(tmp_path / name / "maps" / f"{stem}.npz", probabilities=maps.astype(np.uint8))
        sets.append(f"{name}={tmp_path / name / 'images'}:{tmp_path / name / 'labels'}")
        coarse.append(f"{name}={tmp_path / name / 'maps'}")
    yield (
        "DATASETS: {TRAIN: [runs_train], TEST: [runs_val], "
        f"SEM_SEG_DIRS: {json.dumps(sets)}, COARSE_DIRS: {json.dumps(coarse)}}}"
    )
    for name in ("runs_train", "runs_val"):
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


@pytest.mark.parametrize(
    "base, text",
    [
        ("paper/spn_voc_efficientnet_lite0.yaml", "{NETWORK: classes}"),
        ("paper/spn_voc_efficientnet_lite0.yaml", "{NETWORK: masks, GATE_MODE: softmax}"),
        ("spn/sparse_labels.yaml", "{NETWORK: sparse_labels}"),
    ],
)
def test_a_run_trains_and_evaluates(data, tmp_path, base, text):
    more = f"""
MODEL:
  TIMM: {{WEIGHTS: ""}}
  SEM_SEG_HEAD: {{NUM_CLASSES: 8}}
  SPN: {text}
INPUT: {{CROP: {{SIZE: [32, 32]}}}}
"""
    assert train(tmp_path / "out", base, f"{data}\n{more}") == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert 0 <= result["metrics"]["sem_seg"]["mIoU"] <= 100
    lines = (tmp_path / "out" / "metrics.json").read_text().splitlines()
    assert all(np.isfinite(json.loads(line).get("loss_sem_seg", 0)) for line in lines)


def test_a_run_on_colors_trains_and_evaluates(data, tmp_path):
    more = """
MODEL: {TIMM: {WEIGHTS: ""}, SPN: {NETWORK: sparse_color}}
"""
    assert train(tmp_path / "out", "spn/sparse_labels.yaml", f"{data}\n{more}") == 0
    metrics = json.loads((tmp_path / "out" / "result.json").read_text())["metrics"]
    assert 5 < metrics["sparse_color"]["PSNR"] < 60 and 0 < metrics["sparse_color"]["delta_E"] < 99
