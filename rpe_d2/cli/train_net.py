"""The command line of ``rpe-d2 train`` and tools/train_net.py."""

import argparse
import os
import sys
import time
from contextlib import ExitStack
from typing import List, Optional

import torch
from detectron2.engine import default_argument_parser
from detectron2.evaluation import verify_results
from detectron2.utils import comm

from rpe_d2.config import find_config_file
from rpe_d2.data import DeadWorker, UnreadableImage
from rpe_d2.engine.checkpoint import ModelCheckpointer
from rpe_d2.engine.hooks import TrainingStopped
from rpe_d2.engine.launcher import check_meeting_point, launch, process_of_cluster
from rpe_d2.engine.run_classes import write_classes
from rpe_d2.engine.run_errors import TooFewValues, named_run_errors
from rpe_d2.engine.run_record import (
    CPUTime,
    cpu_seconds,
    current_commit,
    print_table,
    write_run_record,
)
from rpe_d2.engine.setup import locked_output_dir, read_config, setup
from rpe_d2.engine.train_step import NonFinite
from rpe_d2.engine.trainer import Trainer
from rpe_d2.utils.errors import one_line_errors

from .arguments import command_line


def main(argv: Optional[List[str]] = None) -> int:
    """Trains and evaluates the model of a configuration, or only evaluates it (``--eval-only``).

    Nothing is overwritten: an evaluation in the folder of another run writes into a new folder
    inside it, ``evaluation``, ``evaluation-2`` …

    Returns:
        Exit status: 0, or 2 with a one-line error if a key or a file is wrong.
    """
    args = default_argument_parser().parse_args(argv)
    args.command = command_line("tools/train_net.py", argv)
    args.commit = current_commit()  # at the start, because the tree may change during the run
    with one_line_errors():
        device = _device(args)
        process = process_of_cluster(os.environ)
        if process is None:
            check_meeting_point(args.num_machines, args.dist_url)
    launch(
        run,
        args,
        device=device,
        process=process,
        processes=args.num_gpus,
        machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
    )
    return 0


def _device(args: argparse.Namespace) -> str:
    """Returns the device to train on.

    Raises:
        ValueError: There are fewer GPUs than processes, or fewer cores with MODEL.DEVICE cpu.
    """
    device = read_config(args.config_file, args.opts).MODEL.DEVICE
    gpus, cores = torch.cuda.device_count(), max(2, os.cpu_count() or 1)
    if not 1 <= args.num_gpus <= (cores if device == "cpu" else max(gpus, 1)):
        raise ValueError(
            f"--num-gpus is {args.num_gpus}; this machine has {gpus} GPUs, allowed: 1 to "
            f"{max(gpus, 1)}, or with MODEL.DEVICE cpu up to {cores} processes"
        )
    return device if gpus else "cpu"


def run(args: argparse.Namespace) -> Optional[dict]:
    """Trains or evaluates in one process of a run.

    Args:
        args: parsed arguments, with ``command`` and ``commit`` for the record of the run.

    Returns:
        The metrics of the last evaluation, or None if there was none.
    """
    if args.eval_only:
        return _run(args)
    with ExitStack() as stack:
        with one_line_errors():
            folder = read_config(args.config_file, args.opts).OUTPUT_DIR
            stack.enter_context(locked_output_dir(folder))
        return _run(args)


def _run(args: argparse.Namespace) -> Optional[dict]:
    with one_line_errors():
        # Detectron2's set-up opens the file. The record of the run keeps the name that was given.
        path = find_config_file(args.config_file)
        cfg = setup(argparse.Namespace(**{**vars(args), "config_file": path}))
        if comm.is_main_process():
            write_classes(cfg)
        if args.eval_only:
            model = Trainer.build_model(cfg)
            # cfg.OUTPUT_DIR is the folder of the evaluation, which may be a new one.
            trained_in = read_config(args.config_file, args.opts).OUTPUT_DIR
            checkpointer = ModelCheckpointer(model, trained_in, complete=True)
            checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        else:
            trainer = Trainer(cfg)
            trainer.resume_or_load(resume=args.resume)
    start, setup_cpu_seconds = time.monotonic(), cpu_seconds()
    kinds = UnreadableImage, DeadWorker, NonFinite, TooFewValues, OSError
    with one_line_errors(kinds), named_run_errors():
        if args.eval_only:
            metrics = Trainer.test(cfg, model)
            if comm.is_main_process():
                verify_results(cfg, metrics)
        else:
            try:
                trainer.train()
            except TrainingStopped as stop:
                if comm.is_main_process():
                    print(stop, file=sys.stderr)
                if stop.signal_number:
                    sys.exit(128 + stop.signal_number)
            # Detectron2 returns the last evaluation only if TEST.EXPECTED_RESULTS is set.
            metrics = getattr(trainer, "_last_eval_results", None)
    whole = cpu_seconds()
    evaluation = whole - setup_cpu_seconds if args.eval_only else trainer.evaluation_cpu_seconds
    training = whole - setup_cpu_seconds - evaluation
    parts = comm.gather(CPUTime(whole, training, evaluation))
    if comm.is_main_process() and metrics:
        cpu_time = CPUTime(*map(sum, zip(*parts)))
        iterations, resumed_from = 0, 0
        if not args.eval_only:
            iterations = min(trainer.iter + 1, cfg.SOLVER.MAX_ITER)
            resumed_from = trainer.start_iter
        seconds = time.monotonic() - start
        path = write_run_record(cfg, args, metrics, seconds, cpu_time, iterations, resumed_from)
        print_table(metrics)
        print(f"run record: {path}")
    return metrics
