"""The comparison of losses on embeddings: choice of rates and rows, and its tables."""

import json

import pytest

from dev import embedding_runs
from dev.embedding_runs import RATES, ROWS, best_rows, chosen_rate
from dev.embedding_tables import ROWS as LABELS
from dev.embedding_tables import embedding_losses_table, embedding_order_table
from dev.result_tables import NOT_MEASURED
from rpe_d2.engine.setup import read_config
from tests.conftest import ROOT


def write(path, seed=1, **metrics):
    record = {
        "overrides": ["MODEL.RPE.LOSS", "spatial", "SOLVER.BASE_LR", "0.001", "SEED", str(seed)],
        "metrics": metrics,
        "iterations": 100,
        "cpu_seconds": 400,
        "training_cpu_seconds": 300,
        "seed": seed,
    }
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record))


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(embedding_runs, "RESULTS", tmp_path)
    return tmp_path


def test_rows_and_labels_are_the_same_and_their_overrides_are_keys():
    assert list(ROWS) == list(LABELS)
    for row in ROWS.values():
        for name, opts in row.items():
            config = f"{embedding_runs.DATA[name].config}.yaml"
            cfg = read_config(str(ROOT / "configs" / config), opts.split())
            assert cfg.MODEL.META_ARCHITECTURE == "PixelEmbeddingNet"


def test_the_rate_is_the_best_one_on_digits(results):
    for rate, score in zip(RATES, (40.0, 60.0, 60.0)):
        write(results / "rates" / f"spatial_{rate}.json", best_iou={"mean": score})
    assert chosen_rate("spatial") == RATES[1]
    (results / "rates" / f"spatial_{RATES[2]}.json").unlink()
    with pytest.raises(
        SystemExit, match="spatial has no record for the rates 0.003; run the group"
    ):
        chosen_rate("spatial")


def test_nuclei_get_the_rows_with_the_best_ranks(results):
    for number, row in enumerate(ROWS):
        for seed in (1, 2):
            digits, shapes = 10.0 * number + seed, 50.0 - (number == 0) * 20
            write(results / f"digits_{row}_{seed}.json", seed, best_iou={"mean": digits})
            write(results / f"shapes_{row}_{seed}.json", seed, segm={"AP50": shapes})
    # The sort is stable, so that ties on shapes are in the order of the rows.
    assert len(best_rows()) == 3 and "spherical" not in best_rows()
    (results / "shapes_ours_1.json").unlink()
    (results / "shapes_ours_2.json").unlink()
    with pytest.raises(SystemExit, match="shapes has no records of ours; run the group shapes"):
        best_rows()


def test_the_time_of_a_step_is_that_of_the_longest_run(results):
    assert embedding_runs._known_step("ours", "digits") == 0
    write(results / "rates" / "ours_0.001.json")
    assert embedding_runs._known_step("ours", "digits") == 3.0
    assert embedding_runs._known_step("ours", "shapes") == 0
    # Names of rows are not prefixes of each other.
    write(results / "digits_ours_votes_1.json")
    (results / "rates" / "ours_0.001.json").unlink()
    assert embedding_runs._known_step("ours", "digits") == 0


def test_the_table_has_a_row_for_each_loss_with_records(tmp_path):
    assert embedding_losses_table(tmp_path, "digits") == NOT_MEASURED
    for seed, score in ((1, 60.0), (2, 64.0)):
        scores = {"best_iou": {"mean": score, "predictions": 100}, "segm": {"AP": 30.0}}
        write(tmp_path / f"digits_spatial_{seed}.json", seed, **scores)
    heading, _, row = embedding_losses_table(tmp_path, "digits").splitlines()
    assert heading == (
        "| loss | mean best IoU | predictions | AP | rate | seeds | CPU minutes a run |"
    )
    assert row == (
        "| spatial | 62.0 (60.0–64.0) | 100.0 (100.0–100.0) | 30.0 (30.0–30.0) | 0.001 | 1, 2 "
        "| 5.0 |"
    )


def test_an_order_is_decided_where_ranges_do_not_overlap(tmp_path):
    assert embedding_order_table(tmp_path) == NOT_MEASURED
    values = {
        "spherical": ((50.0, 60.0), (10.0, 11.0)),
        "metric_learning": ((30.0, 40.0), (12.0, 13.0)),
        "associative": ((35.0, 20.0), (1.0, 2.0)),
    }
    for name, (digits, shapes) in values.items():
        for seed in (1, 2):
            write(
                tmp_path / f"digits_{name}_{seed}.json", seed, best_iou={"mean": digits[seed - 1]}
            )
            write(tmp_path / f"shapes_{name}_{seed}.json", seed, segm={"AP50": shapes[seed - 1]})
    rows = embedding_order_table(tmp_path).splitlines()[2:]
    assert rows == [
        "| spherical > metric_learning | digits, mean best IoU | +20.0 | reproduced |",
        "| metric_learning > associative | digits, mean best IoU | +7.5 | undecided |",
        "| spherical > metric_learning | shapes, AP50 | -2.0 | refuted |",
        "| metric_learning > associative | shapes, AP50 | +11.0 | reproduced |",
    ]
    (tmp_path / "shapes_associative_2.json").unlink()
    assert embedding_order_table(tmp_path).splitlines()[-1].endswith("| undecided |")
