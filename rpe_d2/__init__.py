"""Pixel grouping for Detectron2.

Importing this package registers its components and data sets. It has no other side effects. Where
Detectron2 is not installed, nothing is registered, and ``rpe_d2.ops`` and ``rpe_d2.refine`` still
work.
"""

import warnings as _warnings
from importlib.util import find_spec as _find_spec
from typing import Any as _Any

__version__ = "0.1.0"
__all__ = ["Segmenter", "add_rpe_config", "get_cfg", "get_config_file", "refine"]

_HAS_DETECTRON2 = _find_spec("detectron2") is not None

# No dependency declares OpenCV, because its packages overwrite each other.
if _HAS_DETECTRON2 and _find_spec("cv2") is None:
    raise ImportError(
        "rpe_d2 needs OpenCV: pip install opencv-contrib-python-headless, or another package with "
        "the module cv2"
    )

if _HAS_DETECTRON2:
    with _warnings.catch_warnings():
        # Detectron2 compiles functions with a part of torch that is deprecated.
        _warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
        from . import baselines, data, modeling  # noqa: F401  registration
        from .config import add_rpe_config, get_cfg, get_config_file


def __getattr__(name: str) -> _Any:
    if name == "refine":  # imports scikit-image and timm, which building a model does not need
        from .refinement.refine import refine

        return refine
    if name in __all__ and not _HAS_DETECTRON2:
        raise ImportError(
            f"rpe_d2.{name} needs Detectron2, which is not installed: see "
            "tools/install_detectron2.py; rpe_d2.ops and rpe_d2.refine work without it"
        )
    if name == "Segmenter":  # imports the engine, which building a model does not need
        from .inference import Segmenter

        return Segmenter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
