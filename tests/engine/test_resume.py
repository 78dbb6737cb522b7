"""Interrupted runs: killed, stopped or out of data, they go on as if nothing had happened."""

import json
import os
import random
import re
import signal
import time
from pathlib import Path

import pytest
import torch

from rpe_d2.engine.hooks import StopOnSignal
from tests.helpers.runs import (
    INSTANT,
    assert_same_run,
    few_images,
    overrides,
    start_train_net,
    train_net,
)

STEPS = 24
OPTIONS = [
    "MODEL.DEVICE", "cpu", "DETERMINISTIC", "True", "DATALOADER.NUM_WORKERS", "1",
    "SOLVER.MAX_ITER", STEPS, "SOLVER.CHECKPOINT_PERIOD", "4", "SOLVER.EMA.ENABLED", "True",
    "TEST.EVAL_PERIOD", "6", "TEST.VALIDATION_LOSS", "True", "TEST.BEST_METRIC", "validation/total_loss",
    "INPUT.COLOR_JITTER", "0.3",
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> list:
    """Options for a small data set: few pictures to evaluate, so that runs are short."""
    return few_images(tmp_path_factory.mktemp("data"), 5)


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("uninterrupted")
    done = train_net("--config-file", INSTANT, "OUTPUT_DIR", output, "SEED", 5, *OPTIONS, *data)
    assert done.returncode == 0, done.stderr
    assert list(output.glob("events.out.tfevents.*"))  # TensorBoard
    return output


def test_killed_at_random_moments_and_resumed_it_is_the_same_run(data, uninterrupted, tmp_path):
    """kill -9 twice; the second time with a seed that is only known from the checkpoint."""
    rng = random.Random()  # other moments in every run of the tests
    arguments = ["--config-file", INSTANT]
    for attempt, checkpoint in enumerate(("model_0000003.pth", "model_0000011.pth")):
        resume = ["--resume"] * attempt
        seed = ["SEED", 5] if attempt == 0 else []
        process = start_train_net(
            *arguments, *resume, "OUTPUT_DIR", tmp_path, *seed, *OPTIONS, *data
        )
        process.wait_for(tmp_path / checkpoint)
        time.sleep(rng.uniform(0, 1.5))
        process.kill()
        assert process.finish().returncode == -signal.SIGKILL
    done = train_net(*arguments, "--resume", "OUTPUT_DIR", tmp_path, *OPTIONS, *data)
    assert done.returncode == 0, done.stderr
    assert "Starting training from iteration 0" not in done.stdout + done.stderr
    assert_same_run(tmp_path, uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("everywhere", [False, True])
def test_a_signal_saves_and_says_so(number, everywhere, data, uninterrupted, tmp_path):
    """Everywhere: sent to all processes of the run, those that read data too, and twice, as a scheduler may."""
    arguments = ["OUTPUT_DIR", tmp_path, "SEED", 5, *OPTIONS, *data]
    process = start_train_net("--config-file", INSTANT, *arguments)
    process.wait_for(tmp_path / "model_0000003.pth")
    if everywhere:
        os.killpg(process.pid, number)
        time.sleep(0.05)
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    stopped = process.finish(60)
    error = stopped.stderr
    assert stopped.returncode == 128 + number, error
    line = error.strip().splitlines()[-1]
    match = re.match(
        rf"stopped after iteration (\d+): {number.name}.*; saved (\S+), continue", line
    )
    assert match and Path(match[2]).name == f"model_{int(match[1]):07d}.pth", error
    assert "Traceback" not in error
    if everywhere or number == signal.SIGINT:
        return  # what follows is the same
    done = train_net("--config-file", INSTANT, "--resume", *arguments)
    assert done.returncode == 0, done.stderr
    assert f"Starting training from iteration {int(match[1]) + 1}" in done.stdout + done.stderr
    record = json.loads(sorted(tmp_path.glob("result*.json"))[-1].read_text())
    assert record["resumed_from"] == int(match[1]) + 1 < record["iterations"]
    assert_same_run(tmp_path, uninterrupted)


def test_a_second_signal_ends_at_once(data, tmp_path):
    process = start_train_net(
        "--config-file", INSTANT, "OUTPUT_DIR", tmp_path, *OPTIONS, *data,
        "SOLVER.ACCUMULATE_STEPS", 400, "DATALOADER.NUM_WORKERS", 0,
    )  # fmt: skip
    process.wait_for("Starting training")
    time.sleep(1)  # in the first, very long iteration
    process.send_signal(signal.SIGINT)
    time.sleep(StopOnSignal.SAME_SIGNAL_SECONDS + 0.5)
    process.send_signal(signal.SIGINT)
    stopped = process.finish(20)
    assert stopped.returncode == -signal.SIGINT, stopped.stderr


def test_broken_files_are_counted_and_skipped_while_training(data, tmp_path):
    broken = few_images(tmp_path, 7)
    picture = tmp_path / "4.png"
    picture.write_bytes(picture.read_bytes()[:2000])
    content = json.loads((tmp_path / "data.json").read_text())
    annotation = next(item for item in content["annotations"] if item["image_id"] == 5)
    annotation["segmentation"] = {"size": [128, 128], "counts": "not RLE"}
    (tmp_path / "data.json").write_text(json.dumps(content))
    options = [
        "DATASETS.COCO_JSONS", json.dumps(json.loads(broken[1]) + json.loads(data[1])),
        "DATASETS.TRAIN", "('few_7',)", "DATASETS.TEST", "('few_5',)", "SOLVER.MAX_ITER", 12, "OUTPUT_DIR",
    ]  # fmt: skip
    done = train_net("--config-file", INSTANT, *options, tmp_path / "out")
    log = done.stdout + done.stderr
    assert done.returncode == 0, done.stderr
    assert re.search(r"skipped, unreadable image \d: .*/4\.png", log), log
    assert re.search(r"skipped, unreadable image \d: .*/5\.png", log), log
    assert "unreadable image 3" not in log
    strict = train_net(
        "--config-file", INSTANT, *options, tmp_path / "strict", "DATALOADER.MAX_UNREADABLE", 1
    )
    assert strict.returncode == 2, strict.stderr
    line = strict.stderr.strip().splitlines()[-1]
    assert "unreadable images: 2; DATALOADER.MAX_UNREADABLE is 1" in line
    stop = int(re.search(r"stopped; saved \S+/model_(\d+)\.pth", strict.stdout)[1])
    saved = torch.load(tmp_path / f"strict/model_{stop:07d}.pth", weights_only=True)
    trainer = saved["trainer"]["_trainer"]
    assert trainer["images_seen"] == 2 * (stop + 1) and len(trainer["unreadable"]) == 1


def test_a_killed_data_process_is_said_to_be_dead(data, uninterrupted, tmp_path):
    arguments = ["OUTPUT_DIR", tmp_path, "SEED", 5, *OPTIONS, *data]
    process = start_train_net("--config-file", INSTANT, *arguments)
    process.wait_for(tmp_path / "model_0000003.pth")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for child in children:
        os.kill(int(child), signal.SIGKILL)
    stopped = process.finish(60)
    assert stopped.returncode == 2, stopped.stderr
    line = stopped.stderr.strip().splitlines()[-1]
    assert line.startswith("error: a data-loading process died"), stopped.stderr
    done = train_net("--config-file", INSTANT, "--resume", *arguments)
    assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path, uninterrupted)


def test_divergence_skips_then_stops_with_a_checkpoint(data, tmp_path):
    done = train_net(
        "--config-file", INSTANT, *data, "OUTPUT_DIR", tmp_path, "MODEL.DEVICE", "cpu",
        "SOLVER.OPTIMIZER", "SGD", "SOLVER.BASE_LR", "1e30", "SOLVER.CLIP_GRADIENTS.ENABLED", False,
        "SOLVER.WARMUP_ITERS", 0, "SOLVER.MAX_ITER", 9, "SOLVER.MAX_NONFINITE_STEPS", 2, "MODEL.RESNETS.NORM", "FrozenBN",
    )  # fmt: skip
    assert done.returncode == 2, done.stdout + done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert re.search(
        r"iteration \d+: .*; image ids .*; skipped steps: 2, SOLVER.MAX_NONFINITE_STEPS is 2", line
    )
    (saved,) = tmp_path.glob("model_*.pth")
    content = torch.load(saved, weights_only=True)
    assert all(value.isfinite().all() for value in content["model"].values())
    step = content["trainer"]["_trainer"]
    assert step["nonfinite_steps"] == 2
    assert step["images_seen"] == 2 * (content["iteration"] + 1)


def test_averaged_and_best_weights_evaluate(data, uninterrupted, tmp_path):
    for name in ("model_final.pth", "model_best.pth"):
        done = train_net(
            "--eval-only", "--config-file", INSTANT, *data, "OUTPUT_DIR", tmp_path,
            "MODEL.WEIGHTS", uninterrupted / name,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "Loading the averaged weights" in done.stdout + done.stderr
    run = json.loads((uninterrupted / "result.json").read_text())
    final = json.loads((tmp_path / "result.json").read_text())
    assert final["metrics"] == run["metrics"]


def test_averages_that_begin_with_a_resume_begin_with_its_weights(data, tmp_path):
    options = [
        "--config-file", INSTANT, *data, "OUTPUT_DIR", tmp_path, "MODEL.DEVICE", "cpu", "SOLVER.MAX_ITER", 2,
    ]  # fmt: skip
    found = []
    for more in ([], ["SOLVER.EMA.ENABLED", True]):
        done = train_net(*["--resume"] * len(more[:1]), *options, *more)
        assert done.returncode == 0, done.stderr
        found.append(json.loads((tmp_path / "result.json").read_text())["metrics"])
    assert found[0] == found[1]


def test_early_stopping_ends_in_good_order(data, tmp_path):
    """With a vanishing learning rate nothing improves after the first evaluation."""
    done = train_net(
        "--config-file", INSTANT, "OUTPUT_DIR", tmp_path, *OPTIONS, *data, "SOLVER.EMA.ENABLED", False,
        "SOLVER.BASE_LR", "1e-30", "SOLVER.EARLY_STOPPING_PATIENCE", 2, "TEST.EVAL_PERIOD", 3, "MODEL.RESNETS.NORM", "GN",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "validation/total_loss has not improved in 2 evaluations" in done.stderr
    assert (tmp_path / "model_0000008.pth").exists() and (tmp_path / "model_best.pth").exists()
    best = torch.load(tmp_path / "model_best.pth", weights_only=True)
    assert best["iteration"] == 2
    assert json.loads((tmp_path / "result.json").read_text())["iterations"] == 9
