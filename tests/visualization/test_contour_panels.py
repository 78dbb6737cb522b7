"""Contours stay visible, and every level has its own colors and outputs."""

import math

import numpy as np
import torch
from matplotlib.figure import Figure

from rpe_d2.ops.color import embedding_to_rgb
from rpe_d2.visualization import angle_panels, annotator_panels, level_panels


def pictures(panels):
    result = []
    for panel in panels:
        axes = Figure().add_subplot()
        panel.draw(axes)
        result.extend(np.asarray(image.get_array()) for image in axes.images)
    return result


def test_annotators_keep_their_lines_in_a_smaller_panel():
    annotations = np.zeros((8, 600, 900), bool)
    annotations[:, :, 301] = True
    annotations[:4, 200, :] = True
    panels = annotator_panels(annotations, one_by_one=True)
    assert [p.title for p in panels] == ["annotators", *(f"annotator {n}" for n in range(1, 7))]
    together, first = pictures(panels)[:2]
    assert max(together.shape[:2]) == 380
    # Black where all agree, gray where half do, white elsewhere. Lines have no gaps.
    assert together.min(axis=1).max() < 0.5
    assert abs(together.min(axis=0)[-20:] - 0.5).max() < 0.3
    assert together[20:, -20:].mean() > 0.95 and first.min() < 0.3


def test_levels():
    embeddings = torch.nn.functional.normalize(torch.randn(2, 3, 20, 30), dim=1)
    truth = np.zeros((20, 30))
    truth[:, 7] = 1
    scores = torch.stack([torch.from_numpy(truth).float(), torch.full((20, 30), 0.25)])
    for method in ("random", "pca"):
        colors, outputs = level_panels(embeddings, scores, ["res2", "all"], method, truth)
        assert [p.title for p in colors] == ["embeddings, res2", "embeddings, all"]
        expected = embedding_to_rgb(embeddings[1], method).permute(1, 2, 0)
        assert abs(pictures(colors)[1].mean((0, 1)) - expected.mean((0, 1)).numpy()).max() < 0.05
    assert outputs[0].note == "1.00 on boundaries, 0.00 off"
    np.testing.assert_allclose(pictures(outputs)[1], 0.75, atol=1e-4)
    assert level_panels(embeddings, scores, ["res2", "all"])[1][0].note == ""


def test_angles_that_encode_the_orientation_of_a_contour():
    """Around a circle, embeddings at twice the angle of the contour are on a Möbius strip."""
    rows, columns = np.indices((120, 120)) - 59.5
    radius = np.hypot(rows, columns)
    truth = (np.abs(radius - 40) < 0.7).astype(float)
    angle = np.arctan2(rows, columns)
    noise = np.random.default_rng(0).normal(size=(2, 120, 120)) * 0.01
    circle = torch.from_numpy(np.stack([np.cos(2 * angle), np.sin(2 * angle)]) + noise)
    single, doubled = angle_panels(circle, truth)
    assert (single.title, doubled.title) == ("angle", "angle, doubled")
    assert float(single.note.split()[1].strip(",")) > 0.95
    assert float(doubled.note.split()[1]) < 0.1
    distance = torch.from_numpy(np.abs(radius - 40))
    (first, _) = angle_panels(torch.stack([distance, torch.from_numpy(noise[0])]), truth)
    assert float(first.note.split()[-1]) > 0.9
    far = pictures([single])[0][0, 0]
    assert far.min() > 0.99  # white
    assert angle_panels(circle, np.zeros((120, 120))) == []
    assert not math.isnan(float(first.note.split()[1].strip(",")))
