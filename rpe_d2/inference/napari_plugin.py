"""The plugin for napari: a widget that segments images, and a reader and a writer of objects.

``rpe_d2/napari.yaml`` names these functions. napari passes and expects layers as tuples of data,
attributes and kind.
"""

import os
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Tuple, Union

import numpy as np

from .segmentation import Segmentation
from .segmenter import Segmenter

if TYPE_CHECKING:
    import magicgui.widgets
    import napari.layers

__all__ = ["get_reader", "make_widget", "segment", "write_objects"]

LayerData = Tuple[np.ndarray, Dict[str, Any], str]
_MEASURES = ("score", "class", "area", "eccentricity")


def segment(
    pixels: np.ndarray,
    model: str,
    is_rgb: bool = False,
    min_score: Optional[float] = None,
    tile: Optional[int] = None,
) -> LayerData:
    """Segments an image or every plane of a stack.

    Args:
        pixels: (..., H, W), or (..., H, W, 3) or (..., H, W, 4) with ``is_rgb``.
        model: what :meth:`Segmenter.load` accepts.
        is_rgb: whether the last axis is that of colors.
        min_score: objects with a lower score are left out. None: the model's own threshold.
        tile: as for :meth:`Segmenter.predict`.

    Returns:
        A layer of labels (..., H, W) with the measures of the objects as features. Every object of
        a stack has its own label.
    """
    segmenter = _loaded(model, min_score)
    num_axes = 3 if is_rgb else 2
    leading, plane = pixels.shape[:-num_axes], pixels.shape[-num_axes:]
    labels = np.zeros((*leading, *plane[:2]), np.uint32)
    features: Dict[str, List[Any]] = {"index": [0], **{name: [np.nan] for name in _MEASURES}}
    features["class"] = [""]
    count = 0
    for place in np.ndindex(*leading):
        found = segmenter.predict(np.asarray(pixels[place]), tile=tile)
        labels[place] = np.where(found.labels > 0, found.labels.astype(np.uint32) + count, 0)
        features["index"] += range(count + 1, count + len(found) + 1)
        table = found.table()
        for name in _MEASURES:
            features[name] += np.asarray(table[name]).tolist()
        count += len(found)
    return labels, {"name": f"{Path(model).name} objects", "features": features}, "labels"


@lru_cache(maxsize=1)
def _loaded(model: str, min_score: Optional[float]) -> Segmenter:
    return Segmenter.load(model, min_score=min_score)


def make_widget() -> "magicgui.widgets.FunctionGui":
    """Returns the widget, which segments the chosen image layer."""
    from magicgui import magicgui

    @magicgui(
        call_button="Segment",
        model={"label": "model", "mode": "d", "tooltip": "folder of rpe-d2 fit or of a training"},
        min_score={"label": "lowest score", "min": -0.01, "max": 1.0, "step": 0.05},
        tile={"label": "tile, pixels", "min": 0, "max": 100000},
    )
    def widget(
        image: "napari.layers.Image",
        model: Path = Path("."),
        min_score: float = -0.01,
        tile: int = 0,
    ) -> "napari.types.LayerDataTuple":
        lowest = None if min_score < 0 else min_score
        return segment(image.data, str(model), image.rgb, lowest, tile or None)

    return widget


def get_reader(path: Union[str, List[str]]) -> Optional[Callable[[str], List[LayerData]]]:
    """Returns a reader of the NPZ files that ``rpe-d2 predict`` writes, or None for others."""
    if not isinstance(path, str) or not path.endswith(".npz") or not os.path.isfile(path):
        return None
    with np.load(path, allow_pickle=False) as content:
        if not {"labels", "scores", "class_ids", "class_names"} <= set(content.files):
            return None
    return _read


def _read(path: str) -> List[LayerData]:
    with np.load(path, allow_pickle=False) as content:
        found = Segmentation(*(content[n] for n in ("labels", "scores", "class_ids")))
        names = [str(content["class_names"][index]) for index in found.class_ids]
    index = [0, *range(1, len(found) + 1)]
    features = {"index": index, "score": [np.nan, *found.scores.tolist()], "class": ["", *names]}
    return [(found.labels, {"name": Path(path).stem, "features": features}, "labels")]


def write_objects(path: str, data: np.ndarray, attributes: Dict[str, Any]) -> List[str]:
    """Writes a layer of labels in one of the formats of :meth:`Segmentation.save`.

    Args:
        path: the file. napari has asked whether to replace an existing one.
        data: (H, W) labels.
        attributes: of the layer.

    Returns:
        The path.

    Raises:
        ValueError: The layer is a stack, or the suffix is another one.
    """
    name = str(attributes.get("name", ""))
    return [str(Segmentation(np.asarray(data), name=name).save(path, overwrite=True))]
