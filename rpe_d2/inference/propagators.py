"""Ways to carry a property, such as color or masks, from one frame of a clip to another."""

from typing import Protocol

import numpy as np
import torch
from torch import nn

from rpe_d2.engine.run_errors import named_run_errors
from rpe_d2.utils.frame_properties import split_lab, to_planes
from rpe_d2.utils.optical_flow import flow_positions, warp

__all__ = [
    "AlignedPropagator",
    "NetworkPropagator",
    "Propagator",
    "copy_property",
    "flow_property",
]


class Propagator(Protocol):
    """Carries a property from a key frame to another frame."""

    def __call__(self, values: np.ndarray, key_frame: np.ndarray, frame: np.ndarray) -> np.ndarray:
        """
        Args:
            values: (C, H, W) float32, the property of the key frame, as
                :mod:`rpe_d2.utils.frame_properties` describes it.
            key_frame, frame: (H, W, 3) uint8 RGB.

        Returns:
            (C, H, W) float32, the property of the frame.
        """


def copy_property(values: np.ndarray, key_frame: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """Returns the property of the key frame as it is, a :class:`Propagator`."""
    return values


def flow_property(values: np.ndarray, key_frame: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """Moves the property along the optical flow DIS, a :class:`Propagator`.

    Kroeger et al., "Fast Optical Flow using Dense Inverse Search", ECCV 2016.
    """
    return warp(values, flow_positions(key_frame, frame))


class NetworkPropagator:
    """Applies a network for temporal propagation."""

    def __init__(self, model: nn.Module, kind: str):
        """
        Args:
            model: the network. Its method ``propagate`` takes the property of the key frame and
                the guidances of both frames, see :mod:`rpe_d2.utils.frame_properties`.
            kind: the kind of property, "ab" or "masks".
        """
        self._model, self._kind = model, kind

    @torch.no_grad()
    def __call__(self, values: np.ndarray, key_frame: np.ndarray, frame: np.ndarray) -> np.ndarray:
        inputs = (values, self._guidance(key_frame), self._guidance(frame))
        tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in inputs]
        with named_run_errors():
            return self._model.propagate(*tensors).float().cpu().numpy()

    def _guidance(self, frame: np.ndarray) -> np.ndarray:
        return split_lab(frame)[0] if self._kind == "ab" else to_planes(frame) / 255


class AlignedPropagator:
    """Warps the key frame and its property by optical flow, and then applies a propagator."""

    def __init__(self, propagator: Propagator):
        """
        Args:
            propagator: it corrects what the flow has warped.
        """
        self._propagator = propagator

    def __call__(self, values: np.ndarray, key_frame: np.ndarray, frame: np.ndarray) -> np.ndarray:
        positions = flow_positions(key_frame, frame)
        pixels = np.rint(warp(to_planes(key_frame), positions)).astype(np.uint8)
        aligned = np.ascontiguousarray(pixels.transpose(1, 2, 0))
        return self._propagator(warp(values, positions), aligned, frame)
