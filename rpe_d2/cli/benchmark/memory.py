"""Peak memory of a piece of code."""

import math
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Callable

import torch


def peak_memory_mb(run: Callable[[], object], device: str) -> float:
    """Runs something and returns how far memory rose above what was in use before, at its highest, in MB.

    On CUDA this is the allocator's count; on a CPU the process's resident memory, so it is exact only in a process
    that has not freed much before. NaN where the system does not tell (other than Linux).
    """
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    try:
        # Sets VmHWM, the peak of resident memory, to what is used now.
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return math.nan
    before = _peak_resident_mb()
    run()
    return _peak_resident_mb() - before


def measure_in_new_process(measure: Callable[..., float], *args: object, device: str) -> float:
    """Calls ``measure(*args)`` in a process that has computed nothing yet; NaN where that did not survive."""
    # The fork server imports torch once and computes nothing, so what it forks is fresh; CUDA allows no forking.
    context = multiprocessing.get_context("spawn" if device.startswith("cuda") else "forkserver")
    context.set_forkserver_preload([measure.__module__])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(measure, *args).result()
        except (BrokenProcessPool, MemoryError, torch.OutOfMemoryError):
            return math.nan


def _peak_resident_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024
