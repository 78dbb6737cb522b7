"""tools/train_net.py in new processes, as users call it."""

import json

import pytest
import torch

from tests.helpers.runs import INSTANT, train_net


def test_instant_config_trains_evaluates_and_resumes(tmp_path):
    done = train_net("--config-file", INSTANT, "OUTPUT_DIR", tmp_path, "SEED", 7)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "result.json").read_text())
    assert record["seed"] == 7 and record["iterations"] == 4 and "train_net.py" in record["command"]
    assert set(record["metrics"]) == {"bbox", "segm"}
    assert {"AP", "AP50", "AR", "ARs"} <= set(record["metrics"]["segm"])
    assert "AP50" in done.stdout.splitlines()[-5]  # the output ends with the table
    assert (tmp_path / "model_final.pth").exists()

    again = train_net("--eval-only", "--resume", "--config-file", INSTANT, "OUTPUT_DIR", tmp_path)
    assert again.returncode == 0, again.stderr
    # The record of the training is kept.
    second = json.loads((tmp_path / "evaluation" / "result.json").read_text())
    assert second["metrics"] == record["metrics"] and second["iterations"] == 0


@pytest.mark.parametrize(
    "arguments, named",
    [
        (
            ["MODEL.RPE.NUM_CLASSES", "5"],
            ["MODEL.RPE.NUM_CLASSES is 5", "shapes_train has 4 classes"],
        ),
        (["MODEL.RPE.NO_SUCH_KEY", "5"], ["NO_SUCH_KEY"]),
        (["MODEL.RPE.STRIDE", "3"], ["MODEL.RPE.STRIDE is 3", "1, 2, 4, 8"]),
        (["MODEL.RPE.STRIDE", "'wide'"], ["MODEL.RPE.STRIDE"]),
        (["DATASETS.TRAIN", "('no_such_data',)"], ["DATASETS.TRAIN", "no_such_data", "COCO_JSONS"]),
        (["DATASETS.COCO_JSONS", "['mine=missing.json']"], ["DATASETS.COCO_JSONS", "missing.json"]),
        (["DATASETS.TRAIN", "()"], ["DATASETS.TRAIN is empty"]),
        (["SOLVER.OPTIMIZER", "LION"], ["SOLVER.OPTIMIZER", "SGD, ADAMW"]),
        (["SEED", "1", "--num-gpus", "2"], ["--num-gpus", "before"]),
    ],
)
def test_user_errors_are_one_line(arguments, named, tmp_path):
    done = train_net("--config-file", INSTANT, "OUTPUT_DIR", tmp_path, *arguments)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr, done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("error: ") and all(part in line for part in named), line
    assert not (tmp_path / "model_final.pth").exists()


def test_evaluation_needs_weights(tmp_path):
    done = train_net("--eval-only", "--config-file", INSTANT, "OUTPUT_DIR", tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "MODEL.WEIGHTS is empty" in done.stderr.strip().splitlines()[-1]
    assert not (tmp_path / "result.json").exists()


def test_missing_config_file_is_one_line(tmp_path):
    done = train_net("--config-file", tmp_path / "none.yaml")
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert "none.yaml" in done.stderr.strip().splitlines()[-1]


def test_infeasible_margin_is_reported_with_what_would_fit(tmp_path):
    options = "MODEL.RPE.MARGIN 0.2 MODEL.RPE.EMBEDDING_DIM 3 MODEL.RPE.NEGATIVE_RADIUS 0.".split()
    done = train_net("--config-file", INSTANT, "OUTPUT_DIR", tmp_path, *options)
    assert done.returncode == 0, done.stderr
    log = done.stdout + done.stderr
    assert "cannot separate the 12 groups" in log and "EMBEDDING_DIM 6 with MARGIN 0.50" in log


@pytest.mark.slow
def test_tiny_coco_trains_through_the_main_config(real_data, tmp_path):
    """The overrides name data sets, image sizes and batch size only."""
    coco = real_data("tiny_coco")
    jsons = [
        f"tiny_{split}={coco}/annotations/instances_{split}2017.json:{coco}/{split}2017"
        for split in ("train", "val")
    ]
    done = train_net(
        "--config-file", "configs/rpe_coco.yaml", "OUTPUT_DIR", tmp_path,
        "DATASETS.COCO_JSONS", json.dumps(jsons),
        "DATASETS.TRAIN", "('tiny_train',)", "DATASETS.TEST", "('tiny_val',)",
        "INPUT.MIN_SIZE_TRAIN", "(128,)", "INPUT.MAX_SIZE_TRAIN", 192,
        "INPUT.MIN_SIZE_TEST", 128, "INPUT.MAX_SIZE_TEST", 192,
        "SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 20,
        timeout=1200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "result.json").read_text())
    assert record["iterations"] == 20 and record["metrics"]["segm"]["AP"] is not None


@pytest.mark.skipif(torch.cuda.is_available(), reason="the machine has a GPU")
def test_a_config_for_gpus_runs_on_a_cpu(tmp_path):
    done = train_net(
        "--config-file", INSTANT, "OUTPUT_DIR", tmp_path,
        "MODEL.DEVICE", "cuda", "SOLVER.AMP.ENABLED", True, "SOLVER.MAX_ITER", 1,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "using cpu" in done.stdout + done.stderr and "float32" in done.stdout + done.stderr
