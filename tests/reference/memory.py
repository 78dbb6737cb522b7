"""Peak memory of Python code, measured in its own process."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# VmHWM, because ru_maxrss of a child process includes memory of its parent.
PROGRAM = """
import re
import torch

def kilobytes(name):
    return int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1])

{setup}
before = kilobytes("VmRSS")
{measured}
print(kilobytes("VmHWM") - before)
"""


def peak_bytes(setup: str, measured: str, timeout: float = 300) -> int:
    """Returns by how many bytes ``measured`` raises the peak above the memory after ``setup``."""
    if not Path("/proc/self/status").exists():
        pytest.skip("peak memory is read from /proc")
    program = PROGRAM.format(setup=setup, measured=measured)
    command = [sys.executable, "-W", "ignore", "-c", program]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout)
    assert answer.returncode == 0, answer.stderr
    return 1024 * int(answer.stdout)
