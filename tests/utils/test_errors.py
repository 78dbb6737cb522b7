"""Errors that a user can fix end a tool with one line; others keep their traceback."""

import numpy as np
import pytest
import torch

from rpe_d2.utils.errors import one_line_errors


@pytest.mark.parametrize(
    "allocate", [lambda: torch.empty(2**50), lambda: np.empty(2**50), lambda: bytearray(2**62)]
)
def test_a_lack_of_memory_is_one_line(allocate, capsys):
    with pytest.raises(SystemExit, match="2"), one_line_errors(()):
        allocate()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: out of memory: ") and "SOLVER.IMS_PER_BATCH" in line


def test_a_bug_keeps_its_traceback():
    with pytest.raises(RuntimeError, match="shapes differ"), one_line_errors():
        raise RuntimeError("shapes differ")
