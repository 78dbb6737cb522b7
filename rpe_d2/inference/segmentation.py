"""The objects that a model has found in one image."""

from functools import cached_property
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from detectron2.structures import BitMasks, Boxes, Instances
from scipy import ndimage

from rpe_d2.utils.tiff_files import TiffLayout
from rpe_d2.visualization import instance_colors

from .label_formats import save_segmentation

__all__ = ["Segmentation"]

_MOST_UINT16 = np.iinfo(np.uint16).max
# Columns of the table that skimage measures.
_PROPERTIES = ("label", "area", "centroid", "bbox", "eccentricity")


class Segmentation:
    """The objects of an image as a label map, with scores and classes.

    Objects do not overlap. Where masks of a model overlap, a pixel belongs to the one with the
    highest score, and objects without a pixel of their own are left out. Object number n, counted
    from 1, has the label n, and its score and class are at index n - 1. Scores of a model decrease.

    Attributes:
        labels: (H, W) uint16, or uint32 if there are more than 65,535 objects or if the image is
            larger than memory. 0 is background.
        scores: (N,) float32 in 0-1.
        class_ids: (N,) int64, indices of the classes.
        class_names: names of all classes of the model.
        category_ids: ids of all classes in the training data, for files in COCO's format.
        image: (H, W, 3) uint8 RGB, as the model saw it, or None.
        name: name of the image.
        layout: layout of the image's TIFF file, with the size of a pixel, or None.
    """

    def __init__(
        self,
        labels: np.ndarray,
        scores: Optional[np.ndarray] = None,
        class_ids: Optional[np.ndarray] = None,
        class_names: Sequence[str] = ("object",),
        *,
        category_ids: Optional[Sequence[Any]] = None,
        image: Optional[np.ndarray] = None,
        name: str = "",
        instances: Optional[Instances] = None,
        probability: Optional[np.ndarray] = None,
        layout: Optional[TiffLayout] = None,
        is_packed: bool = False,
    ):
        """
        Args:
            labels: (H, W) integers, 0 for background. Gaps between the labels are closed.
            scores: (N,) in 0-1, in the order of the labels. None: 1.
            class_ids: (N,) indices of the classes. None: the first class.
            class_names: names of all classes.
            category_ids: their ids in the training data. None: 1, 2 and so on.
            image: (H, W, 3) uint8 RGB.
            name: name of the image.
            instances: the objects with whole masks. None: they are made of the labels.
            probability: (H, W) in 0-1. None: the scores of the objects in the label map.
            layout: layout of the image's TIFF file, whose pixel size is stored in label maps.
            is_packed: whether ``labels`` are uint32 without gaps, one for each score. They are not
                copied then, because they may be larger than memory.

        Raises:
            ValueError: An argument has another shape or other values.
        """
        labels = np.asanyarray(labels)
        is_map = labels.ndim == 2 and labels.dtype.kind in "biu"
        if not is_map or labels.min(initial=0) < 0:
            raise ValueError(
                f"labels of {name or 'an image'} have shape {labels.shape}, {labels.dtype} and "
                f"the minimum {labels.min(initial=0)}; allowed: whole numbers from 0, (H, W)"
            )
        if is_packed and scores is not None:
            count = len(scores)
        else:
            known, labels_from_0 = np.unique(labels, return_inverse=True)
            first = int(len(known) > 0 and known[0] == 0)  # there may be no background
            count = len(known) - first
            labels = labels_from_0.reshape(labels.shape) + (1 - first)
        if not isinstance(labels, np.memmap):
            labels = labels.astype(np.uint16 if count <= _MOST_UINT16 else np.uint32)
        self.labels = labels
        self.scores = np.ones(count, np.float32) if scores is None else np.float32(scores)
        self.class_ids = np.zeros(count, np.int64) if class_ids is None else np.int64(class_ids)
        for values, what in ((self.scores, "scores"), (self.class_ids, "class_ids")):
            if values.shape != (count,):
                raise ValueError(f"{what} has shape {values.shape}; allowed: ({count},)")
        self.class_names = tuple(class_names)
        if count and not 0 <= self.class_ids.min() <= self.class_ids.max() < len(self.class_names):
            raise ValueError(
                f"class_ids are {self.class_ids.min()} to {self.class_ids.max()}; allowed: 0 to "
                f"{len(self.class_names) - 1}"
            )
        if category_ids is None:
            category_ids = range(1, len(self.class_names) + 1)
        self.category_ids = tuple(category_ids)
        self.image = image
        self.name = name
        self.layout = layout
        self._instances = instances
        self._probability = None if probability is None else np.float32(probability)
        if probability is not None and self._probability.shape != labels.shape:
            raise ValueError(
                f"probability has shape {self._probability.shape}; allowed: {labels.shape}"
            )
        self._is_tiled = is_packed

    @classmethod
    def from_instances(
        cls,
        instances: Instances,
        class_names: Sequence[str] = ("object",),
        min_score: float = 0.0,
        **options: Any,
    ) -> "Segmentation":
        """Makes a label map of instances, in which the highest score is in front.

        An instance of which less than half is visible behind better ones is no object of the map,
        as in the panoptic format (Kirillov et al., CVPR 2019).

        Args:
            instances: ``pred_masks`` (N, H, W) bool, ``scores`` (N,) and ``pred_classes`` (N,).
            class_names: names of all classes of the model.
            min_score: instances with a lower score are no objects, but count in the probability.
            options: ``category_ids``, ``image``, ``name`` and ``layout``.

        Raises:
            ValueError: The instances have no masks.
        """
        if not instances.has("pred_masks"):
            raise ValueError("the model predicts no masks; allowed: models that do")
        instances = instances.to("cpu")
        instances = instances[instances.scores.argsort(descending=True, stable=True)]
        labels = np.zeros(instances.image_size, np.uint32)
        probability = np.zeros(instances.image_size, np.float32)
        scores = instances.scores.numpy()
        for number, score in enumerate(scores, start=1):
            mask = instances.pred_masks[number - 1].numpy()
            np.copyto(probability, score, where=mask & (probability == 0))
            if score >= min_score:
                visible = mask & (labels == 0)
                if 2 * np.count_nonzero(visible) >= np.count_nonzero(mask):
                    labels[visible] = number
        visible = np.unique(labels)
        instances = instances[[int(number) - 1 for number in visible if number > 0]]
        return cls(
            labels,
            instances.scores.numpy(),
            instances.pred_classes.numpy(),
            class_names,
            instances=instances,
            probability=probability,
            **options,
        )

    @property
    def instances(self) -> Instances:
        """Detectron2's ``Instances``, with the masks that the model predicted if there are any.

        Of an image that was divided into tiles, ``pred_masks`` is a list of N masks (h, w) bool,
        each cropped to the box of the object: whole masks would not fit into memory.
        """
        if self._instances is None:
            instances = Instances(self.labels.shape)
            if self._is_tiled:
                boxes, instances.pred_masks = self._cropped_masks()
                instances.pred_boxes = Boxes(boxes)
            else:
                numbers = np.arange(1, len(self) + 1, dtype=self.labels.dtype).reshape(-1, 1, 1)
                instances.pred_masks = torch.from_numpy(self.labels[None] == numbers)
                instances.pred_boxes = BitMasks(instances.pred_masks).get_bounding_boxes()
            instances.scores = torch.from_numpy(self.scores)
            instances.pred_classes = torch.from_numpy(self.class_ids)
            self._instances = instances
        return self._instances

    @property
    def probability(self) -> np.ndarray:
        """(H, W) float32, the highest score of an object at each pixel, 0 where there is none.

        Objects that were left out because of their score count, too, except in an image that was
        divided into tiles.
        """
        if self._probability is None:
            of_label = np.concatenate([[0], self.scores]).astype(np.float32)
            self._probability = of_label[self.labels]
        return self._probability

    def _cropped_masks(self) -> Tuple[torch.Tensor, List[torch.Tensor]]:
        """Returns the boxes (N, 4) of the objects, and their masks inside the boxes."""
        boxes, masks = torch.zeros(len(self), 4), []
        windows = ndimage.find_objects(self.labels.astype(np.int32, copy=False), len(self))
        for number, (rows, columns) in enumerate(windows):
            boxes[number] = torch.tensor([columns.start, rows.start, columns.stop, rows.stop])
            masks.append(torch.from_numpy(self.labels[rows, columns] == number + 1))
        return boxes, masks

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

        if self.image is None:
            return regionprops_table(self.labels, properties=_PROPERTIES)
        properties = (*_PROPERTIES, "mean_intensity")
        return regionprops_table(self.labels, self.image.mean(axis=2), properties=properties)

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
        * ``.zarr``: the label map as a Zarr array, which is a folder.

        Images that are larger than memory have label maps in ``.tif`` and ``.zarr`` alone.

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
