import json
from pathlib import Path

from detectron2.config import get_cfg

from rpe_d2 import add_rpe_config
from rpe_d2.engine.readme import ablation_table, config_table, results_table, update_readme

ROOT = Path(__file__).resolve().parents[2]


def flat_keys(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, type(node)):
            yield from flat_keys(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def test_readme_tables_are_up_to_date():
    text = (ROOT / "README.md").read_text()
    assert update_readme(text, ROOT / "results") == text, "run tools/update_readme.py"


def test_every_added_key_is_in_the_table_with_a_meaning():
    cfg = get_cfg()
    before = set(flat_keys(cfg))
    add_rpe_config(cfg)
    rows = [row.split("|") for row in config_table().splitlines()[2:]]
    assert {row[1].strip().strip("`") for row in rows} == set(flat_keys(cfg)) - before
    assert all(len(row[3].strip()) > 10 for row in rows)


def record(score, seed=3, **changes):
    return {
        "title": "a run",
        "config": "configs/a.yaml",
        "overrides": ["SEED", str(seed), "OUTPUT_DIR", f"out/{seed}"],
        "metrics": {
            "segm": {"AP": score, "AP50": 50, "AP75": 1, "AR": 2},
            "segm_touching": {"AP": 9, "AP50": 8},
        },
        "iterations": 7,
        "seconds": 90,
        "hardware": "here",
        "seed": seed,
        "commit": "abc",
        **changes,
    }


def test_results_table_holds_the_numbers_of_the_records(tmp_path):
    (tmp_path / "b.json").write_text(json.dumps(record(12.34)))
    row = "| a run | 12.3 | 50.0 | 1.0 | 2.0 | 9.0 | 8.0 | 7 | 1.5 | here | 3 | abc |"
    assert row in results_table(tmp_path)


def test_ablations_are_averaged_over_seeds_and_compared_with_the_base(tmp_path):
    folder = tmp_path / "ablations"
    folder.mkdir()
    runs = {
        "": (20.0, 22.0, 24.0),
        "MODEL.RPE.STRIDE": (10.0, 11.0, 12.0),  # ranges apart
        "MODEL.RPE.VOTES": (23.0, 25.0, 27.0),  # overlapping
    }
    for key, scores in runs.items():
        for seed, score in enumerate(scores):
            item = record(score, seed)
            item["overrides"] += [key, "8"] if key else []
            (folder / f"{key or 'base'}_{seed}.json").write_text(json.dumps(item))
    base, stride, votes = ablation_table(tmp_path).splitlines()[2:]
    assert base.startswith("| configs/a.yaml | 22.0 | 20.0–24.0 | – |")
    assert stride.startswith("| MODEL.RPE.STRIDE 8 | 11.0 | 10.0–12.0 | -11.0 |")
    assert votes.startswith("| MODEL.RPE.VOTES 8 | 25.0 | 23.0–27.0 | none (+3.0) |")
    assert "| 0, 1, 2 | 7 | 1.5 |" in votes


def test_every_recorded_result_is_complete():
    for path in (ROOT / "results").glob("**/*.json"):
        record = json.loads(path.read_text())
        keys = ["command", "commit", "hardware", "finished"]
        keys += (
            ["settings"] if "benchmark" in record else ["config", "overrides", "seed", "seconds"]
        )
        for key in keys:
            assert record.get(key) not in (None, ""), f"{path.name} lacks {key}"
