import json
import re
import shutil
from pathlib import Path

import pytest
from detectron2.config import CfgNode, get_cfg

from dev.docs_tables import config_table, generated_tables, update_pages
from dev.pair_loss_tables import (
    pair_loss_rows,
    pair_loss_runs_table,
    pair_loss_table,
)
from dev.paper_tables import (
    additions_table,
    holes_table,
)
from dev.result_tables import (
    Model,
    Score,
    ablation_table,
    markdown_table,
    model_table,
    runs_table,
    scores_table,
    seeds_table,
    select_columns,
)
from dev.scene_tables import deconvnet_table, scene_table
from rpe_d2 import add_rpe_config
from rpe_d2.config import all_keys

ROOT = Path(__file__).resolve().parents[1]


def flat_keys(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from flat_keys(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def test_tables_are_up_to_date():
    for page, text in update_pages(ROOT).items():
        assert page.read_text() == text, "run dev/update_docs.py"


def test_a_table_without_a_place_is_named(tmp_path):
    shutil.copytree(ROOT / "results", tmp_path / "results")
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    text = (ROOT / "README.md").read_text()
    (tmp_path / "README.md").write_text(text.replace("<!-- end of models -->", ""))
    with pytest.raises(ValueError, match="end of models.*0 of README.md"):
        update_pages(tmp_path)


def test_the_readme_is_short_and_tables_are_narrow():
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 170 and len(readme.encode()) <= 10_000
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        most = 6 if page.name == "README.md" else 8
        for line in page.read_text().splitlines():
            if line.startswith("|"):
                assert len(line.replace("\\|", "").split("|")) - 2 <= most, f"{page.name}: {line}"
            else:
                assert len(line) <= 100 or "](" in line, f"{page.name}: {line}"


def test_links_between_pages_lead_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        links = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
        assert all((page.parent / link).exists() for link in links), page.name


def test_every_added_key_is_in_the_table_with_a_meaning():
    cfg = get_cfg()
    before = set(flat_keys(cfg))
    add_rpe_config(cfg)
    lines = config_table().splitlines()
    rows = [re.split(r"(?<!\\)\|", line) for line in lines if line.startswith("| `")]
    assert sorted(row[1].strip(" `") for row in rows) == sorted(set(flat_keys(cfg)) - before)
    assert all(len(row) == 6 and len(row[4].strip()) > 10 for row in rows)
    titles = [line for line in lines if line.startswith("## ")]
    assert titles[0] == "## Top level" and len(titles) == len(set(titles)) == len(all_keys())


def test_tables_of_runs_hold_the_numbers_of_the_records(tmp_path):
    overrides = "SEED 3 OUTPUT_DIR out MODEL.RPE.STRIDE 8 DATASETS.TRAIN x"
    record = {
        "config": "configs/a/run.yaml",
        "overrides": overrides.split(),
        "metrics": {
            "segm": {"AP": 12.34, "AP50": 50, "AP75": 1, "AR": 2},
            "segm_touching": {"AP": 9, "AP50": 8},
        },
        "iterations": 7,
        "seconds": 90,
        "cpu_seconds": 120,
        "hardware": "here",
        "seed": 3,
        "commit": "abc",
    }
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.json").write_text(json.dumps(record))
    row = "| a/run, MODEL.RPE.STRIDE 8 | 12.3 | 50.0 | 1.0 | 2.0 | 9.0 | 8.0 "
    assert f"{row}| [record](results/sub/b.json) |" in scores_table(tmp_path, "sub")
    row = "| a/run, MODEL.RPE.STRIDE 8 | 7 | 1.5 | 2 | here | 3 | `abc` |"
    assert row in runs_table(tmp_path, "sub")
    assert "b.json" not in scores_table(tmp_path)
    by_file = scores_table(tmp_path, "sub", by_file=True)
    assert by_file.splitlines()[-1].startswith("| b | 12.3 | 50.0 |")
    # Only the time of the last part of a resumed run is known. Columns without values are left out.
    (tmp_path / "sub" / "b.json").write_text(json.dumps({**record, "resumed_from": 4}))
    assert "STRIDE 8 | 7 | here | 3 |" in runs_table(tmp_path, "sub")


def test_the_models_table_shows_means_ranges_and_the_number_of_seeds(tmp_path):
    def write(name, seed, iterations, **scores):
        record = {
            "metrics": {task: {"AP": AP} for task, AP in scores.items()},
            "iterations": iterations,
            "cpu_seconds": 600,
            "training_cpu_seconds": 60 * seed,
            "seed": seed,
        }
        (tmp_path / f"{name}_{seed}.json").write_text(json.dumps(record))

    for seed in (1, 2, 3):
        write("new", seed, 5, segm=40.0 + seed, segm_boundary=30.0)
    write("old", 4, 5, segm=1.0)
    write("control", 5, 0, segm=9.0)
    models = [
        Model("a", "x", ("new_*.json", "old_*.json")),
        Model("b", "x", ("newer_*.json", "old_*.json")),
        Model("c", "y", ("control_*.json",)),
    ]
    assert model_table(tmp_path, models).splitlines() == [
        "| model | data | AP | boundary AP | CPU minutes | seeds |",
        "|---|---|---|---|---|---|",
        "| a | x | 42.0 (41.0–43.0) | 30.0 (30.0–30.0) | 2 | 3 |",
        "| b | x | 1.0 | – | 4 | 1 |",
        "| c | y | 9.0 | – | – | 1 |",
    ]
    with pytest.raises(ValueError, match="has no record for none.json or none_2.json"):
        model_table(tmp_path, [Model("d", "x", ("none.json", "none_2.json"))])


def test_columns_of_a_table_are_selected_by_their_headings():
    table = markdown_table(["model", "AP", "AR", "empty"], [["a", "1", "2", "–"]])
    assert table == "| model | AP | AR |\n|---|---|---|\n| a | 1 | 2 |"
    selected = select_columns(table, ["model", "AR", "missing"])
    assert selected == "| model | AR |\n|---|---|\n| a | 2 |"


def test_rows_of_the_search_have_names_of_their_own():
    rows = generated_tables(ROOT / "results")["search"].splitlines()[2:]
    assert len(rows) > 1 and len({row.split("|")[1] for row in rows}) == len(rows)


def test_seeds_table_has_means_and_ranges_over_seeds(tmp_path):
    for seed, recall in ((1, 40.0), (2, 44.0), (3, 42.6)):
        record = {
            "config": "configs/proposals/x.yaml",
            "overrides": ["SEED", str(seed), "OUTPUT_DIR", f"out{seed}"],
            "metrics": {
                "proposals_segm_of_filled_boxes": {"AR@10": recall, "AR@100": 50.0},
                "proposals_bbox": {"AR@10": 30.0} if seed < 3 else {},
            },
            "iterations": 5,
            "cpu_seconds": 600,
            "training_cpu_seconds": 60 * seed,
            "seed": seed,
        }
        (tmp_path / f"{seed}.json").write_text(json.dumps(record))
    longer = {**record, "iterations": 10, "resumed_from": 5}
    longer["metrics"] = {**record["metrics"], "proposals_bbox": {"AR@10": 31.0}}
    (tmp_path / "longer.json").write_text(json.dumps(longer))
    record["metrics"] = {"segm": {"AP": 30.0}}
    record["config"] = "configs/proposals/rcnn.yaml"
    (tmp_path / "rcnn.json").write_text(json.dumps(record))
    masks = Score("proposals_segm", "AR@10", "mask")
    boxes = Score("proposals_bbox", "AR@10", "box")
    assert seeds_table(tmp_path.glob("*.json"), [masks, boxes]).splitlines() == [
        "| run | mask | box | seeds | iterations | CPU minutes a run |",
        "|---|---|---|---|---|---|",
        "| proposals/x (masks: filled boxes) | 42.2 (40.0–44.0) | – | 1, 2, 3 | 5 | 2.0 |",
        "| proposals/x (masks: filled boxes) | 42.6 | 31.0 | 3 | 10 | – |",
    ]
    score = Score("segm", "AP", "AP")
    _, _, row = seeds_table(tmp_path.glob("*.json"), [score]).splitlines()
    assert row == "| proposals/rcnn | 30.0 | 3 | 5 | 3.0 |"
    (tmp_path / "rcnn.json").rename(tmp_path / "detector_3.json")
    _, _, row = seeds_table(tmp_path.glob("*.json"), [score], by_file=True).splitlines()
    assert row == "| detector | 30.0 | 3 | 5 | 3.0 |"
    del record["training_cpu_seconds"]  # an older record
    (tmp_path / "detector_3.json").write_text(json.dumps(record))
    _, _, row = seeds_table(tmp_path.glob("*.json"), [score], by_file=True).splitlines()
    assert row == "| detector | 30.0 | 3 | 5 | 10.0 in all |"


def test_additions_table_has_a_row_per_form_of_the_method(tmp_path):
    run = {"metrics": {"segm": {"AP": 40.0, "AP50": 60.0}, "segm_touching": {"AP": 9.0}}, "seed": 1}
    (tmp_path / "shapes_votes_1.json").write_text(json.dumps(run))
    (tmp_path / "nuclei_votes_1.json").write_text(json.dumps(run))
    table = additions_table(tmp_path, {"paper": "as in the paper", "votes": "+ votes"})
    assert table.splitlines()[2:] == [
        "| as in the paper | – | – | – | – | – |",
        "| + votes | 40.0 | 60.0 | 40.0 | 60.0 | 9.0 |",
    ]


def test_holes_table_has_a_row_per_head_and_weight(tmp_path):
    (tmp_path / "holes").mkdir()
    for seed, mIoU, count in ((1, 40.0, 0.25), (2, 44.0, 0.5)):
        name = f"holes_fcn_8s_1_{seed}.json"
        run = {"metrics": {"sem_seg": {"mIoU": mIoU}}, "seed": seed}
        (tmp_path / name).write_text(json.dumps(run))
        holes = {"holes_an_image": count, "pixels_in_holes_an_image": 3, "true_holes_an_image": 0}
        (tmp_path / "holes" / name).write_text(json.dumps(holes))
    _, _, row = holes_table(tmp_path).splitlines()
    assert row == (
        "| fcn_8s | 1 | 42.0 (40.0–44.0) | 0.38 (0.25–0.50) | 3.00 (3.00–3.00) | 0.00 (0.00–0.00) "
        "| 1, 2 |"
    )


def test_the_scene_table_has_published_rows_and_runs(tmp_path):
    (tmp_path / "holes").mkdir()
    scores = {"pACC": 75.5, "mACC": 62.25, "mIoU": 50.0}
    run = {"metrics": {"sem_seg": scores}, "seed": 1, "iterations": 9, "training_cpu_seconds": 3000}
    (tmp_path / "efficientnet_1_1.json").write_text(json.dumps(run))
    evaluation = {**run, "iterations": 0, "cpu_seconds": 9}
    (tmp_path / "multi_scale_superpixels_1.json").write_text(json.dumps(evaluation))
    holes = {"holes_an_image": 3.04, "true_holes_an_image": 2}
    (tmp_path / "holes" / "efficientnet_1_1.json").write_text(json.dumps(holes))
    lines = scene_table(tmp_path).splitlines()
    assert "| rCNN2, two passes, published | 79.5 | 69.5 | – | – | – | – |" in lines
    assert lines[-2:] == [
        "| multi-scale network + superpixels | 75.5 | 62.2 | 50.0 | – | 1 | – |",
        "| EfficientNet-Lite0 (ImageNet), pair loss | 75.5 | 62.2 | 50.0 | 50 | 1 | 3.0 (2.0) |",
    ]
    ways = {"FCN-8s": scores, "DeconvNet": scores}
    (tmp_path / "deconvnet_1.json").write_text(json.dumps({"scores": ways, "seed": 1}))
    *_, row = deconvnet_table(tmp_path).splitlines()
    assert row == "| DeconvNet | 75.5 | 62.2 | 50.0 | 1 |"


def test_ablation_table_calls_overlapping_ranges_no_difference(tmp_path):
    def write(name, seed, AP, *overrides, iterations=5):
        record = {
            "overrides": ["SEED", str(seed), "SOLVER.IMS_PER_BATCH", "2", *overrides],
            "metrics": {"segm": {"AP": AP, "AP50": 60.0}, "segm_touching": {"AP": 9.0}},
            "iterations": iterations,
            "cpu_seconds": 600,
            "training_cpu_seconds": 60,
            "seed": seed,
        }
        (tmp_path / f"{name}_{seed}.json").write_text(json.dumps(record))

    for seed, base, close, far, mixed in ((1, 40.0, 41.0, 39.0, 39.0), (2, 42.0, 45.0, 41.5, 42.5)):
        write("base", seed, base)
        write("close", seed, close, "MODEL.RPE.STRIDE", "4")
        # Tried on the weights of "base", whose seeds differ more than these settings do.
        write("far", seed, far, "MODEL.RPE.QUALITY", "False", iterations=0)
        write("mixed", seed, mixed, "MODEL.RPE.SPLIT_COMPONENTS", "True", iterations=0)
    _, _, base, far, mixed, close = ablation_table(tmp_path).splitlines()
    assert base.startswith("| as configured | 41.0 (40.0–42.0) | – | 60.0 (60.0–60.0) |")
    assert base.endswith("| 1, 2 | 5 | 1.0 |")
    assert far.startswith(
        "| MODEL.RPE.QUALITY False (at inference only) | 40.2 (39.0–41.5) | -0.8 |"
    )
    assert "| 40.8 (39.0–42.5) | none (-0.2) |" in mixed
    assert close.startswith("| MODEL.RPE.STRIDE 4 | 43.0 (41.0–45.0) | none (+2.0) |")


def test_pair_loss_table_marks_differences_beyond_the_spread_over_seeds(tmp_path):
    def write(weight, seed, mean, boundary, *more):
        record = {
            "config": "configs/semantic/fcn_8s_shapes.yaml",
            "overrides": [
                "SEED", str(seed), "MODEL.SEM_SEG_HEAD.PAIR_LOSS_WEIGHT", weight, *more
            ],  # fmt: skip
            "metrics": {"sem_seg": {"mIoU": mean}, "sem_seg_boundary": {"mIoU": boundary}},
            "iterations": 300,
            "cpu_seconds": 600,
            "training_cpu_seconds": 120 if weight == "0.0" else 150,
            "seed": seed,
        }
        (tmp_path / f"{weight}_{seed}.json").write_text(json.dumps(record))

    for seed, without, with_loss in ((1, 40.0, 44.0), (2, 42.0, 45.0)):
        write("0.0", seed, without, without - 20)
        write("1.0", seed, with_loss, without - 21)
    write("0.3", 2, 41.0, 23.0, "MODEL.RPE.PAIR_LOSS_FORM", "squared_hinge")
    rows = pair_loss_rows({"noisy": tmp_path})
    *_, hinge, row = pair_loss_table(rows, "sem_seg").splitlines()
    setting = "| noisy | fcn_8s_shapes | 1 | 300 "
    assert row == (f"{setting}| 41.0 (40.0–42.0) | 44.5 (44.0–45.0) | **+3.5** (2.0) | 2 of 2 |")
    hinge_setting = "| noisy | fcn_8s_shapes | 0.3 squared_hinge | 300 "
    assert hinge == f"{hinge_setting}| 42.0 | 41.0 | -1.0 (–) | 0 of 1 |"
    *_, hinge, row = pair_loss_table(rows, "sem_seg_boundary").splitlines()
    assert row == f"{setting}| 21.0 (20.0–22.0) | 20.0 (19.0–21.0) | -1.0 (2.0) | 0 of 2 |"
    assert hinge == f"{hinge_setting}| 22.0 | 23.0 | +1.0 (–) | 1 of 1 |"
    *_, hinge, row = pair_loss_runs_table(rows).splitlines()
    assert row == f"{setting}| 1, 2 | 2.0 | 2.5 |"
    assert hinge == f"{hinge_setting}| 2 | 2.0 | 2.5 |"
    write("0.0", 3, 41.0, 20.0)
    alone = "fcn_8s_shapes with SEED 3 has no run that differs in nothing but .*WEIGHT"
    with pytest.raises(ValueError, match=alone):
        pair_loss_rows({"noisy": tmp_path})
    write("1.0", 3, 41.0, 20.0, "SOLVER.BASE_LR", "1.0")
    with pytest.raises(ValueError, match=alone):
        pair_loss_rows({"noisy": tmp_path})


def test_every_recorded_result_is_complete():
    for path in (ROOT / "results").glob("**/*.json"):
        record = json.loads(path.read_text())
        measured = ["commit", "hardware", "finished"]
        if "benchmark" in record:
            required = [(record, ["command", "settings", *measured])]
        elif "rows" in record:  # of tools/compare.py: each model was measured at its own time
            required = [(record, ["command", "dataset", "images"])]
            required += [(row, ["name", "seconds_per_image", *measured]) for row in record["rows"]]
        else:
            required = [(record, ["command", "config", "overrides", "seed", "seconds", *measured])]
        for part, keys in required:
            for key in keys:
                assert part.get(key) not in (None, ""), f"{path.name} lacks {key}"


def test_every_test_that_the_page_on_robust_training_names_exists():
    text = (ROOT / "docs" / "robust_training.md").read_text()
    named = re.findall(r"`(test_\w+)::(test_\w+)`", text)
    assert len(named) > 10
    for file, name in named:
        (path,) = (ROOT / "tests").glob(f"**/{file}.py")
        assert f"def {name}(" in path.read_text(), f"{file}::{name}"
