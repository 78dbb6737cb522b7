"""Panels of contour detection: annotators' contours, predicted contours, and their embeddings."""

from typing import List, NamedTuple, Optional, Sequence

import cv2
import numpy as np
import torch
from scipy import ndimage

from rpe_d2.ops.color import embedding_to_rgb
from rpe_d2.ops.embedding_statistics import (
    angle_colors,
    orientation_correlation,
    plane_angles,
    variance_explained,
)

from .figure import PANEL_SIDE, Panel, image_panel

BOUNDARY_LEGEND = (
    "Annotators: a line is darker the more of them drew it. Boundaries: darker is more probable.",
    "Embeddings of each level (a backbone output, or all of them together): within a level, equal "
    "colors are equal embeddings. Boundaries should have one color and everything else another.",
    "Outputs of each level: their mean is the network's output, before thinning and, where several "
    "image sizes are tested, at the original size alone.",
    "Angles of the embeddings of all levels near contours, in their plane of largest variance. "
    "Orientation: their correlation with that of the contour, in 0 to 1. R²: how much of the "
    "distance to the contour a linear function of the embeddings explains.",
)
# Pixels up to this distance from a contour have an angle.
_NEAR = 4.0
# Largest number of annotators with panels of their own.
_MAX_ANNOTATORS = 6


def annotator_panels(annotations: np.ndarray, one_by_one: bool = False) -> List[Panel]:
    """Draws the contours of all annotators in one panel and optionally in a panel per annotator.

    Args:
        annotations: (A, H, W) bool.
        one_by_one: whether to add panels of the first six annotators.
    """
    count = len(annotations)
    title = "annotators"
    panels = [_line_panel(annotations.mean(axis=0), title, f"{count}; darker: drawn by more")]
    if one_by_one:
        for number, lines in enumerate(annotations[:_MAX_ANNOTATORS], start=1):
            panels.append(_line_panel(lines, f"annotator {number}", f"of {count}"))
    return panels


def boundary_panel(boundaries: np.ndarray, title: str, note: str = "") -> Panel:
    """Draws a map (H, W) of floats in 0 to 1, dark on white."""
    return _panel(_ink(boundaries), title, note)


def level_panels(
    embeddings: torch.Tensor,
    scores: torch.Tensor,
    names: Sequence[str],
    method: str = "random",
    truth: Optional[np.ndarray] = None,
) -> List[List[Panel]]:
    """Draws a row of embeddings as colors and a row of outputs, with a panel per level.

    Args:
        embeddings: (L, D, H, W).
        scores: (L, H, W) in 0 to 1.
        names: names of the L levels.
        method: "random" or "pca", see :func:`rpe_d2.ops.color.embedding_to_rgb`.
        truth: fraction of annotators, in 0 to 1. If its size is (H, W), the notes have the mean
            score on and off the annotators' contours.
    """
    dim = embeddings.shape[1]
    projection = {"random": "random directions", "pca": "PCA"}[method]
    colors, outputs = [], []
    for name, level, score in zip(names, embeddings.detach().cpu(), scores.detach().cpu().numpy()):
        picture = embedding_to_rgb(level, method).permute(1, 2, 0).numpy()
        colors.append(_panel(picture, f"embeddings, {name}", f"{dim}-D in {projection}"))
        outputs.append(boundary_panel(score, f"output, {name}", _separation(score, truth)))
    return [colors, outputs]


class ContourAngles(NamedTuple):
    """Angles of embeddings around contours, and what they encode.

    Attributes:
        angles: (H, W) float32 in radians, in the plane of largest variance.
        near: (H, W) bool, the pixels close to a contour, which alone have a meaningful angle.
        orientation: correlation of the angles with the orientation of the contour, in 0-1.
        doubled: the same of the doubled angles.
        distance: R squared of the distance to the contour and a linear function of the embeddings.
    """

    angles: torch.Tensor
    near: torch.Tensor
    orientation: float
    doubled: float
    distance: float


def contour_angles(embeddings: torch.Tensor, truth: np.ndarray) -> Optional[ContourAngles]:
    """Compares the angles of embeddings with the contours near them.

    Kong & Fowlkes observe that they encode the orientation of a contour and the distance to it, and
    that doubled angles vary smoothly along it, as on a Möbius strip.

    Args:
        embeddings: (D, H, W), D >= 2.
        truth: (H, W) fraction of annotators, in 0 to 1.

    Returns:
        None if nobody drew a line, or D is 1.
    """
    lines = truth > 0
    if not lines.any() or len(embeddings) < 2:
        return None
    distance = ndimage.distance_transform_edt(~lines)
    rows, columns = np.gradient(ndimage.gaussian_filter(distance, 1))
    orientation = torch.from_numpy(np.arctan2(rows, columns)).float()
    near = torch.from_numpy(distance <= _NEAR)
    embeddings = embeddings.detach().float().cpu()
    angles = plane_angles(embeddings, near)
    beside = near & torch.from_numpy(distance > 0)  # a line itself has no side
    single, doubled = orientation_correlation(angles[beside], orientation[beside])
    explained = variance_explained(embeddings[:, near].T, torch.from_numpy(distance)[near])
    return ContourAngles(angles, near, single, doubled, explained)


def angle_panels(embeddings: torch.Tensor, truth: np.ndarray) -> List[Panel]:
    """Draws the angles of embeddings around contours, single and doubled.

    Args:
        embeddings: (D, H, W), D >= 2.
        truth: (H, W) fraction of annotators, in 0 to 1. There are no panels if nobody drew a line.
    """
    found = contour_angles(embeddings, truth)
    if found is None:
        return []
    pictures = [angle_colors(found.angles, doubled=twice) for twice in (False, True)]
    pictures = [torch.where(found.near, x, 1.0).permute(1, 2, 0).numpy() for x in pictures]
    note = f"orientation {found.orientation:.2f}, R² of distance {found.distance:.2f}"
    return [
        _panel(pictures[0], "angle", note),
        _panel(pictures[1], "angle, doubled", f"orientation {found.doubled:.2f}"),
    ]


def _separation(score: np.ndarray, truth: Optional[np.ndarray]) -> str:
    """Describes the mean score on and off the annotators' contours."""
    if truth is None or truth.shape != score.shape or not 0 < (truth > 0).mean() < 1:
        return ""
    on, off = np.average(score, weights=truth), score[truth == 0].mean()
    return f"{on:.2f} on boundaries, {off:.2f} off"


def _line_panel(lines: np.ndarray, title: str, note: str) -> Panel:
    """Draws lines one panel pixel wide, since thinner lines would be blurred away."""
    width = -(-max(lines.shape) // PANEL_SIDE)
    lines = cv2.dilate(lines.astype(np.float32), np.ones((width, width), np.uint8))
    return _panel(_ink(lines), title, note)


def _panel(picture: np.ndarray, title: str, note: str) -> Panel:
    """Draws an image, enlarged without interpolation, which would overshoot the range 0 to 1."""
    return image_panel(picture, title, note, smooth=max(picture.shape[:2]) > PANEL_SIDE)


def _ink(values: np.ndarray) -> np.ndarray:
    """Converts (H, W) in 0 to 1 to an image (H, W, 3) float32 in which 1 is black."""
    paper = 1 - np.clip(np.asarray(values, dtype=np.float32), 0, 1)
    return np.repeat(paper[:, :, None], 3, axis=2)
