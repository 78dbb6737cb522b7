"""A model that segments images: from a run's folder, or from a configuration and weights."""

import os
import threading
from collections import defaultdict
from functools import cached_property
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import Metadata
from detectron2.structures import Instances

from rpe_d2.engine.datasets import register_present_datasets
from rpe_d2.engine.host_models import default_confidence_threshold
from rpe_d2.engine.run_classes import drawing_metadata, read_classes
from rpe_d2.engine.run_errors import named_run_errors
from rpe_d2.utils.image_files import split_plane
from rpe_d2.utils.images import ImageReader, to_rgb
from rpe_d2.utils.tiff_files import TiffLayout, tiff_layout
from rpe_d2.utils.windows import NetworkWindows, is_zarr, number_of_pixels, open_windows

from .predictor import (
    Predictor,
    check_needs_only_pictures,
    model_config,
    model_digest,
    with_instances,
)
from .segmentation import Segmentation
from .tiles import predict_tiles

__all__ = ["MOST_READ", "SMALLEST_TILE", "Segmenter"]

# Images that go through the network together, at most.
_BATCH = 8
# Pixels of the network's input up to which an image is not divided into tiles.
_MOST_PIXELS = 1024**2
# Pixels up to which an image is read at once.
MOST_READ = 100_000_000
# Length of a tile's core, and what is seen around it, in pixels of the network's input. Networks of
# rpe-d2 fit look at most 188 pixels far, so that a tile's core is predicted as the whole image.
_TILE, _MARGIN = 768, 192
SMALLEST_TILE = 64


class Segmenter:
    """Segments images with any Detectron2 model that predicts masks.

    A prediction changes nothing in an object of this class. Threads may share it; their predictions
    run one after the other.

    Attributes:
        weights: file of the weights.
        min_score: objects with a lower score are left out.
        class_names: names of the classes.
    """

    def __init__(self, cfg: CfgNode, metadata: Metadata, min_score: Optional[float] = None):
        """
        Args:
            cfg: the configuration. ``MODEL.WEIGHTS`` names the weights.
            metadata: names of the classes, as :func:`drawing_metadata` returns it.
            min_score: objects with a lower score are left out. None: the model's own threshold, for
                most models 0.5.
        """
        check_needs_only_pictures(cfg)
        self.weights = cfg.MODEL.WEIGHTS
        parts = {"MODEL": cfg.MODEL.clone(), "INPUT": cfg.INPUT, "TEST": cfg.TEST}
        parts["MODEL"].defrost()
        parts["MODEL"].WEIGHTS = parts["MODEL"].DEVICE = ""  # they do not change the predictions
        self._settings = "".join(part.dump() for part in parts.values())
        self.min_score = default_confidence_threshold(cfg) if min_score is None else min_score
        self._input = cfg.INPUT
        self._predictor = Predictor(cfg)
        self._lock = threading.Lock()
        self.class_names = tuple(metadata.get("thing_classes") or ("object",))
        ids = metadata.get("thing_dataset_id_to_contiguous_id")
        self._category_ids = sorted(ids, key=ids.get) if ids else None

    @classmethod
    def load(
        cls,
        model: Union[str, Path],
        weights: str = "",
        device: Optional[str] = None,
        *,
        min_score: Optional[float] = None,
        opts: Sequence[Any] = (),
    ) -> "Segmenter":
        """Loads a model.

        Args:
            model: the output folder of a training, the name of a model that comes with rpe_d2, or
                a configuration: a file, or the name of one that comes with rpe_d2.
            weights: file of weights. Empty: those of the folder, the best ones if an evaluation
                chose them, or those that the configuration names.
            device: "cpu", "cuda" or "cuda:1". None: a GPU where there is one.
            min_score: objects with a lower score are left out. None: the model's own threshold.
            opts: overrides of the configuration, KEY and VALUE by turns.

        Raises:
            ValueError: There is no such model, or the weights do not fit. The message is one line.
        """
        cfg, config = model_config(model, weights, device, opts)
        if read_classes(config) is None:
            register_present_datasets(cfg)
        return cls(cfg, drawing_metadata(cfg, config), min_score)

    def predict(
        self,
        images: Union[str, Path, np.ndarray, Sequence[Union[str, Path, np.ndarray]]],
        channels: Optional[str] = None,
        tile: Optional[int] = None,
    ) -> Union[Segmentation, List[Segmentation]]:
        """Segments one image or a list of images.

        Args:
            images: files, or arrays (H, W), (H, W, 1) or (H, W, 3) RGB of any number type. Numbers
                of more than 8 bits become 8 bits by ``INPUT.INTENSITY``.
            channels: ``INPUT.CHANNELS`` for arrays and files with other channels.
            tile: divide images into tiles of about this side in pixels, which overlap. 0: never.
                None: images are divided that are too large for the network at once, if the model
                has a fixed scale (``INPUT.SCALE``, or ``INPUT.MIN_SIZE_TEST`` 0). Other models see
                a tile at their ``INPUT.MIN_SIZE_TEST``.

        Returns:
            A segmentation, or a list for a list.

        Raises:
            UnreadableImage: An image cannot be read. The message is one line.
        """
        if isinstance(images, (str, Path, np.ndarray)):
            return self.predict([images], channels, tile)[0]
        if tile is not None and tile != 0 and tile < SMALLEST_TILE:
            raise ValueError(f"tile is {tile}; allowed: 0, or {SMALLEST_TILE} or more pixels")
        reader = self._predictor.reader.with_channels(channels)
        by_size: Dict[tuple, List[int]] = defaultdict(list)
        pictures: Dict[int, np.ndarray] = {}
        inputs: Dict[int, Dict[str, Any]] = {}
        found: Dict[int, Segmentation] = {}
        for number, image in enumerate(images):
            if not isinstance(image, np.ndarray) and _is_read_in_parts(str(image)):
                found[number] = self._predict_windows(str(image), reader, tile)
                continue
            is_array = isinstance(image, np.ndarray)
            picture = reader.from_array(image) if is_array else reader.read(str(image))
            converted = reader.convert(picture)
            tiling = self._tiling(converted, tile)
            if tiling is None:
                pictures[number] = picture
                inputs[number] = self._predictor.network_input(converted)
                by_size[tuple(inputs[number]["image"].shape)].append(number)
            else:
                found[number] = self._predict_tiles(converted, tiling, _name(image), picture)
        for numbers in by_size.values():
            for start in range(0, len(numbers), _BATCH):
                batch = numbers[start : start + _BATCH]
                outputs = self._run([inputs[number] for number in batch])
                for number, output in zip(batch, outputs):
                    name = _name(images[number])
                    found[number] = self._segmentation(output, pictures[number], name)
        return [found[number] for number in range(len(found))]

    def _predict_windows(self, name: str, reader: ImageReader, tile: Optional[int]) -> Segmentation:
        """Segments an image that is larger than memory, or a Zarr array."""
        if not (tile or self._scale):
            raise ValueError(
                f"{name} is read in parts, and the model has no fixed scale; allowed: a tile of "
                "the size of its training images (--tile)"
            )
        factor = self._scale or self._input.MIN_SIZE_TEST / tile
        length = max(1, round(tile * factor)) if tile else _TILE
        with open_windows(name) as stored:
            image = NetworkWindows(stored, reader)
            return self._predict_tiles(image, (factor, length), name)

    def _tiling(self, image: np.ndarray, tile: Optional[int]) -> Optional[Tuple[float, int]]:
        """Returns the factor of resizing and the length of a tile, both for the network's input.

        None if the image is not divided.
        """
        if tile == 0 or image.dtype != np.uint8:
            return None
        fixed = self._scale
        height, width = image.shape[:2]
        if tile is None:
            if not fixed or height * width * fixed**2 <= _MOST_PIXELS:
                return None
            return fixed, _TILE
        if max(height, width) <= tile:
            return None
        factor = fixed or self._input.MIN_SIZE_TEST / tile
        return factor, max(1, round(tile * factor))

    @property
    def _scale(self) -> float:
        """The factor by which all images are resized, 0 if it depends on their sizes."""
        return self._input.SCALE or (1.0 if self._input.MIN_SIZE_TEST == 0 else 0.0)

    def _predict_tiles(
        self,
        image: Union[np.ndarray, NetworkWindows],
        tiling: Tuple[float, int],
        name: str,
        picture: Optional[np.ndarray] = None,
    ) -> Segmentation:
        def run(item: Dict[str, Any]) -> Instances:
            instances = self._instances(self._run([item])[0])
            return instances[instances.scores >= self.min_score].to("cpu")

        found = predict_tiles(run, image, *tiling, _MARGIN)
        return Segmentation(
            found.labels,
            found.scores,
            found.class_ids,
            self.class_names,
            category_ids=self._category_ids,
            image=None if picture is None else to_rgb(picture),
            name=name,
            layout=_layout(name),
            is_packed=True,
        )

    def planes(self, file: Union[str, Path]) -> List[str]:
        """Returns the names of the planes of a file, such as ``stack.tif[3]``, or its own name.

        Raises:
            UnreadableImage: The file cannot be read.
        """
        return [str(file)] if is_zarr(str(file)) else self._predictor.reader.planes(str(file))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the weights and of the configuration, in hexadecimal digits."""
        return model_digest(self._predictor.model, self._settings)

    @torch.no_grad()
    def _run(self, inputs: List[Dict[str, Any]]) -> List[Dict[str, Any]]:
        with self._lock, named_run_errors():
            return self._predictor.model(inputs)

    def _segmentation(self, output: Dict[str, Any], picture: np.ndarray, name: str) -> Segmentation:
        return Segmentation.from_instances(
            self._instances(output),
            self.class_names,
            self.min_score,
            category_ids=self._category_ids,
            image=to_rgb(picture),
            name=name,
            layout=_layout(name),
        )

    @staticmethod
    def _instances(output: Dict[str, Any]) -> Instances:
        instances = with_instances(output).get("instances")
        if instances is None:
            raise ValueError("the model predicts no instances; allowed: models that do")
        return instances


def _is_read_in_parts(file: str) -> bool:
    return is_zarr(file) or number_of_pixels(file) > MOST_READ


def _layout(name: str) -> Optional[TiffLayout]:
    """Returns the layout of an image's TIFF file, None for other files and for arrays."""
    path, _ = split_plane(name)
    return tiff_layout(path) if os.path.isfile(path) else None


def _name(image: Union[str, Path, np.ndarray]) -> str:
    return "" if isinstance(image, np.ndarray) else str(image)
