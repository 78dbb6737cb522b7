"""A fully connected CRF as post-processing, the baseline for refining semantic label maps."""

import importlib.util
from typing import Any, Dict, List

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.evaluation import DatasetEvaluator

__all__ = ["DenseCRF", "DenseCRFEvaluator"]


class DenseCRF:
    """A fully connected CRF (Krähenbühl & Koltun, NIPS 2011) from pydensecrf2 on one CPU thread."""

    def __init__(
        self, iterations: int = 5, position: float = 80.0, color: float = 13.0, weight: float = 10.0
    ):
        """
        Args:
            iterations: number of iterations of mean-field inference.
            position: standard deviation of the appearance kernel in position, in pixels.
            color: standard deviation of the appearance kernel in each channel of 0 to 255.
            weight: weight of the appearance kernel. The smoothness kernel has a standard deviation
                of 3 pixels and a weight of 3.

        Raises:
            ValueError: Pydensecrf2 is not installed.
        """
        if importlib.util.find_spec("pydensecrf") is None:
            raise ValueError(
                "the dense CRF (TEST.DENSE_CRF) needs pydensecrf2: pip install pydensecrf2"
            )
        self.iterations = iterations
        self.position = position
        self.color = color
        self.weight = weight

    def __call__(self, picture: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
        """Refines class probabilities.

        Args:
            picture: (H, W, 3) uint8.
            probabilities: (K, H, W) float32.

        Returns:
            (K, H, W) float32 probabilities.
        """
        from pydensecrf.densecrf import DenseCRF2D
        from pydensecrf.utils import unary_from_softmax

        count, height, width = probabilities.shape
        crf = DenseCRF2D(width, height, count)
        crf.setUnaryEnergy(unary_from_softmax(np.ascontiguousarray(probabilities)))
        crf.addPairwiseGaussian(sxy=3, compat=3)
        crf.addPairwiseBilateral(
            sxy=self.position,
            srgb=self.color,
            rgbim=np.ascontiguousarray(picture),
            compat=self.weight,
        )
        return np.array(crf.inference(self.iterations)).reshape(count, height, width)


class DenseCRFEvaluator(DatasetEvaluator):
    """Wraps an evaluator and refines the class scores of each image by a dense CRF."""

    def __init__(self, crf: DenseCRF, evaluator: DatasetEvaluator):
        """
        Args:
            crf: the refinement.
            evaluator: an evaluator of "sem_seg".
        """
        self.crf = crf
        self.evaluator = evaluator

    def reset(self) -> None:
        self.evaluator.reset()

    def process(self, inputs: List[Dict[str, Any]], outputs: List[Dict[str, Any]]) -> None:
        """
        Args:
            inputs: dicts with "image" (3, h, w) in 0 to 255.
            outputs: dicts with "sem_seg", class logits (K, H, W).
        """
        self.evaluator.process(
            inputs, [{**y, "sem_seg": self._refined(x, y)} for x, y in zip(inputs, outputs)]
        )

    def _refined(self, one_input: Dict[str, Any], output: Dict[str, Any]) -> torch.Tensor:
        probabilities = output["sem_seg"].float().softmax(dim=0).cpu()
        picture = one_input["image"][None].float()
        picture = F.interpolate(
            picture, probabilities.shape[-2:], mode="bilinear", align_corners=False
        )
        picture = picture[0].clamp(0, 255).round().byte().permute(1, 2, 0)
        return torch.from_numpy(self.crf(picture.numpy(), probabilities.numpy()))

    def evaluate(self) -> Dict[str, Any]:
        return self.evaluator.evaluate()
