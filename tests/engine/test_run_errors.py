"""Errors of a run that the system or its settings cause, in one line."""

import errno
import os
import resource
import signal
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from rpe_d2.data import DeadWorker, NameUnreadable
from rpe_d2.engine.run_errors import TooFewValues, check_open_files, named_run_errors
from tests.conftest import ROOT
from tests.helpers.keys import new_cfg
from tests.helpers.runs import INSTANT


class Killed(torch.utils.data.Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_named():
    with pytest.raises(DeadWorker, match="a data-loading process died .*NUM_WORKERS 0"):
        with named_run_errors():
            list(DataLoader(Killed(), num_workers=1))


@pytest.mark.parametrize(
    "text, words",
    [
        ("received 0 items of ancdata", "opened too many files"),
        ("unable to open shared memory object </torch_1> in read-write mode: Too many open files",
         "opened too many files"),
        ("unable to write to file </torch>: No space left on device (28)", "out of shared memory"),
    ],
)  # fmt: skip
def test_limits_of_the_system_are_named(text, words):
    with pytest.raises(DeadWorker, match=words), named_run_errors():
        raise RuntimeError(text)


def test_a_limit_of_open_files_is_named():
    with pytest.raises(DeadWorker, match="opened too many files .*a higher `ulimit -n`"):
        with named_run_errors():
            raise OSError(errno.EMFILE, "Too many open files")
    with pytest.raises(OSError, match="No space left"), named_run_errors():  # of the disk
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("limit, is_enough", [(16, False), (111, False), (112, True), (-1, True)])
def test_open_files_are_counted_before_a_run(limit, is_enough, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limit, limit))
    cfg = new_cfg()
    cfg.SOLVER.IMS_PER_BATCH = 4
    cfg.DATALOADER.NUM_WORKERS = 0
    check_open_files(cfg)
    cfg.DATALOADER.NUM_WORKERS = 2
    if is_enough:
        check_open_files(cfg)
        return
    with pytest.raises(ValueError, match=f"NUM_WORKERS is 2, .* {limit} files; .*ulimit -n 112"):
        check_open_files(cfg)


def test_a_run_with_few_open_files_ends_in_one_line(tmp_path):
    """Without the check, 16 files end in a traceback, and with 32 the run waits forever."""
    command = [sys.executable, str(ROOT / "tools/train_net.py"), "--config-file"]
    command += [str(ROOT / INSTANT), "MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "2"]
    done = subprocess.run(
        ["sh", "-c", 'ulimit -n 32 && exec "$@"', "sh", *command, "OUTPUT_DIR", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2 and "Traceback" not in done.stdout + done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: DATALOADER.NUM_WORKERS is 2, but a process may open only 32")


FULL = """
import torch
from torch.utils.data import DataLoader
from rpe_d2.data import NameUnreadable
from rpe_d2.engine.run_errors import named_run_errors
from rpe_d2.utils.errors import one_line_errors

class Items(torch.utils.data.Dataset):
    read = NameUnreadable(lambda item: torch.zeros(100_000))
    __len__ = lambda self: 8
    __getitem__ = lambda self, index: self.read({"file_name": "a.png"})

with one_line_errors((RuntimeError,)), named_run_errors():
    list(DataLoader(Items(), num_workers=1, collate_fn=list))
"""


def test_full_shared_memory_ends_in_one_line():
    """Without the report of the data-loading process, the run waits forever."""
    mount = "mount -t tmpfs -o size=64k tmpfs /dev/shm"
    namespace = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    try:
        subprocess.run([*namespace, mount], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this system lets no test mount a small /dev/shm")
    done = subprocess.run(
        [*namespace, f'{mount} && exec "$@"', "sh", sys.executable, "-c", FULL],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: data loading ran out of shared memory (") and "/dev/shm" in line


class Unsendable(torch.utils.data.Dataset):
    read = NameUnreadable(lambda item: (number for number in range(2)))

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return self.read({"file_name": "a.png"})


def test_data_that_cannot_be_sent_are_not_waited_for():
    with pytest.raises(RuntimeError, match="while data were sent.*\n.*cannot pickle 'generator'"):
        list(DataLoader(Unsendable(), num_workers=1, collate_fn=list))


@pytest.mark.parametrize(
    "layer, shape", [(nn.GroupNorm(4, 4), (1, 4, 1, 1)), (nn.BatchNorm2d(4), (1, 4, 1, 1))]
)
def test_maps_of_a_single_value_are_refused_in_one_line(layer, shape):
    with pytest.raises(TooFewValues, match="single value, .*allowed: larger INPUT") as caught:
        with named_run_errors():
            layer(torch.zeros(shape))
    assert "\n" not in str(caught.value)


def test_other_errors_stay_what_they_are():
    for error in (RuntimeError("shapes differ"), ValueError("a key is wrong")):
        with pytest.raises(type(error), match=str(error)) as caught, named_run_errors():
            raise error
        assert caught.value is error
