"""Time, peak memory and noise images: the parts that several benchmarks share."""

import argparse
import math
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Callable, Dict

import torch
from detectron2.structures import BitMasks, Instances


def synchronize(device: str) -> None:
    """Waits until all work queued on a GPU is done; does nothing on a CPU."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def timed(run: Callable[[], object], device: str) -> float:
    """Calls a function and returns its seconds, including the work that it queues on a GPU."""
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def peak_memory_mb(run: Callable[[], object], device: str) -> float:
    """Calls a function and returns the increase of memory in use at its peak, in MB.

    On CUDA this is the allocator's count. On a CPU it is the resident memory of the process, which
    is exact only in a process that has not freed much before.

    Returns:
        The peak above the memory that was in use before, or NaN if the system does not report it
        (any system other than Linux).
    """
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    try:
        # Resets VmHWM, the peak of the resident memory, to the current use.
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return math.nan
    before = _peak_resident_mb()
    run()
    return _peak_resident_mb() - before


def measure_in_new_process(measure: Callable[..., float], *args: object, device: str) -> float:
    """Calls ``measure(*args)`` in a new process that has computed nothing before.

    Returns:
        What ``measure`` returns, or NaN if the process ran out of memory.
    """
    # The fork server imports torch once and computes nothing, so each process that it forks is
    # fresh. CUDA does not survive a fork.
    context = multiprocessing.get_context("spawn" if device.startswith("cuda") else "forkserver")
    context.set_forkserver_preload([measure.__module__])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(measure, *args).result()
        except (BrokenProcessPool, MemoryError, torch.OutOfMemoryError):
            return math.nan


def random_input(args: argparse.Namespace, seed: int) -> Dict[str, Any]:
    """Creates a noise image with brighter ellipses, in the format of Detectron2's training data.

    Args:
        args: ``height`` and ``width`` of the image in pixels, ``instances`` the number of ellipses.
        seed: seed of the noise and of the ellipses.

    Returns:
        A dict with ``image`` (3, H, W) uint8 and ``instances`` with their masks, all of class 0.
    """
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(3, args.height, args.width, generator=generator) * 100
    y = torch.arange(args.height).view(1, -1, 1)
    x = torch.arange(args.width).view(1, 1, -1)
    center = torch.rand(args.instances, 2, generator=generator) * torch.tensor(
        [args.height, args.width]
    )
    radius = (0.05 + 0.1 * torch.rand(args.instances, 2, generator=generator)) * min(
        args.height, args.width
    )
    center, radius = center.view(-1, 2, 1, 1), radius.view(-1, 2, 1, 1)
    masks = ((y - center[:, 0]) / radius[:, 0]) ** 2 + ((x - center[:, 1]) / radius[:, 1]) ** 2 < 1
    instances = Instances((args.height, args.width))
    instances.gt_masks = BitMasks(masks)
    instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
    instances.gt_classes = torch.zeros(args.instances, dtype=torch.long)
    return {"image": (image + 100 * masks.any(dim=0)).to(torch.uint8), "instances": instances}


def _peak_resident_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024
