"""The command line of tools/train_net.py."""

import argparse
import shlex
import sys
import time
from typing import List, Optional

import torch
from detectron2.engine import default_argument_parser, launch
from detectron2.evaluation import verify_results
from detectron2.utils import comm

from rpe_d2.data import UnreadableImage

from .checkpoint import ModelCheckpointer
from .errors import one_line_errors
from .run_record import current_commit, print_table, write_run_record
from .run_setup import setup
from .trainer import Trainer


def main(argv: Optional[List[str]] = None) -> int:
    """Trains and evaluates, or with ``--eval-only`` evaluates, the model of a configuration.

    What a user can mend (a key, a file) ends in one line on stderr and exit status 2, without a traceback.
    """
    args = default_argument_parser().parse_args(argv)
    args.command = shlex.join(["tools/train_net.py", *(sys.argv[1:] if argv is None else argv)])
    args.commit = current_commit()  # now: the tree may move on while a run lasts
    with one_line_errors():
        _check_gpus(args.num_gpus)
    launch(
        run,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )
    return 0


def _check_gpus(num_gpus: int) -> None:
    available = torch.cuda.device_count()
    if num_gpus < 0 or num_gpus > max(available, 1):  # 1, the default, also means the CPU
        raise ValueError(
            f"--num-gpus is {num_gpus}; this machine has {available} GPUs, allowed: up to {max(available, 1)}"
        )


def run(args: argparse.Namespace) -> Optional[dict]:
    """One process of a run.

    Returns:
        The metrics of the last evaluation, if there was one.
    """
    with one_line_errors():
        cfg = setup(args)
        if args.eval_only:
            model = Trainer.build_model(cfg)
            checkpointer = ModelCheckpointer(model, cfg.OUTPUT_DIR, complete=True)
            checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        else:
            trainer = Trainer(cfg)
            trainer.resume_or_load(resume=args.resume)
    start = time.time()
    with one_line_errors((UnreadableImage,)):
        if args.eval_only:
            metrics = Trainer.test(cfg, model)
            if comm.is_main_process():
                verify_results(cfg, metrics)
        else:
            trainer.train()
            # Detectron2 returns the last evaluation only where TEST.EXPECTED_RESULTS is set.
            metrics = getattr(trainer, "_last_eval_results", None)
    if comm.is_main_process() and metrics:
        path = write_run_record(cfg, args, metrics, time.time() - start)
        print_table(metrics)
        print(f"run record: {path}")
    return metrics
