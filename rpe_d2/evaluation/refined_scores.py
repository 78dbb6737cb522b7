"""Evaluation of semantic maps after the class scores were refined with the image."""

from typing import Any, Callable, Dict, List

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.evaluation import DatasetEvaluator

__all__ = ["RefinedScoresEvaluator"]

_YUV = "YUV-BT.601"  # Detectron2's only format whose images are not 8-bit


class RefinedScoresEvaluator(DatasetEvaluator):
    """Wraps an evaluator and refines the class scores of each image, as by a dense CRF."""

    def __init__(
        self,
        refine: Callable[[np.ndarray, np.ndarray], np.ndarray],
        evaluator: DatasetEvaluator,
        image_format: str = "RGB",
    ):
        """
        Args:
            refine: refines probabilities (K, H, W) float32 with an image (H, W, 3) uint8 RGB, as
                :class:`DenseCRF` and :class:`SuperpixelVote` do.
            evaluator: an evaluator of "sem_seg".
            image_format: format of the inputs, ``INPUT.FORMAT``.
        """
        self.refine = refine
        self.evaluator = evaluator
        self.image_format = image_format

    def reset(self) -> None:
        self.evaluator.reset()

    def process(self, inputs: List[Dict[str, Any]], outputs: List[Dict[str, Any]]) -> None:
        """
        Args:
            inputs: dicts with "image" (C, h, w) in the format.
            outputs: dicts with "sem_seg", class logits (K, H, W).
        """
        self.evaluator.process(
            inputs, [{**y, "sem_seg": self._refined(x, y)} for x, y in zip(inputs, outputs)]
        )

    def _refined(self, one_input: Dict[str, Any], output: Dict[str, Any]) -> torch.Tensor:
        probabilities = output["sem_seg"].float().softmax(dim=0).cpu()
        image = one_input["image"][None].float().cpu()
        image = F.interpolate(image, probabilities.shape[-2:], mode="bilinear", align_corners=False)
        pixels = image[0].permute(1, 2, 0).numpy()
        if self.image_format != _YUV:
            pixels = _to_8_bit(pixels)
        rgb = _to_8_bit(convert_image_to_rgb(pixels, self.image_format))
        return torch.from_numpy(self.refine(rgb, probabilities.numpy()))

    def evaluate(self) -> Dict[str, Any]:
        return self.evaluator.evaluate()


def _to_8_bit(pixels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pixels.clip(0, 255).round().astype(np.uint8))
