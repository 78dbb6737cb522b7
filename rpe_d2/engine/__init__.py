"""Training and evaluation of any Detectron2 model, with this package's data and evaluators."""

from .setup import setup
from .trainer import Trainer, build_optimizer

__all__ = ["Trainer", "build_optimizer", "setup"]
