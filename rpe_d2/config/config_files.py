"""Access to the configuration files of rpe_d2 by name, as in ``detectron2.model_zoo``."""

from pathlib import Path
from typing import List

from detectron2.config import CfgNode
from detectron2.config import get_cfg as get_detectron2_cfg

from .config import add_rpe_config
from .nearest import nearest

_PACKAGE = Path(__file__).resolve().parents[1]
# In an installed wheel, and in a clone or an editable install.
_FOLDERS = (_PACKAGE / "configs", _PACKAGE.parent / "configs")


def get_config_file(name: str) -> str:
    """Finds a configuration file that comes with rpe_d2, from any working directory.

    Args:
        name: path below configs/, such as ``rpe_coco.yaml`` or ``nuclei/rpe_R_18.yaml``.

    Returns:
        The absolute path of the file.

    Raises:
        ValueError: There is no such file. The message has the nearest names.
    """
    folder = config_folder()
    path = folder / name
    if not path.is_file() or folder not in path.resolve().parents:
        similar = nearest(name, config_names())
        raise ValueError(f"There is no configuration file {name!r}; the nearest names: {similar}")
    return str(path)


def find_config_file(path: str) -> str:
    """Returns the path of an existing file unchanged, or else that of rpe_d2's file of this name.

    Raises:
        ValueError: Neither exists. The message has the nearest names.
    """
    return path if "://" in path or Path(path).is_file() else get_config_file(path)


def get_cfg(name: str) -> CfgNode:
    """Returns a configuration with the keys of Detectron2 and rpe_d2, and a file of rpe_d2 merged.

    Args:
        name: as for :func:`get_config_file`.

    Raises:
        ValueError: There is no such file.
    """
    cfg = get_detectron2_cfg()
    add_rpe_config(cfg)
    cfg.merge_from_file(get_config_file(name), allow_unsafe=False)
    return cfg


def config_names() -> List[str]:
    """Returns the names of all configuration files, for :func:`get_config_file`."""
    folder = config_folder()
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.yaml"))


def config_folder() -> Path:
    """Returns the folder with the configuration files.

    Raises:
        ValueError: Rpe_d2 was installed without them.
    """
    for folder in _FOLDERS:
        if (folder / "rpe_coco.yaml").is_file():
            return folder
    raise ValueError(
        f"rpe_d2 has no configuration files; looked in {' and '.join(map(str, _FOLDERS))}"
    )
