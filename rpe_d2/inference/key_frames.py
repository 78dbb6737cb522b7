"""Key frames of a clip: pictures, label maps, or strokes that are spread over their frames."""

import hashlib
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Dict, List, Optional, Protocol, Sequence, Tuple

import numpy as np
import torch

from rpe_d2.ops.image_gates import image_gates, spread_known
from rpe_d2.utils.frame_properties import join_lab, split_lab
from rpe_d2.utils.image_files import (
    check_is_file,
    list_images,
    open_image,
    printable,
)
from rpe_d2.utils.images import ImageReader, to_rgb
from rpe_d2.utils.label_maps import read_class_indices, unlabeled_value
from rpe_d2.utils.readable import UnreadableImage
from rpe_d2.utils.video_files import Clip, frame_number

from .predictor import Predictor

__all__ = [
    "ColorKeys",
    "Completer",
    "KeyFrames",
    "LabelKeys",
    "SparsePredictor",
    "complete_by_edges",
    "find_keys",
]

# A pixel of a picture without opacities belongs to a stroke if a channel differs so much from the
# frame, in gray levels. Smaller differences may come from the compression of the frame.
_STROKE_DIFFERENCE = 16
# Difference of the lightness, in 0 to 1, that strokes hardly cross.
_EDGE = 0.05


class Completer(Protocol):
    """Spreads the values of strokes over a frame."""

    def __call__(self, frame: np.ndarray, maps: np.ndarray, known: np.ndarray) -> np.ndarray:
        """
        Args:
            frame: (H, W, 3) uint8 RGB.
            maps: (K, H, W) float32, at least 0, with the sum 1 at known pixels.
            known: (H, W) bool, where the strokes are.

        Returns:
            (K, H, W) float32 with the sum 1 at all pixels.
        """


def complete_by_edges(frame: np.ndarray, maps: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Spreads values within regions of the same lightness; a :class:`Completer`."""
    lightness = torch.from_numpy(split_lab(frame)[0])[None]
    gates = image_gates(lightness.double(), _EDGE)
    return spread_known(torch.from_numpy(maps), torch.from_numpy(known), gates).numpy()


class SparsePredictor:
    """Spreads values with a refiner of masks that has been trained; a :class:`Completer`."""

    def __init__(self, predictor: Predictor):
        """
        Args:
            predictor: predictor of a model that completes ``sparse_labels``.
        """
        self._predictor = predictor

    @torch.no_grad()
    def __call__(self, frame: np.ndarray, maps: np.ndarray, known: np.ndarray) -> np.ndarray:
        item = self._predictor.network_input(self._predictor.reader.convert(frame))
        sparse = torch.from_numpy(maps * known)
        output = self._predictor.model([{**item, "sparse_labels": sparse}])[0]
        return output["sparse_labels"].cpu().numpy()


def find_keys(clip: Clip, path: str, argument: str) -> Dict[int, str]:
    """Finds the files of key frames.

    Args:
        clip: the clip.
        path: a folder of images with the numbers of their frames in their names, or one image. An
            image without a number belongs to the first frame.
        argument: the argument that names it, for messages.

    Returns:
        Files by the indices of their frames, in ascending order.

    Raises:
        ValueError: There is no image, a name has no number or that of no frame, or two files have
            the same number.
    """
    if os.path.isdir(path):
        files = list_images(path)
        if not files:
            raise ValueError(f"{argument} {printable(path)} has no images; allowed: key frames")
        numbers = [frame_number(file) for file in files]
    else:
        check_is_file(path)
        if not os.path.isfile(path):
            raise ValueError(f"{argument} {printable(path)}: no such file or folder")
        files = [path]
        has_number = any(character.isdecimal() for character in Path(path).stem)
        numbers = [frame_number(path) if has_number else clip.numbers[0]]
    found: Dict[int, str] = {}
    for file, number in zip(files, numbers):
        where = f"{argument}: {printable(file)}"
        other = found.setdefault(clip.index_of(where, number), file)
        if other != file:
            raise ValueError(
                f"{where} has the number of {printable(os.path.basename(other))}; allowed: one "
                "file for each frame"
            )
    return dict(sorted(found.items()))


class KeyFrames(ABC):
    """The key frames of a clip and what is known of them."""

    def __init__(self, clip: Clip, files: Dict[int, str], complete: Optional[Completer] = None):
        """
        Args:
            clip: the clip.
            files: result of :func:`find_keys`.
            complete: spreads strokes over their frames. None: the files have values everywhere.

        Raises:
            UnreadableImage: A file cannot be read, does not have the size of the clip, or has no
                strokes. The message is one line.
        """
        self._clip, self._files, self._complete = clip, files, complete
        self._frames = clip.reader()
        self._images = ImageReader("RGB")
        self._known: Dict[int, np.ndarray] = {}  # of two key frames at most
        self._check()

    @property
    def indices(self) -> List[int]:
        """Indices of the key frames, ascending."""
        return list(self._files)

    def digest(self) -> str:
        """Returns the SHA-256 of all files and their indices, in hexadecimal digits."""
        digest = hashlib.sha256()
        for index, file in self._files.items():
            digest.update(f"{index} {hashlib.sha256(Path(file).read_bytes()).hexdigest()}".encode())
        return digest.hexdigest()

    def read(self, indices: Sequence[int]) -> List[np.ndarray]:
        """Returns the properties (C, H, W) float32 of one or two key frames."""
        for index in indices:
            if index not in self._known:
                values = self._read(self._files[index], index)
                self._known = {i: v for i, v in self._known.items() if i in indices}
                self._known[index] = values
        return self._maps([self._known[index] for index in indices])

    def _check_size(self, file: str, shape: Tuple[int, ...]) -> None:
        if shape[:2] != self._clip.size:
            sizes = ["{1} x {0}".format(*size) for size in (shape, self._clip.size)]
            raise UnreadableImage(
                f"{printable(file)} has {sizes[0]} pixels; allowed: the size of the clip, "
                f"{sizes[1]}"
            )

    def _check_strokes(self, file: str, known: np.ndarray, elsewhere: str) -> None:
        """Raises where no pixel or every pixel (H, W) is known; others are ``elsewhere``."""
        if not known.any():
            raise UnreadableImage(f"{printable(file)} has no strokes; allowed: one or more")
        if known.all():
            raise UnreadableImage(
                f"{printable(file)} has a value at every pixel; allowed with --strokes: few pixels "
                f"with a value, and {elsewhere} elsewhere"
            )

    @abstractmethod
    def result(self, values: np.ndarray, frame: np.ndarray) -> np.ndarray:
        """Turns a property into what is written to a file.

        Args:
            values: (C, H, W) float32, with the channels that :meth:`read` has returned last.
            frame: (H, W, 3) uint8 RGB.

        Returns:
            A picture (H, W, 3) uint8 RGB, or a label map (H, W).
        """

    @abstractmethod
    def _check(self) -> None:
        """Reads all files once, so that wrong ones are known before the work begins."""

    @abstractmethod
    def _read(self, file: str, index: int) -> np.ndarray:
        """Reads a file, and completes its strokes."""

    @abstractmethod
    def _maps(self, keys: List[np.ndarray]) -> List[np.ndarray]:
        """Returns the properties (C, H, W) of what :meth:`_read` returns."""


class ColorKeys(KeyFrames):
    """Colored pictures of key frames.

    Strokes are the opaque pixels of a picture with opacities, or the pixels in which a picture
    without them differs from its frame.
    """

    def _check(self) -> None:
        for index, file in self._files.items():
            self._colors_and_strokes(file, index)

    def _read(self, file: str, index: int) -> np.ndarray:
        colors, known = self._colors_and_strokes(file, index)
        if known is None:
            return colors
        # Both ends of each color, so that the maps have the sum 1.
        shares = (1 + colors) / 2
        ends = np.stack([shares, 1 - shares], axis=1).reshape(4, *known.shape) / 2
        spread = self._complete(self._frames.read(index), ends, known)
        upper, lower = spread[::2], spread[1::2]
        return (upper - lower) / np.maximum(upper + lower, 1e-12)

    def _colors_and_strokes(self, file: str, index: int) -> Tuple[np.ndarray, Optional[np.ndarray]]:
        """Returns the colors (2, H, W), and where the strokes are, (H, W) bool."""
        if self._complete is None:
            picture, known = to_rgb(self._images.read(file)), None
            self._check_size(file, picture.shape)
        else:
            with open_image(file) as image:
                pixels = image.pixels(0)
                picture = to_rgb(self._images.to_8bit(*pixels))
            self._check_size(file, picture.shape)
            if pixels.alpha is not None:
                alpha = pixels.array[:, :, pixels.alpha]
                known = alpha > _largest(alpha) / 2
            else:
                difference = np.abs(picture.astype(np.int16) - self._frames.read(index)).max(axis=2)
                known = difference > _STROKE_DIFFERENCE
            self._check_strokes(file, known, "transparent pixels, or those of the frame,")
        return split_lab(picture)[1], known

    def _maps(self, keys: List[np.ndarray]) -> List[np.ndarray]:
        return keys

    def result(self, values: np.ndarray, frame: np.ndarray) -> np.ndarray:
        return join_lab(split_lab(frame)[0], values)


def _largest(values: np.ndarray) -> float:
    """Returns the value of full opacity in the number type of an image."""
    return 1.0 if values.dtype.kind == "f" else float(np.iinfo(values.dtype).max)


class LabelKeys(KeyFrames):
    """Label maps of key frames, 0 for background.

    Maps of strokes have the largest value of their type, 255 in 8 bits, where no label is known.

    Attributes:
        dtype: the smallest unsigned type that holds all labels.
        labels: all labels, ascending.
    """

    dtype: type
    labels: List[int]

    def _check(self) -> None:
        present = set()
        for file in self._files.values():
            labels = self._labels(file)
            found = np.unique(labels)
            if self._complete is not None:
                unlabeled = unlabeled_value(labels)
                self._check_strokes(file, labels != unlabeled, f"{unlabeled}")
                found = found[found != unlabeled]
            present.update(found.tolist())
        self.labels = sorted(present)
        largest = max(self.labels, default=0)
        types = (np.uint8, np.uint16, np.uint32)
        self.dtype = next(kind for kind in types if largest <= np.iinfo(kind).max)

    def _labels(self, file: str) -> np.ndarray:
        labels = read_class_indices(file)
        self._check_size(file, labels.shape)
        if labels.min() < 0:
            raise UnreadableImage(
                f"{printable(file)} has the label {labels.min()}; allowed: 0 or more"
            )
        return labels

    def _read(self, file: str, index: int) -> np.ndarray:
        labels = self._labels(file)
        if self._complete is None:
            return labels.astype(np.int64)
        known = labels != unlabeled_value(labels)
        present = np.unique(labels[known])
        maps = (labels == present[:, None, None]).astype(np.float32)
        spread = self._complete(self._frames.read(index), maps, known)
        return present[spread.argmax(axis=0)].astype(np.int64)

    def _maps(self, keys: List[np.ndarray]) -> List[np.ndarray]:
        self._present = np.unique([0, *(label for key in keys for label in np.unique(key))])
        return [(key == self._present[:, None, None]).astype(np.float32) for key in keys]

    def result(self, values: np.ndarray, frame: np.ndarray) -> np.ndarray:
        return self._present[values.argmax(axis=0)].astype(self.dtype)
