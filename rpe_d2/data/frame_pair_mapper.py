"""The dataset mapper of temporal propagation: pairs of frames from pictures."""

import zlib
from typing import Any, Dict, Optional, Tuple

import numpy as np
import torch
from detectron2.config import CfgNode, configurable

from rpe_d2.utils.frame_properties import PROPERTIES, split_lab, to_planes
from rpe_d2.utils.optical_flow import SMALLEST_SIDE, flow_positions, warp

from .frame_pairs import Frame, FramePair, change_light, make_frame_pair
from .image_mapper import ImageMapper

__all__ = ["FramePairMapper", "pair_tensors"]

# Largest exposure of the guidance of "rgb", which shows highlights as white.
_EXPOSURE = 3.0
# How often, in training, the key frame is warped to the target by optical flow before.
_ALIGNED = 0.3


class FramePairMapper(ImageMapper):
    """A dataset mapper that makes two frames of a video from a picture.

    The picture is read, resized and flipped as by :class:`ImageMapper`, and its label map, if there
    is one, gives the layers that :func:`rpe_d2.data.frame_pairs.make_frame_pair` moves. The dict
    gets

    * ``key_property`` and ``target_property`` (K, h, w) float32;
    * ``key_guidance`` and ``target_guidance`` (G, h, w) float32 in 0-1;
    * ``occluded`` (h, w) bool, pixels of the target that the key frame does not show;
    * ``property_kind``, one of :data:`rpe_d2.utils.frame_properties.PROPERTIES`, which describes
      the values.

    Light changes the guidance alone, so that a point of the scene has one property. In some
    training pairs, optical flow has warped the key frame to the target, because a network may be
    applied so. The size of the frames is ``INPUT.CROP.SIZE`` with ``INPUT.CROP.ENABLED``, and that
    of the picture without. In testing, the window is in the center, and a pair depends on nothing
    but the ``image_id``.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        property_kind: str = "ab",
        size: Optional[Tuple[int, int]] = None,
        **kwargs: Any,
    ):
        """
        Args:
            is_train: whether the mapper is used in training.
            property_kind: one of "ab", "rgb" and "masks".
            size: height and width of the frames; None for those of the picture.
            kwargs: arguments of :class:`ImageMapper`. Images are always read as RGB.
        """
        if property_kind not in PROPERTIES:
            raise ValueError(
                f"property_kind is {property_kind!r}; allowed: {', '.join(PROPERTIES)}"
            )
        super().__init__(is_train, **{**kwargs, "image_format": "RGB"})
        self.property_kind = property_kind
        self.size = size

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> Dict[str, Any]:
        crop = cfg.INPUT.CROP
        if crop.ENABLED and crop.TYPE != "absolute":
            raise ValueError(
                f"INPUT.CROP.TYPE is {crop.TYPE}; allowed with FramePairMapper: absolute"
            )
        # The frames are windows of the whole picture, because what is outside may enter.
        whole = cfg.clone()
        whole.defrost()
        whole.INPUT.CROP.ENABLED = False
        return {
            **super().from_config(whole, is_train),
            "property_kind": cfg.MODEL.TPN.PROPERTY,
            "size": tuple(map(int, crop.SIZE)) if crop.ENABLED else None,
        }

    def __call__(self, dataset_dict: Dict[str, Any]) -> Dict[str, Any]:
        """
        Raises:
            UnreadableImage: The image or its label map cannot be read or has a wrong size.
        """
        item = super().__call__(dataset_dict)
        picture = item.pop("image").permute(1, 2, 0).numpy()
        labels = item.pop("sem_seg", None)
        if self.is_train:
            seed = np.random.randint(2**31)  # the generator of a run, which resumes
        else:
            seed = zlib.crc32(str(item["image_id"]).encode())
        random = np.random.default_rng(seed)
        pair = make_frame_pair(
            picture,
            None if labels is None else labels.numpy(),
            self.size or picture.shape[:2],
            random,
            centered=not self.is_train,
        )
        item["height"], item["width"] = pair.occluded.shape
        is_aligned = self.is_train and random.random() < _ALIGNED
        return {**item, **pair_tensors(pair, self.property_kind, random, is_aligned)}


def pair_tensors(
    pair: FramePair, property_kind: str, random: np.random.Generator, is_aligned: bool = False
) -> Dict[str, Any]:
    """Computes the properties and guidances of two frames.

    Args:
        pair: the frames.
        property_kind: one of "ab", "rgb" and "masks", see :mod:`rpe_d2.utils.frame_properties`.
        random: source of random numbers, for the light.
        is_aligned: whether optical flow warps the key frame to the target. Frames that are too
            small for it stay as they are.

    Returns:
        The values that :class:`FramePairMapper` adds to a dict.
    """
    frames = (pair.key, pair.target)
    exposure = random.uniform(1, _EXPOSURE) if property_kind == "rgb" else 1.0
    shown = change_light([frame.picture for frame in frames], random, exposure)
    properties = [_property(frame, property_kind) for frame in frames]
    guidances = [_guidance(picture, property_kind) for picture in shown]
    if is_aligned and min(pair.occluded.shape) >= SMALLEST_SIDE:
        positions = flow_positions(*(np.rint(picture).astype(np.uint8) for picture in shown))
        properties[0], guidances[0] = (warp(m, positions) for m in (properties[0], guidances[0]))
    item: Dict[str, Any] = {"property_kind": property_kind}
    for role, prop, guidance in zip(("key", "target"), properties, guidances):
        item[f"{role}_property"] = torch.from_numpy(prop)
        item[f"{role}_guidance"] = torch.from_numpy(guidance)
    item["occluded"] = torch.from_numpy(pair.occluded)
    return item


def _property(frame: Frame, kind: str) -> np.ndarray:
    if kind == "masks":
        return np.ascontiguousarray(frame.shares[1:])
    return split_lab(frame.picture)[1] if kind == "ab" else to_planes(frame.picture / 255)


def _guidance(picture: np.ndarray, kind: str) -> np.ndarray:
    return split_lab(picture)[0] if kind == "ab" else to_planes(picture / 255)
