"""What the scripts in dev/ compare the propagation networks with, and their tables."""

import json

import numpy as np
import pytest
from skimage.segmentation import random_walker

from dev.result_tables import NOT_MEASURED
from dev.sparse_opponents import nearest, walk_labels, walk_values
from dev.spn_runs import CHANGES, RUNS
from dev.spn_tables import spn_tables
from rpe_d2.engine.setup import read_config
from tests.conftest import ROOT


@pytest.fixture
def example():
    """An image with an edge, and five known pixels."""
    random = np.random.default_rng(0)
    image = random.integers(0, 60, (14, 18, 3)).astype(np.uint8)
    image[:, 7:] += 150
    known = np.zeros((14, 18), bool)
    for place in ((3, 2), (10, 5), (2, 12), (12, 16), (7, 9)):
        known[place] = True
    return image, known


def test_nearest_by_distance_to_every_known_pixel(example):
    _, known = example
    values = np.random.default_rng(1).random((14, 18, 2))
    found = nearest(values, known)
    places = np.argwhere(known)
    for pixel in np.ndindex(14, 18):
        distances = ((places - pixel) ** 2).sum(axis=1)
        candidates = places[distances == distances.min()]
        assert any(np.array_equal(found[pixel], values[tuple(p)]) for p in candidates)


def test_walks_reach_values_with_the_probabilities_of_scikit_image(example):
    image, known = example
    values = np.random.default_rng(1).random((14, 18, 2))
    seeds = np.zeros(known.shape, np.int32)
    seeds[known] = np.arange(1, 6)
    gray = image[..., 0]
    probabilities = random_walker(
        gray / 255.0, seeds, beta=130, mode="bf", return_full_prob=True
    )  # (5, H, W)
    expected = np.einsum("khw,kc->hwc", probabilities, values[known])
    np.testing.assert_allclose(walk_values(gray, values, known, 130), expected, atol=1e-3)


def test_walked_labels_stop_at_the_edge(example):
    image, known = example
    labels = np.zeros(known.shape, np.int64)
    labels[:, 7:] = 4
    given = np.where(known, labels, 255)
    assert (walk_labels(image, given, known, 3000.0) == labels).mean() > 0.95
    one = known & (labels == 4)
    assert (walk_labels(image, given, one, 130.0) == 4).all()


def test_runs_differ_from_the_network_as_drawn_in_one_thing():
    for name, run in RUNS["shapes"].items():
        keys = run.opts.split()[2:]
        assert len(keys) == (0 if name == "shapes_as_drawn" else len(CHANGES[name[7:]].split()))
        changed = {key for key in keys[::2] if not key.endswith("GATE_MODE")}
        assert len(changed) == (name != "shapes_as_drawn"), name
    assert {run.minutes for run in RUNS["shapes"].values()} == {4}
    for runs in RUNS.values():
        for run in runs.values():
            cfg = read_config(str(ROOT / "configs" / f"{run.config}.yaml"), run.opts.split())
            assert len(cfg.DATASETS.COARSE_DIRS) == 2 and cfg.SOLVER.OPTIMIZER == "ADAMW"


def write(path, scores, seed=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    tasks = ("sem_seg", "sem_seg_boundary", "sem_seg_boundary_2px")
    record = {
        "metrics": {task: {"mIoU": score} for task, score in zip(tasks, scores)},
        "seed": seed,
        "iterations": 5,
        "cpu_seconds": 300,
        "training_cpu_seconds": 240,
    }
    path.write_text(json.dumps(record))


def test_tables_without_records_have_the_published_rows(tmp_path):
    tables = spn_tables(tmp_path)
    assert "| as drawn | 89.3 | 69.86 |" in tables["class propagation"]
    assert len(tables["class propagation"].splitlines()) == 5
    assert all(tables[name] == NOT_MEASURED for name in tables if "VOC" in name)


def test_tables_of_records(tmp_path):
    folder = tmp_path / "class_propagation"
    for seed, score in ((1, 50.0), (2, 52.0)):
        write(folder / f"shapes_as_drawn_{seed}.json", (score, 40.0, 30.0), seed)
    write(folder / "shapes_logits_1.json", (49.0, 40.0, 29.0))
    write(folder / "voc_ours_1.json", (74.0, 61.0, 44.0))
    write(folder / "voc_ours_dm05_1.json", (70.0, 60.0, 43.0))
    write(tmp_path / "refine" / "voc_base_mnv2.json", (73.5, 60.1, 43.2))
    part = {"error": 0.05}
    scores = {"300": {"share": 0.0023, "nearest": part, "random_walker": part, "network": part}}
    (tmp_path / "sparse").mkdir()
    (tmp_path / "sparse" / "labels.json").write_text(json.dumps({"scores": scores}))
    tables = spn_tables(tmp_path)
    assert tables["class propagation"].splitlines()[3:] == [
        "| as drawn | 51.0 (50.0–52.0) | 30.0 (30.0–30.0) | 1, 2 | 4.0 | 89.3 | 69.86 |",
        "| one-way, `clipped` | – | – | – | – | 87.09 | 60.95 |",
        "| logits as input | 49.0 | 29.0 | 1 | 4.0 | – | – |",
    ]
    assert tables["class propagation, VOC"].splitlines()[2:] == [
        "| MobileNetV2 | base | 73.5 | 60.1 | 43.2 |",
        "| MobileNetV2 | network `masks` | 74.0 | 61.0 | 44.0 |",
        "| MobileNetV2, half as wide | network `masks` | 70.0 | 60.0 | 43.0 |",
    ]
    assert tables["sparse labels"].splitlines()[2:] == ["| 0.230 | 5.00 | 5.00 | 5.00 |"]
