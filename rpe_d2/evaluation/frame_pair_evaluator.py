"""How well a property is propagated from one frame of a pair to the other."""

from collections import OrderedDict
from typing import Any, Dict, List, Optional

import numpy as np
import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from rpe_d2.utils.frame_properties import GRAY_LEVELS

from .color_metrics import LEAST_SQUARE, PEAK


class FramePairEvaluator(DatasetEvaluator):
    """Compares the property that a model predicts for a frame with the true one, and with a copy.

    Inputs are those of :class:`rpe_d2.data.FramePairMapper`. Results for "frame_pairs":

    * ``psnr``: peak signal-to-noise ratio in dB, mean over pairs. Differences are in levels of 8
      bits, for colors those of OpenCV's Lab, and the peak is 255. It is at most 58.9, the
      error of rounding to 8 bits.
    * ``psnr_copy``: the same of the key frame's property, unmoved.
    * ``psnr_occluded``, ``psnr_occluded_copy``: over the pixels that the key frame does not show.
    * ``J``, ``J_copy``: for masks, mean IoU over masks in percent, above 0.5. Masks that are empty
      in the target frame are left out.
    * ``pairs``: number of pairs.

    Scores are NaN if no pair has such pixels or masks.
    """

    def __init__(self, dataset_name: str, distributed: bool = True):
        """
        Args:
            dataset_name: name of the dataset in messages.
            distributed: whether to gather the results of all processes. Only the main process
                returns metrics.
        """
        self._dataset_name = dataset_name
        self._distributed = distributed
        self.reset()

    def reset(self) -> None:
        self._scores: Dict[str, List[float]] = {}

    def process(self, inputs: List[Dict[str, Any]], outputs: List[Dict[str, Any]]) -> None:
        """
        Args:
            inputs: dicts with ``key_property``, ``target_property``, ``occluded`` and
                ``property_kind``.
            outputs: dicts with ``property`` like ``target_property``.

        Raises:
            ValueError: An output has no property.
        """
        for item, output in zip(inputs, outputs):
            if "property" not in output:
                keys = ", ".join(output) or "nothing"
                raise ValueError(
                    f"the model's output for {self._dataset_name} has no property, found {keys}"
                )
            kind, target = item["property_kind"], item["target_property"].cpu().double()
            found = {"": output["property"].cpu().double(), "_copy": item["key_property"].double()}
            for suffix, prediction in found.items():
                squares = ((prediction - target) * GRAY_LEVELS[kind]).square()
                self._add(f"psnr{suffix}", _psnr(squares))
                hidden = squares[:, item["occluded"]]
                if hidden.numel():
                    self._add(f"psnr_occluded{suffix}", _psnr(hidden))
                if kind == "masks":
                    for iou in _ious(prediction, target):
                        self._add(f"J{suffix}", 100 * iou)

    def _add(self, name: str, score: float) -> None:
        self._scores.setdefault(name, []).append(score)

    def evaluate(self) -> Optional["OrderedDict[str, Dict[str, float]]"]:
        """Returns metrics on the main process and None on others."""
        parts = [self._scores]
        if self._distributed:
            comm.synchronize()
            parts = comm.gather(self._scores, dst=0)
            if not comm.is_main_process():
                return None
        names = ["psnr", "psnr_copy", "psnr_occluded", "psnr_occluded_copy"]
        if any("J" in part for part in parts):
            names += ["J", "J_copy"]
        scores = {name: sum((part.get(name, []) for part in parts), []) for name in names}
        result = {
            name: float(np.mean(values)) if values else float("nan")
            for name, values in scores.items()
        }
        return OrderedDict(frame_pairs={**result, "pairs": len(scores["psnr"])})


def _psnr(squares: torch.Tensor) -> float:
    return float(10 * torch.log10(PEAK**2 / squares.mean().clamp(min=LEAST_SQUARE)))


def _ious(prediction: torch.Tensor, target: torch.Tensor) -> List[float]:
    """Computes the IoU of the masks (K, H, W) that are not empty in the target."""
    pred, true = (maps > 0.5 for maps in (prediction, target))
    intersection = (pred & true).flatten(1).sum(dim=1)
    union = (pred | true).flatten(1).sum(dim=1)
    is_there = true.flatten(1).any(dim=1)
    return (intersection[is_there] / union[is_there]).tolist()
