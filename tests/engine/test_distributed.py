"""A run of several processes, however they are started, computes what one process computes."""

import atexit
import json
import os
import re
import signal
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Iterator

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch.multiprocessing import ProcessRaisedException

from rpe_d2 import add_rpe_config
from rpe_d2.data import PixelLabelMapper
from rpe_d2.engine.launcher import launch
from rpe_d2.engine.train_step import TrainStep
from rpe_d2.engine.trainer import distributed
from tests.conftest import ROOT
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
    SEED: 5
    SOLVER: {MAX_ITER: 8, CHECKPOINT_PERIOD: 3, EMA: {ENABLED: True}}
    TEST: {EVAL_PERIOD: 5, VALIDATION_LOSS: True, BEST_METRIC: validation/total_loss}
    """
)
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def weights(output: Path) -> dict:
    return torch.load(output / "model_final.pth", weights_only=True)["model"]


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> list:
    return [*OPTIONS, *few_images(tmp_path_factory.mktemp("data"), 5)]


@pytest.fixture(scope="module")
def by_flags(options, tmp_path_factory) -> Path:
    """The output of a run of two processes on the CPU, started by Detectron2's flags."""
    output = tmp_path_factory.mktemp("flags")
    done = train_net(
        "--config-file", INSTANT, "--num-gpus", 2, "--dist-url", "auto",
        "OUTPUT_DIR", output, *options, **ONE_THREAD,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return output


def test_two_processes_train_evaluate_and_save(by_flags):
    record = json.loads((by_flags / "result.json").read_text())
    assert set(record["metrics"]) == {"bbox", "segm"} and record["iterations"] == 8
    assert 0 < record["training_cpu_seconds"] < record["cpu_seconds"]
    assert (by_flags / "model_best.pth").exists()
    log = (by_flags / "log.txt").read_text()
    assert "World size: 2" in log
    trainer = torch.load(by_flags / "model_final.pth", weights_only=True)["trainer"]["_trainer"]
    assert trainer["images_seen"] == 8 * 2
    logs = sorted(path.name for path in by_flags.glob("log.txt*"))
    assert logs == ["log.txt", "log.txt.rank1"]


def test_torchrun_is_the_same_run(by_flags, options, tmp_path):
    done = train_net(
        "--config-file", INSTANT, "OUTPUT_DIR", tmp_path, *options,
        launcher=["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
        **ONE_THREAD,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert_equal(weights(tmp_path), weights(by_flags))


@pytest.mark.slow
def test_srun_is_the_same_run(by_flags, options, tmp_path):
    """Two processes with the variables that srun sets."""
    shared = {
        "SLURM_JOB_ID": str(abs(hash(str(tmp_path))) % 10**6),
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_TASKS_PER_NODE": "2",
        "SLURM_STEP_NODELIST": "localhost",
        **ONE_THREAD,
    }
    running = [
        start_train_net(
            "--config-file", INSTANT, "OUTPUT_DIR", tmp_path, *options,
            SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank), **shared,
        )
        for rank in range(2)
    ]  # fmt: skip
    for process in running:
        done = process.finish(300)
        assert done.returncode == 0, done.stderr
    assert_equal(weights(tmp_path), weights(by_flags))


@pytest.mark.parametrize(
    "receiver", ["launcher", pytest.param("group", marks=pytest.mark.slow), "second process"]
)
def test_two_processes_stop_on_a_signal_and_resume_to_the_same_run(
    receiver, by_flags, options, tmp_path
):
    arguments = ["--num-gpus", 2, "--dist-url", "auto", "OUTPUT_DIR", tmp_path, *options]
    process = start_train_net("--config-file", INSTANT, *arguments, **ONE_THREAD)
    process.wait_for(tmp_path / "model_0000002.pth")
    if receiver == "launcher":
        process.send_signal(signal.SIGTERM)
    elif receiver == "group":
        os.killpg(process.pid, signal.SIGTERM)
    else:
        os.kill(training_processes(process.pid)[1], signal.SIGTERM)
    stopped = process.finish(120)
    assert stopped.returncode == 128 + signal.SIGTERM, stopped.stderr
    path = re.search(r"; saved (\S+), continue with --resume", stopped.stderr)[1]
    torch.load(path, weights_only=True)
    if receiver != "second process":
        return  # the rest is the same for all of them
    done = train_net("--config-file", INSTANT, "--resume", *arguments, **ONE_THREAD)
    assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path, by_flags)


def training_processes(parent: int) -> list:
    """The process ids of the children that train, by rank."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    commands = {int(pid): Path(f"/proc/{pid}/cmdline").read_text() for pid in children}
    return sorted(pid for pid, command in commands.items() if "spawn_main" in command)


def note_threads_at_exit(folder: str, end: str) -> None:
    """Trains with everything that holds process groups, and ends in one of three ways."""
    path = Path(folder) / str(comm.get_rank())
    atexit.register(lambda: path.write_text("\n".join(threads())))
    model = distributed(torch.nn.Linear(3, 3), find_unused_parameters=False)
    model(torch.ones(2, 3)).sum().backward()
    comm.all_gather(0)
    assert "pt_gloo_runloop" in threads()
    holder = [model]
    holder.append(holder)  # as a trainer and its hooks hold each other
    if end == "finished":
        return
    try:
        raise RuntimeError("failed")
    except RuntimeError:
        if end == "failed":
            raise
        sys.exit(143)


def threads() -> list:
    names = []
    for path in Path("/proc/self/task").glob("*/comm"):
        try:
            names.append(path.read_text().strip())
        except OSError:
            pass  # the thread has just ended
    return names


@pytest.mark.parametrize(
    "end, error", [("finished", None), ("stopped", SystemExit), ("failed", ProcessRaisedException)]
)
def test_no_thread_of_a_process_group_outlives_its_run(end, error, tmp_path):
    """Such a thread aborts the interpreter now and then, which changes the exit status."""
    with pytest.raises(error) if error else nullcontext():
        launch(note_threads_at_exit, str(tmp_path), end, device="cpu", processes=2)
    for rank in "01":
        left = (tmp_path / rank).read_text()
        assert "gloo" not in left and "tcpstore" not in left, left


def test_two_processes_that_diverge_stop_together_with_a_checkpoint(options, tmp_path):
    done = train_net(
        "--config-file", INSTANT, "--num-gpus", 2, "--dist-url", "auto", *options,
        "OUTPUT_DIR", tmp_path, *DIVERGING,
        "SOLVER.MAX_NONFINITE_STEPS", 1, "TEST.EVAL_PERIOD", 0, **ONE_THREAD,
    )  # fmt: skip
    assert done.returncode == 2, done.stdout + done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(set(errors)) == 1 and "SOLVER.MAX_NONFINITE_STEPS is 1" in errors[0]
    saved = max(tmp_path.glob("model_*.pth"))
    content = torch.load(saved, weights_only=True)
    assert content["iteration"] == int(re.search(r"iteration (\d+):", errors[0])[1]) - 1
    assert content["trainer"]["_trainer"]["nonfinite_steps"] == 1


def assert_equal(actual: dict, expected: dict) -> None:
    """Checks that two dicts of tensors are equal."""
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name


@pytest.mark.parametrize("images", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_evaluations_gather_where_processes_have_unequal_or_no_images(images, by_flags, tmp_path):
    options = [
        *few_images(tmp_path, images),
        *("MODEL.WEIGHTS", by_flags / "model_final.pth"),
        *overrides("{MODEL: {DEVICE: cpu}, TEST: {PROPOSALS: True, TOUCHING_INSTANCES: True}}"),
    ]
    output = tmp_path / "out"
    metrics = []
    # The second evaluation finds another run in its folder.
    for processes, record in ((1, "result.json"), (2, "evaluation/result.json")):
        done = train_net(
            "--eval-only", "--config-file", INSTANT, "--num-gpus", processes, "--dist-url", "auto",
            "OUTPUT_DIR", output, *options, **ONE_THREAD,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        metrics.append(json.loads((output / record).read_text())["metrics"])
    assert len(list(output.glob("evaluation*"))) == 1
    assert metrics[0] == metrics[1] and "segm_touching" in metrics[0]


@contextmanager
def double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@double_precision()
def gradients(images: range, device: str, accumulate: int = 1) -> dict:
    """The gradients of PixelEmbeddingNet; each process takes its share of the images."""
    cfg = get_cfg()
    add_rpe_config(cfg)
    cfg.merge_from_file(str(ROOT / INSTANT))
    cfg.MODEL.DEVICE = device
    cfg.MODEL.RESNETS.NORM = cfg.MODEL.FPN.NORM = "GN"
    cfg.MODEL.FPN.OUT_CHANNELS = cfg.MODEL.RPE.CONV_DIM = 64
    cfg.MODEL.RPE.QUALITY_IMAGES = 0
    cfg.MODEL.RPE.TRAIN_POINTS = 128 * 128  # all pixels, so that none is sampled
    cfg.MODEL.RPE.FOREGROUND_THRESHOLD = 0.1
    torch.manual_seed(0)
    model = distributed(build_model(cfg), find_unused_parameters=False)
    mapper = PixelLabelMapper(cfg, is_train=True, augmentations=[])
    dicts = DatasetCatalog.get("shapes_train")
    own = [mapper(dicts[i]) for i in images[comm.get_rank() :: comm.get_world_size()]]
    batches = [own[number::accumulate] for number in range(accumulate)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    step = TrainStep(model, batches, optimizer, seed=0, accumulate_steps=accumulate)
    step.iter = 0
    with EventStorage():
        step.run_step()
    return {
        name.removeprefix("module."): parameter.grad.cpu()
        for name, parameter in model.named_parameters()
    }


def save_gradients(images: range, device: str, accumulate: int, path: str) -> None:
    torch.set_num_threads(1)
    computed = gradients(images, device, accumulate)
    if comm.is_main_process():
        torch.save(computed, path)


DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NCCL needs two GPUs"),
    ),
]


@pytest.mark.parametrize("device", DEVICES)
def test_gradients_of_processes_and_accumulated_batches_equal_those_of_one_batch(device, tmp_path):
    """A batch of 4; 2 accumulated batches; 2 processes; 2 processes with 2 batches each."""
    images = range(4)
    expected = gradients(images, device)
    for part in ("backbone", "embedding_head.voter", "embedding_head.classifier", "quality_head"):
        of_part = [g for name, g in expected.items() if name.startswith(part)]
        assert max(float(gradient.abs().max()) for gradient in of_part) > 1e-3, part
    variants = {"accumulated": gradients(images, device, accumulate=2)}
    for accumulate in (1, 2):
        path = str(tmp_path / f"{accumulate}.pth")
        launch(save_gradients, images, device, accumulate, path, device=device, processes=2)
        variants[f"2 processes, {accumulate} batches"] = torch.load(path, weights_only=True)
    for variant, computed in variants.items():
        assert computed.keys() == expected.keys()
        for name, gradient in expected.items():
            # Gradients that cancel out, such as those of biases before a normalization, have only
            # the error of their terms.
            error = float((computed[name] - gradient).norm())
            assert error < 1e-10 * float(gradient.norm()) + 1e-10, (variant, name)
