"""Runs that are killed, stopped or fail on data resume as if nothing had happened."""

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
from rpe_d2.utils.files import locked_folder
from tests.helpers.runs import (
    DIVERGING,
    INSTANT,
    assert_same_run,
    few_images,
    overrides,
    start_train_net,
    train_net,
)

OPTIONS = overrides(
    """
    MODEL: {DEVICE: cpu}
    DETERMINISTIC: True
    DATALOADER: {NUM_WORKERS: 1}
    SOLVER: {MAX_ITER: 24, CHECKPOINT_PERIOD: 4, EMA: {ENABLED: True}}
    TEST: {EVAL_PERIOD: 6, VALIDATION_LOSS: True, BEST_METRIC: validation/total_loss}
    INPUT: {COLOR_JITTER: 0.3}
    """
)
# With a vanishing learning rate nothing improves after the first evaluation.
STAGNATING = overrides(
    """
    MODEL: {RESNETS: {NORM: GN}}
    SOLVER: {BASE_LR: 1.0e-30, EARLY_STOPPING_PATIENCE: 2, EMA: {ENABLED: False}}
    TEST: {EVAL_PERIOD: 3}
    """
)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> list:
    """Overrides for a data set of few images, so that runs are short."""
    return few_images(tmp_path_factory.mktemp("data"), 5)


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("uninterrupted")
    done = train_net("--config-file", INSTANT, "OUTPUT_DIR", output, "SEED", 5, *OPTIONS, *data)
    assert done.returncode == 0, done.stderr
    assert list(output.glob("events.out.tfevents.*"))  # TensorBoard
    return output


def test_a_run_killed_at_random_moments_resumes_to_the_same_result(data, uninterrupted, tmp_path):
    """Killed twice by SIGKILL; the second time, the seed is known from the checkpoint alone."""
    rng = random.Random()  # different moments each time the test runs
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


@pytest.mark.parametrize(
    "number, everywhere",
    [
        (signal.SIGTERM, False),
        (signal.SIGINT, True),
        pytest.param(signal.SIGINT, False, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, True, marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_and_says_so(number, everywhere, data, uninterrupted, tmp_path):
    """Everywhere: sent twice to all processes, those that read data too, as a scheduler may do."""
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
        return  # the rest is the same for all of them
    done = train_net("--config-file", INSTANT, "--resume", *arguments)
    assert done.returncode == 0, done.stderr
    assert f"Starting training from iteration {int(match[1]) + 1}" in done.stdout + done.stderr
    record = json.loads(sorted(tmp_path.glob("result*.json"))[-1].read_text())
    assert record["resumed_from"] == int(match[1]) + 1 < record["iterations"]
    assert_same_run(tmp_path, uninterrupted)


def test_a_second_signal_ends_at_once(data, tmp_path):
    options = overrides("{SOLVER: {ACCUMULATE_STEPS: 400}, DATALOADER: {NUM_WORKERS: 0}}")
    process = start_train_net(
        "--config-file", INSTANT, "OUTPUT_DIR", tmp_path, *OPTIONS, *data, *options
    )
    process.wait_for("Starting training")
    time.sleep(1)  # in the first, very long iteration
    process.send_signal(signal.SIGINT)
    time.sleep(StopOnSignal.SAME_SIGNAL_SECONDS + 0.5)
    process.send_signal(signal.SIGINT)
    stopped = process.finish(20)
    assert stopped.returncode == -signal.SIGINT, stopped.stderr


def test_a_folder_belongs_to_one_training_at_a_time(data, tmp_path):
    options = ["--config-file", INSTANT, "OUTPUT_DIR", tmp_path, *OPTIONS, *data]
    options += overrides("{SOLVER: {ACCUMULATE_STEPS: 400}, DATALOADER: {NUM_WORKERS: 1}}")
    first = start_train_net(*options)
    first.wait_for("Starting training")
    before = (tmp_path / "config.yaml").read_bytes(), (tmp_path / "log.txt").read_bytes()
    second = train_net(*options, "SEED", 7)
    assert second.returncode == 2, second.stderr
    assert "another training is running" in second.stderr.strip().splitlines()[-1]
    assert (tmp_path / "config.yaml").read_bytes() == before[0]
    assert (tmp_path / "log.txt").read_bytes().startswith(before[1])
    first.kill()
    first.wait()
    with locked_folder(tmp_path):  # the kernel released the lock, though a worker may still live
        pass


def test_damaged_files_are_counted_and_skipped_in_training(data, tmp_path):
    damaged = few_images(tmp_path, 7)
    picture = tmp_path / "4.png"
    picture.write_bytes(picture.read_bytes()[:2000])
    (tmp_path / "5.png").write_bytes(b"no image")
    entries = json.loads(damaged[1]) + json.loads(data[1])
    options = [
        *("DATASETS.COCO_JSONS", json.dumps(entries)),
        *overrides("DATASETS: {TRAIN: ['few_7'], TEST: ['few_5']}"),
        *overrides("SOLVER: {MAX_ITER: 12}"),
        "OUTPUT_DIR",
    ]
    done = train_net("--config-file", INSTANT, *options, tmp_path / "out")
    log = done.stdout + done.stderr
    assert done.returncode == 0, done.stderr
    assert re.search(r"skipped unreadable image \d: .*/4\.png", log), log
    assert re.search(r"skipped unreadable image \d: .*/5\.png", log), log
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


def test_a_damaged_annotation_is_refused_before_training_starts(data, tmp_path):
    damaged = few_images(tmp_path, 7)
    content = json.loads((tmp_path / "data.json").read_text())
    annotation = next(item for item in content["annotations"] if item["image_id"] == 5)
    annotation["segmentation"] = {"size": [128, 128], "counts": "not RLE"}
    (tmp_path / "data.json").write_text(json.dumps(content))
    entries = json.loads(damaged[1]) + json.loads(data[1])
    options = ["DATASETS.COCO_JSONS", json.dumps(entries), "OUTPUT_DIR", tmp_path / "out"]
    options += overrides("DATASETS: {TRAIN: ['few_7'], TEST: ['few_5']}")
    done = train_net("--config-file", INSTANT, *options)
    assert done.returncode == 2, done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert "1 of" in line and f"annotation {annotation['id']} " in line and "not RLE" in line


def test_the_death_of_a_data_loading_process_is_reported(data, uninterrupted, tmp_path):
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


def test_a_diverging_run_skips_steps_and_then_stops_with_a_checkpoint(data, tmp_path):
    limits = ["MODEL.DEVICE", "cpu", "SOLVER.MAX_ITER", 9, "SOLVER.MAX_NONFINITE_STEPS", 2]
    options = ["OUTPUT_DIR", tmp_path, *DIVERGING, *limits]
    done = train_net("--config-file", INSTANT, *data, *options)
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
        weights = ["MODEL.WEIGHTS", uninterrupted / name]
        done = train_net(
            "--eval-only", "--config-file", INSTANT, *data, "OUTPUT_DIR", tmp_path, *weights
        )
        assert done.returncode == 0, done.stderr
        assert "Loading the averaged weights" in done.stdout + done.stderr
    run = json.loads((uninterrupted / "result.json").read_text())
    final = json.loads((tmp_path / "result.json").read_text())
    assert final["metrics"] == run["metrics"]


def test_averaging_switched_on_at_a_resume_starts_from_the_resumed_weights(data, tmp_path):
    options = ["--config-file", INSTANT, *data, "OUTPUT_DIR", tmp_path]
    options += overrides("{MODEL: {DEVICE: cpu}, SOLVER: {MAX_ITER: 2}}")
    metrics = []
    for more in ([], ["SOLVER.EMA.ENABLED", True]):
        done = train_net(*["--resume"] * len(more[:1]), *options, *more)
        assert done.returncode == 0, done.stderr
        metrics.append(json.loads((tmp_path / "result.json").read_text())["metrics"])
    assert metrics[0] == metrics[1]


def test_early_stopping_keeps_the_best_model_and_a_checkpoint(data, tmp_path):
    done = train_net("--config-file", INSTANT, "OUTPUT_DIR", tmp_path, *OPTIONS, *data, *STAGNATING)
    assert done.returncode == 0, done.stderr
    assert "validation/total_loss has not improved in 2 evaluations" in done.stderr
    assert (tmp_path / "model_0000008.pth").exists() and (tmp_path / "model_best.pth").exists()
    best = torch.load(tmp_path / "model_best.pth", weights_only=True)
    assert best["iteration"] == 2
    assert json.loads((tmp_path / "result.json").read_text())["iterations"] == 9
