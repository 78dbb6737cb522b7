"""Pixel grouping for Detectron2.

Importing this package registers its components and data sets, and changes nothing else.
"""

from . import baselines, data, modeling  # noqa: F401  registration
from .config import add_rpe_config, get_cfg, get_config_file

__version__ = "0.1.0"
__all__ = ["add_rpe_config", "get_cfg", "get_config_file"]
