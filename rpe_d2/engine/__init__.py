"""Training and evaluation: composes the packages below it."""

from .run_setup import setup
from .train_net import main
from .trainer import Trainer, build_optimizer

__all__ = ["Trainer", "build_optimizer", "main", "setup"]
