"""The precision-recall plot."""

import io

import numpy as np
import pytest
from PIL import Image

from rpe_d2.ops.boundary_scores import OperatingPoint, boundary_scores
from rpe_d2.visualization import precision_recall_plot
from rpe_d2.visualization.precision_recall import SOFTWARE

COUNTS = np.array([[[90, 100, 90, 300], [60, 100, 60, 80], [0, 100, 0, 0]]])
BLUE = (33, 102, 172)
GREEN = (27, 120, 55)


def draw(counts: np.ndarray, human=None) -> np.ndarray:
    content = precision_recall_plot(boundary_scores(counts), human, "a model", 1)
    with Image.open(io.BytesIO(content)) as image:
        assert image.format == "PNG" and image.info["Software"] == SOFTWARE
        return np.asarray(image.convert("RGB"))


def count(picture: np.ndarray, color) -> int:
    return int((picture == color).all(axis=2).sum())


def test_curve_and_human_point() -> None:
    alone = draw(COUNTS)
    assert min(alone.shape[:2]) > 700 and count(alone, BLUE) > 200 and count(alone, GREEN) == 0
    assert count(draw(COUNTS, OperatingPoint(None, 0.7, 0.9, 0.7875)), GREEN) > 200


@pytest.mark.parametrize("counts", [np.zeros((1, 1, 4), int), COUNTS[:, :1], np.zeros((2, 99, 4))])
def test_degenerate_curves(counts: np.ndarray) -> None:
    assert min(draw(counts.astype(np.int64)).shape[:2]) > 700


def test_thresholds_without_predictions_are_not_drawn() -> None:
    picture = draw(COUNTS)
    without = draw(COUNTS[:, :2])
    assert abs(count(picture, BLUE) - count(without, BLUE)) < 100
