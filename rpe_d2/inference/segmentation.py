"""The objects that a model has found in one image."""

from functools import cached_property
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Union

import numpy as np
from detectron2.structures import Instances

from rpe_d2.visualization import instance_colors

from .label_formats import save_segmentation

__all__ = ["Segmentation"]

_MOST_UINT16 = np.iinfo(np.uint16).max
# Columns of the table that skimage measures.
_PROPERTIES = ("label", "area", "centroid", "bbox", "eccentricity")


class Segmentation:
    """The objects of an image as a label map, with scores and classes.

    Objects do not overlap: a pixel belongs to the object of the highest score that covers it.
    Objects without a pixel of their own are left out. Object number n, counted from 1, has the
    label n, and its score and class are at index n - 1. Scores decrease.

    Attributes:
        labels: (H, W) uint16, or uint32 if there are more than 65,535 objects. 0 is background.
        scores: (N,) float32 in 0-1.
        class_ids: (N,) int64, indices of the classes.
        class_names: names of all classes of the model.
        category_ids: ids of all classes in the training data, for files in COCO's format.
        instances: Detectron2's ``Instances`` with whole masks, which may overlap, in the same
            order.
        image: (H, W, 3) uint8 RGB, as the model saw it, or None.
        name: name of the image.
    """

    def __init__(
        self,
        instances: Instances,
        class_names: Sequence[str] = ("object",),
        *,
        category_ids: Optional[Sequence[Any]] = None,
        image: Optional[np.ndarray] = None,
        name: str = "",
    ):
        """
        Args:
            instances: ``pred_masks`` (N, H, W) bool, ``scores`` (N,) and ``pred_classes`` (N,).
            class_names: names of all classes of the model.
            category_ids: their ids in the training data. None: 1, 2 and so on.
            image: (H, W, 3) uint8 RGB.
            name: name of the image.

        Raises:
            ValueError: The instances have no masks.
        """
        if not instances.has("pred_masks"):
            raise ValueError("the model predicts no masks; allowed: models that do")
        instances = instances.to("cpu")
        order = instances.scores.argsort(descending=True, stable=True)
        instances = instances[order]
        labels = np.zeros(instances.image_size, np.uint32)
        # From the lowest score to the highest, which is in front.
        for number in range(len(instances), 0, -1):
            labels[instances.pred_masks[number - 1].numpy()] = number
        visible, packed = np.unique(labels, return_inverse=True)
        first = int(len(visible) > 0 and visible[0] == 0)  # there may be no background
        packed = packed.reshape(labels.shape) + (1 - first)
        self.instances = instances[[int(number) - 1 for number in visible[first:]]]
        count = len(self.instances)
        self.labels = packed.astype(np.uint16 if count <= _MOST_UINT16 else np.uint32)
        self.scores = self.instances.scores.numpy().astype(np.float32)
        self.class_ids = self.instances.pred_classes.numpy().astype(np.int64)
        self.class_names = tuple(class_names)
        self.category_ids = tuple(category_ids or range(1, len(self.class_names) + 1))
        self.image = image
        self.name = name

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        height, width = self.labels.shape
        return f"Segmentation({self.name!r}, {len(self)} objects, {width} x {height} pixels)"

    @property
    def classes(self) -> List[str]:
        """Names of the classes of the objects."""
        return [self.class_names[index] for index in self.class_ids]

    @cached_property
    def _measures(self) -> Dict[str, np.ndarray]:
        from skimage.measure import regionprops_table  # slow to import

        table = regionprops_table(self.labels, self.image, properties=_PROPERTIES)
        if self.image is not None:
            gray = self.image.mean(axis=2)
            measured = regionprops_table(self.labels, gray, properties=("mean_intensity",))
            table["mean_intensity"] = measured["mean_intensity"]
        return table

    def table(self) -> Dict[str, np.ndarray]:
        """Measures the objects.

        Returns:
            Columns of N values: ``label``, ``class``, ``score``, ``area`` in pixels,
            ``centroid_y``, ``centroid_x``, the box ``y0``, ``x0``, ``y1``, ``x1`` (the last two
            exclusive), ``eccentricity`` in 0-1 and, with an image, ``mean_intensity`` in 0-255.
            ``pandas.DataFrame`` accepts it.
        """
        measures = self._measures
        columns = {
            "label": measures["label"],
            "class": np.array(self.classes, dtype=object),
            "score": self.scores,
            "area": measures["area"],
            "centroid_y": measures["centroid-0"],
            "centroid_x": measures["centroid-1"],
        }
        for number, name in enumerate(("y0", "x0", "y1", "x1")):
            columns[name] = measures[f"bbox-{number}"]
        columns["eccentricity"] = measures["eccentricity"]
        if "mean_intensity" in measures:
            columns["mean_intensity"] = measures["mean_intensity"]
        return columns

    def overlay(self) -> np.ndarray:
        """Draws the objects over the image, or over black if there is none.

        Returns:
            (H, W, 3) uint8 RGB.
        """
        from skimage.segmentation import find_boundaries  # slow to import

        inside = self.labels > 0
        picture = np.zeros((*self.labels.shape, 3), np.uint8)
        if self.image is not None:
            picture = self.image.copy()
        colors = 255 * instance_colors(len(self))[self.labels[inside].astype(np.int64) - 1]
        picture[inside] = (0.55 * picture[inside] + 0.45 * colors).round()
        edges = find_boundaries(self.labels, mode="inner")
        picture[edges] = colors[edges[inside]].round()
        return picture

    def save(self, path: Union[str, Path], overwrite: bool = False) -> Path:
        """Writes the objects to a file, in the format of its suffix.

        * ``.tif``: the label map.
        * ``.png``: the label map with 16 bits, for at most 65,535 objects.
        * ``.npz``: ``labels``, ``scores``, ``class_ids`` and ``class_names``.
        * ``.json``: COCO's format with RLE masks and scores.
        * ``.geojson``: polygons with scores and classes, as QuPath and GIS programs read them.
        * ``.zip``: outlines as ROIs of ImageJ.
        * ``.csv``: the table of :meth:`table`.

        Args:
            path: the file.
            overwrite: whether to replace an existing file.

        Returns:
            The path.

        Raises:
            ValueError: The suffix is another one, or the format cannot hold the objects.
            FileExistsError: The file exists.
            ImportError: The package that the format needs is not installed.
        """
        return save_segmentation(self, Path(path), overwrite)
