"""Errors of a run that the system or its settings cause, in one line."""

import os
import signal

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from rpe_d2.data import DeadWorker
from rpe_d2.engine.run_errors import TooFewValues, named_run_errors


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
        ("unable to open shared memory object </torch_1>: Too many open files", "too many files"),
        ("unable to write to file </torch_1>: No space left on device", "out of shared memory"),
    ],
)  # fmt: skip
def test_limits_of_the_system_are_named(text, words):
    with pytest.raises(DeadWorker, match=words), named_run_errors():
        raise RuntimeError(text)


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
