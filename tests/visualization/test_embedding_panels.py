"""Panels of what embeddings encode, on embeddings that encode a known quantity."""

import re

import numpy as np
import torch
from matplotlib.figure import Figure

from rpe_d2.visualization import embedding_panels

SIZE = 41


def disc():
    """Labels of a disc of radius 12 around the middle, and the angle of each cell around it."""
    rows, columns = np.mgrid[:SIZE, :SIZE] - SIZE // 2
    return np.where(rows**2 + columns**2 <= 144, 0, -1), np.arctan2(rows, columns)


def numbers(note: str) -> list:
    return [float(text) for text in re.findall(r"-?\d+\.\d+|nan", note)]


def panels_of(angles: np.ndarray, labels: np.ndarray) -> list:
    x = torch.from_numpy(np.stack([np.cos(angles), np.sin(angles)])).float()
    return embedding_panels(x, x.flip(0), labels, bandwidth=0.3)


def test_embeddings_that_encode_the_orientation_of_edges():
    labels, angle = disc()
    single, *_ = numbers(panels_of(2 * angle, labels)[0].note)
    doubled, *_ = numbers(panels_of(angle, labels)[1].note)
    assert single > 0.94 and doubled > 0.94  # the edge has corners
    mirrored, *_ = numbers(panels_of(-angle, labels)[1].note)
    assert mirrored > 0.94
    assert numbers(panels_of(angle, labels)[0].note)[0] < 0.1  # opposite edges have other angles


def test_embeddings_that_encode_centers_and_sizes():
    labels = np.full((SIZE, SIZE), -1)
    labels[2:10, 2:10], labels[2:6, 30:34], labels[25:37, 10:22] = 0, 1, 2
    angles = np.select([labels == 0, labels == 1], [0.0, 2.0], 4.0)
    _, x, y, size = numbers(panels_of(angles, labels)[1].note)
    assert min(x, y, size) > 0.99  # three points are a linear function of three vectors


def test_steps_and_kernel():
    labels, angle = disc()
    _, _, steps, kernel = panels_of(np.zeros_like(angle), labels)
    assert steps.note == "mean length 1.414"  # from (1, 0) to (0, 1)
    axes = Figure().add_subplot()
    steps.draw(axes)
    kernel.draw(axes)
    (picture,) = axes.images
    assert np.ptp(picture.get_array()) < 1 and len(axes.lines) == 1  # all weights are equal
    (marker,) = axes.lines
    side = picture.get_array().shape[0]
    assert abs(marker.get_xdata()[0] - side / 2) < side / SIZE


def test_nothing_without_objects():
    assert panels_of(np.zeros((4, 4)), np.full((4, 4), -1)) == []
