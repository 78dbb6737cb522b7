"""Training and evaluation: composes the packages below it."""

from .main import main
from .setup import setup
from .trainer import Trainer

__all__ = ["Trainer", "main", "setup"]
