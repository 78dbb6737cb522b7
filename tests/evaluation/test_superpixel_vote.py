import numpy as np
from skimage.segmentation import felzenszwalb

from rpe_d2.evaluation import SuperpixelVote


def test_pixels_get_the_mean_of_their_superpixel():
    rng = np.random.default_rng(0)
    image = np.zeros((24, 30, 3), np.uint8)
    image[:, 10:20], image[8:16, 20:] = 120, 250
    image += rng.integers(0, 5, image.shape, dtype=np.uint8)
    probabilities = rng.dirichlet(np.ones(4), (24, 30)).transpose(2, 0, 1).astype(np.float32)
    refined = SuperpixelVote(scale=50.0, sigma=0.5, min_size=20)(image, probabilities)
    assert refined.dtype == np.float32 and refined.shape == probabilities.shape
    segments = felzenszwalb(image, scale=50.0, sigma=0.5, min_size=20)
    assert segments.max() > 1
    for label in np.unique(segments):
        rows, columns = np.nonzero(segments == label)
        assert len(rows) >= 20
        total = np.zeros(4)
        for row, column in zip(rows, columns):
            total += probabilities[:, row, column]
        for row, column in zip(rows, columns):
            np.testing.assert_allclose(refined[:, row, column], total / len(rows), rtol=1e-6)


def test_settings_reach_the_superpixels():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    probabilities = rng.dirichlet(np.ones(3), (32, 32)).transpose(2, 0, 1).astype(np.float32)
    usual = SuperpixelVote()(image, probabilities)
    for changed in ({"scale": 1.0}, {"sigma": 0.0}, {"min_size": 1}):
        assert not np.allclose(SuperpixelVote(**changed)(image, probabilities), usual), changed
