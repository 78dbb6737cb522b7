"""The experiment on distorted digits: its data, its networks, its records and its tables."""

import json
import math

import pytest
import torch

from dev import attention_runs
from dev.attention_runs import NETWORKS, RATES, TRANSFORMS, DigitNetwork, error_of, train
from dev.attention_tables import PUBLISHED, attention_tables
from dev.distorted_digits import (
    CANVAS,
    GRIDS,
    SIZE,
    Digits,
    distort,
    load_digits,
    similarity_grid,
)
from rpe_d2.ops.spatial_transform import sample_grid
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Digits of scikit-learn, as where MNIST's are absent."""
    return load_digits(tmp_path_factory.mktemp("no_digits") / "digits.npz")


@pytest.fixture
def blob():
    """A bright spot at the right of the center of a digit."""
    image = torch.zeros(1, 1, SIZE, SIZE)
    image[..., 12:16, 20:24] = 1.0
    return image


def test_no_digit_is_trained_on_and_tested(parts):
    sizes = {name: len(part.labels) for name, part in parts.items()}
    assert sizes == {"test": 180, "search": 180, "train": 1437}
    rows = {
        name: {tuple(x.flatten().tolist()) for x in part.images} for name, part in parts.items()
    }
    assert not rows["train"] & rows["test"] and not rows["train"] & rows["search"]
    assert all(part.images.min() == 0 and part.images.max() == 1 for part in parts.values())


def test_the_digits_of_the_experiment_are_mnist(real_data):
    parts = load_digits(real_data("mnist_digits") / "digits.npz")
    assert [len(parts[name].labels) for name in ("train", "search", "test")] == [8000, 1000, 1000]


@pytest.mark.parametrize("distortion", GRIDS)
def test_distortions_follow_their_generator(parts, distortion):
    images = parts["test"].images
    first, same, other = (
        distort(images, distortion, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    side = CANVAS if distortion == "RTS" else SIZE
    assert first.shape == (len(images), 1, side, side)
    assert torch.equal(first, same) and not torch.equal(first, other)
    assert first.isfinite().all() and first.min() >= 0 and first.max() <= 1
    # The ink has the size that the scales give it; P also shrinks the middle and cuts digits.
    area = {"R": 1.0, "RTS": (1.2**3 - 0.7**3) / 1.5, "P": 0.77, "E": 0.77}[distortion]
    assert float(first.sum() / images.sum()) == pytest.approx(
        area, rel=0.2 if distortion == "P" else 0.1
    )


def test_a_digit_turns_scales_and_moves_as_told(blob):
    one, none = torch.ones(1), torch.zeros(1, 2)
    quarter = sample_grid(blob, similarity_grid(one * math.pi / 2, one, none, SIZE))
    torch.testing.assert_close(quarter, blob.rot90(-1, (2, 3)), atol=1e-4, rtol=0)
    shift = torch.tensor([[3.0, -5.0]])
    moved = sample_grid(blob, similarity_grid(one * 0, one, shift, SIZE))
    torch.testing.assert_close(moved, blob.roll((-5, 3), (2, 3)), atol=1e-4, rtol=0)
    # The spot is 8 pixels to the right of the center, and 12 at one and a half times the size.
    large = sample_grid(blob, similarity_grid(one * 0, one * 1.5, none, CANVAS))[0, 0]
    column = (large.sum(dim=0) * (torch.arange(CANVAS) + 0.5)).sum() / large.sum()
    assert float(column) == pytest.approx(CANVAS / 2 + 12, abs=0.1)
    assert float(large.sum()) == pytest.approx(16 * 1.5**2, rel=0.05)


def test_moved_corners_move_the_center_less():
    generator = torch.Generator().manual_seed(0)
    grids = GRIDS["P"](4000, generator) * SIZE / 2  # pixels of the digit
    middle = slice(SIZE // 2 - 1, SIZE // 2 + 1)
    center = grids[:, middle, middle].mean(dim=(1, 2))
    assert center.median(dim=0).values.abs().max() < 0.2
    assert 1.5 < float(center.abs().median()) < 4


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_every_network_takes_both_sizes_and_learns(parts, monkeypatch, network, transform):
    monkeypatch.setattr(attention_runs, "_WARMUP", 1e-6)
    monkeypatch.setattr(attention_runs, "BATCH", 16)
    torch.manual_seed(0)
    model = DigitNetwork(network, transform)
    few = Digits(parts["train"].images[:16], parts["train"].labels[:16])
    first = train(model, few, "RTS", 0.003, seconds=20.0, seed=0, max_iterations=1)
    last = train(model, few, "R", 0.003, seconds=20.0, seed=0, max_iterations=20)
    assert first["iterations"] == 1 and last["iterations"] == 20
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert last["loss"] < first["loss"]
    assert 0 <= error_of(model, few, "R") <= 100


def test_training_ends_with_its_time(parts):
    measures = train(DigitNetwork("FCN", "none"), parts["train"], "R", 0.001, seconds=0.3, seed=0)
    assert measures["iterations"] > 0
    assert 0.25 < measures["training_cpu_seconds"] < 1.5


def test_records_grow_run_by_run_and_are_complete(parts, tmp_path, monkeypatch):
    monkeypatch.setattr(attention_runs, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(attention_runs, "OUTPUT", tmp_path / "output")
    for name in ("SECONDS", "SEARCH_SECONDS"):
        monkeypatch.setattr(attention_runs, name, 0.02)
    monkeypatch.setattr(attention_runs, "NETWORKS", ("FCN",))
    monkeypatch.setattr(attention_runs, "TRANSFORMS", ("none", "tps"))
    few = {name: Digits(part.images[:20], part.labels[:20]) for name, part in parts.items()}
    with pytest.raises(FileNotFoundError, match="rates.json is missing: run python"):
        attention_runs.table(few, "E", [1])
    attention_runs.search(few)
    rates = attention_runs.best_rates(tmp_path / "results" / "rates.json")
    assert set(rates) == {"FCN none", "FCN tps"}
    attention_runs.table(few, "E", [1])
    path = tmp_path / "results" / "E_FCN.json"
    before = json.loads(path.read_text())
    attention_runs.table(few, "E", [1, 2])
    record = json.loads(path.read_text())
    assert record["seed"] == [1, 2] and record["command"] == "python dev/attention_runs.py E"
    for transform, runs in record["runs"].items():
        assert [run["seed"] for run in runs] == [1, 2]
        assert runs[:1] == before["runs"][transform]
        assert all(run["rate"] == rates[f"FCN {transform}"] for run in runs)
    assert (tmp_path / "output" / "E_FCN_tps.pth").is_file()
    assert str(tmp_path) not in path.read_text()


def records(folder, errors):
    """Writes records with three seeds, whose errors are those of a row give or take 0.1."""
    for network in NETWORKS:
        for distortion in GRIDS:
            runs = {
                transform: [
                    {
                        "seed": seed,
                        "error": errors(network, transform) + 0.1 * (seed - 2),
                        "parameters": 1234,
                        "rate": 0.001,
                        "iterations": 100 * seed,
                        "cpu_seconds": 54.0,
                    }
                    for seed in (1, 2, 3)
                ]
                for transform in TRANSFORMS
            }
            path = folder / f"{distortion}_{network}.json"
            path.write_text(json.dumps({"runs": runs}))


def test_tables_show_errors_and_the_order(tmp_path):
    levels = {"none": 0.0, "affine": 1.0, "projective": 0.05, "tps": -1.0}
    records(tmp_path, lambda network, transform: 5 - 2 * (network == "CNN") + levels[transform])
    tables = attention_tables(tmp_path)
    lines = tables["spatial transformers"].splitlines()
    assert lines[0] == "| network | R | RTS | P | E | published: R / RTS / P / E |"
    cell = "6.0 (5.9–6.1)"
    assert lines[3] == f"| ST-FCN, affine | {' | '.join([cell] * 4)} | 1.2 / 0.8 / 1.5 / 2.7 |"
    order = tables["spatial transformers, order"].splitlines()[2:]
    # Of the three transformations one is lower, one is higher, and one is not different.
    assert order[0].endswith("| 12 | 4 | 4 | 4 | undecided |")
    assert order[2].endswith("| 4 | 4 | 0 | 0 | reproduced |")
    assert order[5].endswith("| 6 | 6 | 0 | 0 | reproduced |")  # two published pairs are equal
    runs = tables["spatial transformers, runs"].splitlines()
    assert runs[2] == "| FCN | 1,234 | 0.001 | 100–300 | 0.90 (0.90–0.90) | 12 |"


def test_a_refuted_order_is_said_to_be_refuted(tmp_path):
    records(tmp_path, lambda network, transform: 1.0 + (transform != "none"))
    order = attention_tables(tmp_path)["spatial transformers, order"].splitlines()[2:]
    assert order[0].endswith("| 12 | 0 | 12 | 0 | refuted |")
    assert order[2].endswith("| 4 | 0 | 0 | 4 | undecided |")


def test_without_records_the_published_figures_stand_alone(tmp_path):
    tables = attention_tables(tmp_path)
    assert tables["spatial transformers"].splitlines()[0] == (
        "| network | published: R / RTS / P / E |"
    )
    assert len(tables["spatial transformers"].splitlines()) == 2 + len(PUBLISHED)


def test_every_record_has_all_its_runs():
    for path in (ROOT / "results" / "attention").glob("*.json"):
        record = json.loads(path.read_text())
        names, count = TRANSFORMS, 3  # seeds
        if path.stem == "rates":
            names = [f"{network} {transform}" for network in NETWORKS for transform in TRANSFORMS]
            count = len(RATES)
        assert {name: len(runs) for name, runs in record["runs"].items()} == dict.fromkeys(
            names, count
        )
