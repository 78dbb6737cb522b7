"""Boundaries: what annotators drew, what a model found, and the embeddings from which it did."""

from typing import List, Optional, Sequence

import cv2
import numpy as np
import torch

from rpe_d2.ops.color import embedding_to_rgb

from .figure import PANEL_SIDE, Panel, image_panel

BOUNDARY_LEGEND = (
    "Annotators: the darker a line, the more of them drew it. Boundaries: the darker, the surer.",
    "Embeddings of each level, a backbone output or all of them together: the same colour is the same embedding, within "
    "a level. Boundaries should have one colour and everything else another.",
    "Outputs of each level: their mean is the network's output, before thinning and without the other sizes of the "
    "picture where it is tested at several.",
)
# Annotators that are shown one by one.
_MOST_ANNOTATORS = 6


def annotator_panels(annotations: np.ndarray, one_by_one: bool = False) -> List[Panel]:
    """What all annotators drew in one panel and, if wanted, each one's lines in a panel of its own.

    Args:
        annotations: (A, H, W) bool.
        one_by_one: also the first six of them.
    """
    count = len(annotations)
    title = "annotators"
    panels = [_line_panel(annotations.mean(axis=0), title, f"{count} drew, darker: more of them")]
    if one_by_one:
        for number, lines in enumerate(annotations[:_MOST_ANNOTATORS], start=1):
            panels.append(_line_panel(lines, f"annotator {number}", f"of {count}"))
    return panels


def boundary_panel(boundaries: np.ndarray, title: str, note: str = "") -> Panel:
    """A map (H, W) of floats 0-1, dark on white."""
    return _panel(_ink(boundaries), title, note)


def level_panels(
    embeddings: torch.Tensor,
    scores: torch.Tensor,
    names: Sequence[str],
    method: str = "random",
    truth: Optional[np.ndarray] = None,
) -> List[List[Panel]]:
    """A row of the levels' embeddings as colours and a row of their outputs.

    Args:
        embeddings: (L, D, H, W).
        scores: (L, H, W), 0-1.
        names: of the L levels.
        method: "random" or "pca", see :func:`rpe_d2.ops.color.embedding_to_rgb`.
        truth: (H', W') 0-1, share of annotators, of any size: its separation is then noted.
    """
    dim = embeddings.shape[1]
    how = {"random": "random directions", "pca": "PCA"}[method]
    colors, outputs = [], []
    for name, level, score in zip(names, embeddings.detach().cpu(), scores.detach().cpu().numpy()):
        picture = embedding_to_rgb(level, method).permute(1, 2, 0).numpy()
        colors.append(_panel(picture, f"embeddings, {name}", f"{dim}-D in {how}"))
        outputs.append(boundary_panel(score, f"output, {name}", _separation(score, truth)))
    return [colors, outputs]


def _separation(score: np.ndarray, truth: Optional[np.ndarray]) -> str:
    """Mean score on and off the annotators' boundaries, in words."""
    if truth is None or truth.shape != score.shape or not 0 < (truth > 0).mean() < 1:
        return ""
    on, off = np.average(score, weights=truth), score[truth == 0].mean()
    return f"{on:.2f} on boundaries, {off:.2f} off"


def _line_panel(lines: np.ndarray, title: str, note: str) -> Panel:
    """Lines of one pixel, made as wide as one of the panel's, which would else be blurred away."""
    width = -(-max(lines.shape) // PANEL_SIDE)
    lines = cv2.dilate(lines.astype(np.float32), np.ones((width, width), np.uint8))
    return _panel(_ink(lines), title, note)


def _panel(picture: np.ndarray, title: str, note: str) -> Panel:
    """Enlarged without interpolation, which would leave 0-1."""
    return image_panel(picture, title, note, smooth=max(picture.shape[:2]) > PANEL_SIDE)


def _ink(values: np.ndarray) -> np.ndarray:
    """(H, W) 0-1 as a picture (H, W, 3) float32, 1 black."""
    paper = 1 - np.clip(np.asarray(values, dtype=np.float32), 0, 1)
    return np.repeat(paper[:, :, None], 3, axis=2)
