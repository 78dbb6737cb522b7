"""A fully connected CRF as post-processing, the baseline for refining semantic label maps."""

import importlib.util

import numpy as np

__all__ = ["DenseCRF"]


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
