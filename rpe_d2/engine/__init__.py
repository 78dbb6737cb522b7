"""Training and evaluation: composes the packages below it."""

from .setup import setup
from .trainer import Trainer, build_optimizer

__all__ = ["Trainer", "build_optimizer", "setup"]
