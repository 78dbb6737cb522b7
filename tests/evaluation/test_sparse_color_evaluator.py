"""Errors of colors at the pixels that were not given."""

import math

import pytest
import torch
from skimage.color import deltaE_ciede2000

from rpe_d2.evaluation import SparseColorEvaluator


def slow_errors(pred, target, known, lightness):
    """PSNR and mean CIEDE2000 of an image, pixel by pixel."""
    squares, distances = [], []
    for y in range(known.shape[0]):
        for x in range(known.shape[1]):
            if not known[y, x]:
                a, b = ((255 * (pred - target))[:, y, x]).tolist()
                squares += [a * a, b * b]
                level = 100 / 255 * float(lightness[y, x])
                lab = [(level, *(255 * maps[:, y, x] - 128).tolist()) for maps in (pred, target)]
                distances.append(float(deltaE_ciede2000(*lab)))
    error = sum(squares) / len(squares)
    return 10 * math.log10(255 * 255 / error), sum(distances) / len(distances)


def test_means_over_images_of_what_was_not_given():
    generator = torch.Generator().manual_seed(0)
    evaluator = SparseColorEvaluator(distributed=False)
    expected = []
    for _ in range(3):
        pred, target = torch.rand(2, 2, 6, 9, generator=generator)
        known = torch.rand(6, 9, generator=generator) < 0.3
        pred = torch.where(known, 1e3, pred)
        image = torch.randint(256, (1, 6, 9), generator=generator, dtype=torch.uint8)
        item = {"image": image.expand(3, -1, -1), "values": target, "known": known}
        evaluator.process([item], [{"sparse_values": pred}])
        expected.append(slow_errors(pred, target, known, image[0]))
    found = evaluator.evaluate()["sparse_color"]
    assert found["PSNR"] == pytest.approx(sum(e[0] for e in expected) / 3)
    assert found["delta_E"] == pytest.approx(sum(e[1] for e in expected) / 3)
    evaluator.reset()
    assert math.isnan(evaluator.evaluate()["sparse_color"]["PSNR"])


def test_results_are_compared_at_the_size_of_the_input():
    evaluator = SparseColorEvaluator(distributed=False)
    target, known = torch.full((2, 6, 8), 0.5), torch.zeros(6, 8, dtype=torch.bool)
    output = {"sparse_values": torch.full((2, 12, 16), 0.5 + 10 / 255)}
    item = {"image": torch.full((3, 6, 8), 128), "values": target, "known": known}
    evaluator.process([item], [output])
    found = evaluator.evaluate()["sparse_color"]
    assert found["PSNR"] == pytest.approx(20 * math.log10(25.5), rel=1e-4)
    assert 5 < found["delta_E"] < 10 * math.sqrt(2)  # that of Euclid, for colors near gray
