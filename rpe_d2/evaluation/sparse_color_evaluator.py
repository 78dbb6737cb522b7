"""Errors of colors that were spread from a few pixels."""

from collections import OrderedDict
from typing import Any, Dict, List, Optional

import numpy as np
import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch.nn import functional as F

from .color_metrics import PEAK, delta_e, psnr


def color_errors(pred: np.ndarray, target: np.ndarray, lightness: np.ndarray) -> Dict[str, float]:
    """Compares the colors of pixels.

    Args:
        pred, target: (2, N), a and b of OpenCV's 8-bit Lab in 0-255.
        lightness: (N,) L of the pixels, 255 for white.

    Returns:
        "PSNR" in dB and "delta_E", the mean CIEDE2000; see :mod:`color_metrics`.
    """
    return {"PSNR": psnr(pred, target), "delta_E": delta_e(pred, target, lightness)}


class SparseColorEvaluator(DatasetEvaluator):
    """Evaluates colors at the pixels that were not given, as means of :func:`color_errors`."""

    def __init__(self, distributed: bool = True):
        """
        Args:
            distributed: whether to gather the results of all processes. Only the main process
                returns metrics.
        """
        self._distributed = distributed
        self.reset()

    def reset(self) -> None:
        self._errors: List[Dict[str, float]] = []

    def process(self, inputs: List[Dict[str, Any]], outputs: List[Dict[str, Any]]) -> None:
        """
        Args:
            inputs: dicts with ``image`` (3, H, W), the lightness, ``values`` (2, H, W) in 0-1, and
                ``known`` (H, W) bool.
            outputs: dicts with ``sparse_values`` (2, h, w) in 0-1.
        """
        for item, output in zip(inputs, outputs):
            target, unknown = item["values"], ~item["known"]
            pred = output["sparse_values"].to("cpu", torch.float32)
            if pred.shape != target.shape:
                pred = F.interpolate(pred[None], size=target.shape[-2:], mode="bilinear")[0]
            if bool(unknown.any()):
                colors = (PEAK * maps[:, unknown].numpy() for maps in (pred, target))
                self._errors.append(color_errors(*colors, item["image"][0, unknown].numpy()))

    def evaluate(self) -> Optional["OrderedDict[str, Dict[str, float]]"]:
        """Returns metrics on the main process and None on others."""
        errors = self._errors
        if self._distributed:
            comm.synchronize()
            errors = [error for part in comm.gather(errors, dst=0) for error in part]
            if not comm.is_main_process():
                return None
        names = ("PSNR", "delta_E")
        means = {
            name: float(np.mean([error[name] for error in errors])) if errors else float("nan")
            for name in names
        }
        return OrderedDict(sparse_color=means)
