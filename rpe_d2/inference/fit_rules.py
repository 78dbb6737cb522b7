"""Rules of ``rpe-d2 fit``: settings that follow from the measures of the data."""

import math
from typing import Any, Dict, List, NamedTuple, Optional

import yaml
from detectron2.config import CfgNode

from rpe_d2.config import find_config_file, get_cfg, value_of

from .fit_data import Measures

__all__ = ["MODELS", "Setting", "advice", "as_started_from", "config_text", "settings"]

MODELS = {"embeddings": "nuclei/rpe_R_18.yaml", "mask_rcnn": "nuclei/mask_rcnn_R_18.yaml"}
# Sizes in pixels of the network's input.
_DIAMETER = 20.0
_SMALL_DIAMETER = 8.0
_CROP = 192
_LARGEST_CROP = 512
_MOST_ENLARGED = 2.0
_STRIDE = 2
# What another model has to share before its weights can be used.
_ARCHITECTURE = "MODEL.META_ARCHITECTURE", "MODEL.BACKBONE.NAME", "MODEL.RESNETS.DEPTH"
# Settings on which the meaning or the shape of weights depends.
_OF_WEIGHTS = {
    "MODEL.PIXEL_MEAN",
    "MODEL.PIXEL_STD",
    "MODEL.FPN.NORM",
    "MODEL.RPE.NORM",
    "MODEL.RPE.EMBEDDING_DIM",
    "MODEL.RPE.GROUP_CLASSES",
    "MODEL.RPE.STRIDE",
    "MODEL.RPE.VOTE_UNIT",
    "MODEL.MEAN_SHIFT.SPATIAL_BANDWIDTH",
    "MODEL.MEAN_SHIFT.RELATIVE_BANDWIDTH",
    "MODEL.ANCHOR_GENERATOR.SIZES",
}
_NORM = "BN", "what is predicted for a pixel does not depend on the rest of a tile, as with GN"
# Instances that may be detected, by those of the fullest image.
_MARGIN_OF_DETECTIONS = 1.5


class Setting(NamedTuple):
    """A key of the configuration, its value and the reason in a few words."""

    key: str
    value: Any
    reason: str


def settings(measures: Measures, model: str, scale: Optional[float] = None) -> List[Setting]:
    """Derives the settings of a training from the measures of the data.

    Args:
        measures: measures of the training images.
        model: one of ``MODELS``.
        scale: factor by which images are resized. None: from the measures.
    """
    scale = scale or _scale(measures)
    shared = _inputs(measures, scale) + _outputs(measures)
    shared.append(Setting("MODEL.FPN.NORM", *_NORM))
    return shared + (_embeddings if model == "embeddings" else _mask_rcnn)(measures, scale)


def _scale(measures: Measures) -> float:
    """Returns the factor by which images are resized."""
    _, small, median, _, _ = measures.diameters
    scale = max(_DIAMETER / median, min(_SMALL_DIAMETER / small, 2 * _DIAMETER / median))
    scale = min(scale, _MOST_ENLARGED)
    # Images are not interpolated for a small difference.
    return 1.0 if 0.85 < scale < 1.18 else float(f"{scale:.2g}")


def _inputs(measures: Measures, scale: float) -> List[Setting]:
    _, small, median, large, largest = measures.diameters
    crop = min(max(_CROP, 2.5 * large * scale), _LARGEST_CROP)
    crop = 32 * math.ceil(crop / 32)
    pixels = math.ceil(crop / scale)
    found = [
        Setting(
            "INPUT.SCALE",
            scale,
            f"objects are {median:.0f} px wide, small ones {small:.0f} px; the network sees "
            f"{median * scale:.0f} and {small * scale:.0f} px",
        ),
        Setting(
            "INPUT.CROP.SIZE",
            [pixels, pixels],
            f"{crop} px of the network's input; 90 % of the objects are below "
            f"{large * scale:.0f} px",
        ),
        Setting("INPUT.CROP.TYPE", "absolute", "pixels of the image"),
        Setting("INPUT.SCALE_JITTER", [0.8, 1.25], "objects of other sizes than in these images"),
        Setting("INPUT.INTENSITY", measures.intensity, _intensity_reason(measures)),
        Setting("MODEL.PIXEL_MEAN", list(measures.mean), "of these images"),
        Setting("MODEL.PIXEL_STD", list(measures.std), "of these images"),
        Setting(
            "INPUT.QUARTER_TURNS",
            not measures.is_directed,
            (
                "long objects prefer a direction"
                if measures.is_directed
                else "objects have no preferred direction"
            ),
        ),
        Setting(
            "INPUT.COLOR_JITTER",
            0.2 if measures.is_gray else 0.3,
            f"images are {'gray' if measures.is_gray else 'in color'}",
        ),
    ]
    return found


def _intensity_reason(measures: Measures) -> str:
    low, high = measures.peaks
    return f"the brightest pixels of the images are at {low:.0f} to {high:.0f} of 255"


def _outputs(measures: Measures) -> List[Setting]:
    most = measures.most_objects
    detections = max(100, 50 * math.ceil(_MARGIN_OF_DETECTIONS * most / 50))
    return [
        Setting("TEST.DETECTIONS_PER_IMAGE", detections, f"an image has up to {most} objects"),
    ]


def _embeddings(measures: Measures, scale: float) -> List[Setting]:
    smallest, _, median, large, _ = (d * scale for d in measures.diameters)
    spread = measures.diameters[3] / max(measures.diameters[1], 1e-6)
    groups = measures.neighbors + 1
    dim = min(max(8, 4 * math.ceil(groups / 8)), 64)
    found = [
        Setting("MODEL.RPE.NUM_CLASSES", len(measures.classes), "classes of the data"),
        Setting(
            "MODEL.RPE.GROUP_CLASSES",
            "head" if len(measures.classes) > 1 else "vote",
            "several classes need a head that sees whole objects; one class does not",
        ),
        Setting("MODEL.RPE.NORM", *_NORM),
        Setting("MODEL.RPE.STRIDE", _STRIDE, f"objects are {median / _STRIDE:.0f} cells wide"),
        Setting(
            "MODEL.RPE.NEGATIVE_RADIUS",
            round(max(16.0, 1.2 * median), 1),
            f"objects farther apart than 1.2 diameters of {median:.0f} px may look the same",
        ),
        Setting(
            "MODEL.RPE.EMBEDDING_DIM",
            dim,
            f"holds {2 * dim} objects at a margin of 0.5; one has up to {measures.neighbors} "
            "neighbors",
        ),
        Setting("MODEL.RPE.VOTE_UNIT", round(median / 7, 2), "a seventh of a diameter"),
        Setting(
            "MODEL.MEAN_SHIFT.SPATIAL_BANDWIDTH",
            round(0.1 * median, 2),
            "a tenth of a diameter",
        ),
        Setting(
            "MODEL.MEAN_SHIFT.RELATIVE_BANDWIDTH",
            0.2 if spread > 2 else 0.0,
            f"large objects are {spread:.1f} times as wide as small ones",
        ),
        Setting(
            "MODEL.RPE.MIN_AREA",
            int(math.pi * smallest**2 / 16),
            "a quarter of the area that 99 % of the objects exceed",
        ),
        Setting(
            "MODEL.RPE.MAX_GROUPS",
            max(500, 100 * math.ceil(_MARGIN_OF_DETECTIONS * measures.most_objects / 100)),
            f"an image has up to {measures.most_objects} objects",
        ),
    ]
    return found


def _mask_rcnn(measures: Measures, scale: float) -> List[Setting]:
    smallest, _, _, _, largest = (d * scale for d in measures.diameters)
    # A factor of two between levels, and the square root of the area of an object in the middle.
    levels = len(get_cfg(MODELS["mask_rcnn"]).MODEL.ANCHOR_GENERATOR.SIZES)
    middle = math.sqrt(smallest * largest) * math.sqrt(math.pi) / 2
    sizes = [[max(4, round(middle * 2 ** (n - (levels - 1) / 2)))] for n in range(levels)]
    return [
        Setting("MODEL.ROI_HEADS.NUM_CLASSES", len(measures.classes), "classes of the data"),
        Setting(
            "MODEL.ANCHOR_GENERATOR.SIZES",
            sizes,
            f"98 % of the objects are {smallest:.0f} to {largest:.0f} px wide",
        ),
    ]


def as_started_from(found: List[Setting], source: CfgNode, model: str) -> List[Setting]:
    """Replaces the settings that belong to the weights of another model by those of that model.

    Args:
        found: derived settings.
        source: configuration of the other model.
        model: one of ``MODELS``.

    Raises:
        ValueError: The other model has another architecture. The message is one line.
    """
    base = get_cfg(MODELS[model])
    for key in _ARCHITECTURE:
        theirs, ours = value_of(source, key), value_of(base, key)
        if theirs != ours:
            raise ValueError(f"its {key} is {theirs}; allowed: {ours}, that of --model {model}")
    return [
        (
            Setting(setting.key, value_of(source, setting.key), "as in the model to start from")
            if setting.key in _OF_WEIGHTS
            else setting
        )
        for setting in found
    ]


def advice(measures: Measures, state: Dict[str, Any], scale: float, cells: int) -> List[str]:
    """Returns what may help next, one sentence each.

    Args:
        measures: measures of the training images.
        state: content of ``fit.json``, with scores.
        scale: ``INPUT.SCALE``.
        cells: pixels of the network's input below which an object is too small; 0 for none.
    """
    scores, images = state["scores"], state["images"]
    found = []
    small = measures.diameters[1] * scale
    if small < cells:
        found.append(
            f"A tenth of the objects are smaller than two cells of the network ({small:.0f} of "
            f"{cells} px): try --scale {scale * cells / small:.2g}."
        )
    if images["train"] < 10:
        found.append(
            f"The model has learned from {images['train']} images. More labeled images help most."
        )
    if images["held_out"] < 5:
        found.append(
            f"The number of held-out images is {images['held_out']}, and the settings of "
            "prediction were chosen on them: scores may be lower on new images."
        )
    if scores["S@0.5"] is not None and scores["S@0.5"] < 0.6:
        found.append(
            f"Many objects are missed or merged (S@0.5 is {scores['S@0.5']:.2f}): give more "
            f"--minutes than {state['arguments']['minutes']:g}, and look at the worst images for "
            "labels that are missing."
        )
    elif scores["S@0.5"] is not None and scores["S"] < 0.65 * scores["S@0.5"]:
        found.append(
            "Objects are found, but their outlines are not exact (S is much lower than S@0.5): "
            "more --minutes or a larger --scale may help."
        )
    return found or ["Nothing stands out. More images and more --minutes help most models."]


def config_text(found: List[Setting], model: str, fixed: Dict[str, Any]) -> str:
    """Writes a configuration as YAML, with the reasons of the settings as comments.

    Args:
        found: derived settings.
        model: one of ``MODELS``, whose configuration has the other settings.
        fixed: further keys and their values, without comments.
    """
    tree = CfgNode.load_yaml_with_base(find_config_file(MODELS[model]))
    reasons = {}
    for key, value, reason in [*found, *((key, value, "") for key, value in fixed.items())]:
        node = tree
        *path, last = key.split(".")
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
        reasons[key] = reason
    lines = ["# Written by rpe-d2 fit. Comments explain the values that follow from the data."]
    _write(tree, "", reasons, lines)
    return "\n".join(lines) + "\n"


def _write(tree: Dict[str, Any], prefix: str, reasons: Dict[str, str], lines: List[str]) -> None:
    indent = "  " * prefix.count(".")
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict):
            lines.append(f"{indent}{name}:")
            _write(value, f"{key}.", reasons, lines)
            continue
        text = yaml.safe_dump(_plain(value), default_flow_style=True, width=10**6)
        text = text.removesuffix("...\n").strip()
        reason = reasons.get(key)
        if reason:
            lines.append(f"{indent}# {reason}")
        lines.append(f"{indent}{name}: {text}")


def _plain(value: Any) -> Any:
    return [_plain(part) for part in value] if isinstance(value, (list, tuple)) else value
