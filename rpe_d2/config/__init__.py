"""The configuration keys that rpe_d2 adds to Detectron2's, and the configuration files."""

from .config import add_rpe_config, check_config
from .config_files import find_config_file, get_cfg, get_config_file
from .file_checks import check_config_file
from .key import value_of
from .key_table import all_keys
from .registered_names import check_registered_names

__all__ = [
    "add_rpe_config",
    "all_keys",
    "check_config",
    "check_config_file",
    "check_registered_names",
    "find_config_file",
    "get_cfg",
    "get_config_file",
    "value_of",
]
