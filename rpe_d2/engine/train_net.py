"""The command line of tools/train_net.py."""

import argparse
import shlex
import sys
import time
from typing import List, Optional

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import default_argument_parser, launch
from detectron2.evaluation import verify_results
from detectron2.utils import comm

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
    launch(
        run,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )
    return 0


def run(args: argparse.Namespace) -> Optional[dict]:
    """One process of a run.

    Returns:
        The metrics of the last evaluation, if there was one.
    """
    with one_line_errors():
        cfg = setup(args)
        if args.eval_only:
            model = Trainer.build_model(cfg)
            checkpointer = DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR)
            checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        else:
            trainer = Trainer(cfg)
            trainer.resume_or_load(resume=args.resume)
    start = time.time()
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
