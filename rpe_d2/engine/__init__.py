"""Training and evaluation of any Detectron2 model, with this package's data and evaluators."""

from .setup import setup
from .solver import build_lr_scheduler, build_optimizer
from .trainer import Trainer

__all__ = ["Trainer", "build_lr_scheduler", "build_optimizer", "setup"]

from rpe_d2.utils.safe_loading import guard_proposals

# Every tool that reads a configuration imports this package, so the guard is always active.
guard_proposals()
