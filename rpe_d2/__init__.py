"""Pixel grouping for Detectron2: importing this package registers its components and data sets, nothing else."""

from . import baselines, data, modeling  # noqa: F401  registration
from .config import add_rpe_config

__version__ = "0.1.0"
__all__ = ["add_rpe_config"]
