"""A vote of superpixels as post-processing of semantic label maps."""

import numpy as np
import torch

__all__ = ["SuperpixelVote"]


class SuperpixelVote:
    """Averages class probabilities over superpixels (Farabet et al., PAMI 2013, section 4.1).

    The superpixels are those of Felzenszwalb & Huttenlocher (IJCV 2004), from scikit-image.
    """

    def __init__(self, scale: float = 100.0, sigma: float = 0.8, min_size: int = 50):
        """
        Args:
            scale: scale of observation; with a larger one, superpixels are larger.
            sigma: standard deviation in pixels of the Gaussian that smooths the image before.
            min_size: smallest area of a superpixel in pixels.
        """
        self.scale = scale
        self.sigma = sigma
        self.min_size = min_size

    def __call__(self, image: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
        """Replaces the class probabilities of each pixel by the mean of its superpixel.

        Args:
            image: (H, W, 3) uint8.
            probabilities: (K, H, W) float32.

        Returns:
            (K, H, W) float32.
        """
        from skimage.segmentation import felzenszwalb  # slow to import

        segments = felzenszwalb(image, self.scale, self.sigma, self.min_size)
        index = torch.from_numpy(segments.ravel().astype(np.int64))
        pixels = torch.from_numpy(probabilities.astype(np.float64)).flatten(1)  # (K, H * W)
        count = int(index.max()) + 1
        sums = pixels.new_zeros(len(pixels), count).index_add_(1, index, pixels)
        means = sums / torch.bincount(index, minlength=count).clamp(min=1)
        return means[:, index].view(probabilities.shape).float().numpy()
