"""Launching the processes of a run by Detectron2's flags, torchrun or srun, on GPUs or CPUs."""

import gc
import os
import re
import signal
import socket
import sys
import traceback
import zlib
from dataclasses import dataclass
from typing import Callable, Mapping, Optional

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm

__all__ = ["Process", "check_meeting_point", "launch", "process_of_cluster"]

_GRACE_SECONDS = 30


@dataclass(frozen=True)
class Process:
    """One of the processes of a run.

    Attributes:
        rank, world_size: index of this process among all processes, and their number.
        local_rank, local_size: the same for the processes on its machine.
        init_method: torch's rendezvous of the processes, "tcp://host:port" or "env://".
    """

    rank: int
    world_size: int
    local_rank: int
    local_size: int
    init_method: str


def process_of_cluster(environment: Mapping[str, str]) -> Optional[Process]:
    """Determines which process of a run this is, from the variables that torchrun and srun set.

    Args:
        environment: environment variables, such as ``os.environ``.

    Returns:
        The process, or None if neither has started it or if it is the only one.

    Raises:
        ValueError: Srun has placed different numbers of tasks on the machines.
    """
    if "TORCHELASTIC_RUN_ID" in environment:
        rank, world_size, local_rank, local_size = (
            int(environment[name])
            for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        )
        return (
            Process(rank, world_size, local_rank, local_size, "env://") if world_size > 1 else None
        )
    # Only a step of srun counts. A batch script has similar variables, but does not train.
    tasks = int(environment.get("SLURM_STEP_NUM_TASKS", 1))
    if tasks == 1 or "SLURM_PROCID" not in environment:
        return None
    layout = environment["SLURM_STEP_TASKS_PER_NODE"]  # "4(x2)": 4 on each of 2 machines
    match = re.fullmatch(r"(\d+)(?:\(x\d+\))?", layout)
    if not match:
        raise ValueError(
            f"SLURM_STEP_TASKS_PER_NODE is {layout}; allowed: as many tasks on every machine, "
            "srun --ntasks-per-node"
        )
    host = environment.get("MASTER_ADDR") or first_host(environment["SLURM_STEP_NODELIST"])
    step = f"{environment.get('SLURM_JOB_ID')}.{environment.get('SLURM_STEP_ID')}"
    # Steps that share a machine use different ports.
    port = environment.get("MASTER_PORT") or 20000 + zlib.crc32(step.encode()) % 20000
    return Process(
        int(environment["SLURM_PROCID"]),
        tasks,
        int(environment["SLURM_LOCALID"]),
        int(match[1]),
        f"tcp://{host}:{port}",
    )


def check_meeting_point(machines: int, dist_url: str) -> None:
    """Checks that several machines are given an address at which they reach each other.

    Args:
        machines: number of machines, ``--num-machines``.
        dist_url: the address, ``--dist-url``.

    Raises:
        ValueError: The address is local to each machine.
    """
    if machines > 1 and (dist_url == "auto" or re.search(r"//(127\.|localhost|\[::1\])", dist_url)):
        raise ValueError(
            f"--dist-url is {dist_url}; with --num-machines {machines} give the first machine's "
            "address, tcp://HOST:PORT, on all of them"
        )


def first_host(nodes: str) -> str:
    """Returns the first name of a SLURM node list: "gpu01" of "gpu[01-04,7],cpu3"."""
    match = re.match(r"([^,\[]+)(?:\[([^\],-]+)[^\]]*\]([^,\[]*))?", nodes)
    return "".join(part or "" for part in match.groups())


def launch(
    run: Callable[..., None],
    *args: object,
    device: str,
    process: Optional[Process] = None,
    processes: int = 1,
    machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
) -> None:
    """Calls ``run(*args)`` in every process of a run.

    If a process fails, this one exits with the same exit status.

    Args:
        run: a picklable function of a module.
        args: the arguments of the function.
        device: "cpu", with gloo between the processes, or "cuda", with NCCL and one GPU each.
        process: this process, if torchrun or srun has started it. The remaining arguments are then
            ignored.
        processes: the number of processes on each machine.
        machines, machine_rank, dist_url: as Detectron2's flags.
    """
    world_size = processes * machines
    if process is not None:
        _work(process, device, run, args)
    elif world_size == 1:
        run(*args)
    else:
        if dist_url == "auto":
            dist_url = f"tcp://127.0.0.1:{_free_port()}"
        context = mp.start_processes(
            _spawned,
            nprocs=processes,
            args=(processes, machine_rank, world_size, dist_url, device, run, args),
            join=False,
        )
        _wait(context)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return free.getsockname()[1]


def _wait(context: mp.ProcessContext) -> None:
    """Waits for the started processes and passes signals on to them."""

    def pass_on(number, frame):
        for child in context.processes:
            if child.is_alive():
                os.kill(child.pid, number)

    previous = {
        number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        # The others notice that one has failed and end by themselves; after the grace period they
        # are terminated.
        while not context.join(grace_period=_GRACE_SECONDS):
            pass
    except mp.ProcessExitedException as error:
        # The process has printed the reason.
        sys.exit(error.exit_code if error.exit_code >= 0 else 128 - error.exit_code)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _spawned(local_rank, local_size, machine_rank, world_size, init_method, device, run, args):
    rank = machine_rank * local_size + local_rank
    _work(Process(rank, world_size, local_rank, local_size, init_method), device, run, args)


def _work(process: Process, device: str, run: Callable[..., None], args: tuple) -> None:
    if device.startswith("cuda"):
        # A scheduler may make only its own GPU visible to each process.
        torch.cuda.set_device(process.local_rank % torch.cuda.device_count())
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // process.local_size))
    dist.init_process_group(
        "nccl" if device.startswith("cuda") else "gloo",
        init_method=process.init_method,
        rank=process.rank,
        world_size=process.world_size,
        timeout=DEFAULT_TIMEOUT,  # Detectron2's: the main process may compute scores for long
    )
    comm.create_local_process_group(process.local_size)
    comm.synchronize()
    try:
        run(*args)
        comm.synchronize()
    except BaseException as error:
        # The frames of the traceback hold models, which hold the process groups.
        while error is not None:
            traceback.clear_frames(error.__traceback__)
            error = error.__cause__ or error.__context__
        raise
    finally:
        _end_process_groups()


def _end_process_groups() -> None:
    """Destroys the process groups and ends their threads.

    A thread of gloo that outlives the interpreter sometimes aborts the process.
    """
    dist.destroy_process_group()
    # A thread ends with the last reference to its group; comm keeps two of them.
    comm._LOCAL_PROCESS_GROUP = None
    comm._get_global_gloo_group.cache_clear()
    comm.create_local_process_group.cache_clear()  # a later run needs a new one
    gc.collect()
