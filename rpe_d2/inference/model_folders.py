"""Folders of models: the outputs of trainings, and the models that come with rpe_d2."""

import contextlib
import os
from pathlib import Path
from typing import Dict, Union

__all__ = [
    "CARD",
    "CONFIG",
    "find_model_folder",
    "shipped_cards",
    "shipped_models",
    "weights_of_folder",
]

CONFIG = "config.yaml"
CARD = "README.md"
SHIPPED_WEIGHTS = "model.safetensors"
_SHIPPED = Path(__file__).resolve().parents[1] / "weights"
# Weights of a folder, the best first.
_WEIGHTS = ("model_best.pth", "model_final.pth", SHIPPED_WEIGHTS)


def shipped_models() -> Dict[str, Path]:
    """Returns the folders of the models that come with rpe_d2 by name.

    A folder has a configuration, weights, the names of the classes and a card, which describes the
    data, the scores and the limits of the model.
    """
    return {path.parent.name: path.parent for path in sorted(_SHIPPED.glob(f"*/{CONFIG}"))}


def shipped_cards() -> Dict[str, Path]:
    """Returns the folders of all weights that come with rpe_d2 by name.

    These are the models of :func:`shipped_models`, and the refiner of ``rpe_d2.refine``.
    """
    return {path.parent.name: path.parent for path in sorted(_SHIPPED.glob(f"*/{CARD}"))}


def find_model_folder(model: Union[str, Path]) -> Path:
    """Returns the folder of a model.

    Args:
        model: a folder, or the name of a model that comes with rpe_d2. A folder of that name which
            has a configuration takes precedence.

    Raises:
        ValueError: There is none. The message is one line.
    """
    folder = Path(model)
    shipped = shipped_models()
    if (folder / CONFIG).is_file():
        return folder
    if str(model) in shipped:
        return shipped[str(model)]
    what = f"{folder} has no {CONFIG}" if folder.is_dir() else f"there is no model {folder}"
    named = f", or {', '.join(shipped)}" if shipped else ""
    raise ValueError(f"{what}; allowed: the folder of a training{named}")


def weights_of_folder(folder: Path) -> str:
    """Returns the weights of a model's folder: the best, the final or the last ones.

    Raises:
        ValueError: There are none. The message is one line.
    """
    names = list(_WEIGHTS)
    with contextlib.suppress(OSError, UnicodeDecodeError):
        names.append((folder / "last_checkpoint").read_text().strip())
    for name in names:
        if name and os.path.isfile(folder / name):
            return str(folder / name)
    raise ValueError(
        f"{folder} has no weights; allowed: a folder with {', '.join(_WEIGHTS[:-1])} or "
        f"{_WEIGHTS[-1]}"
    )
