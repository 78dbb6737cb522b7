"""What mean shift does to the embeddings of one picture: their colours after every loop, and the sphere."""

from typing import List, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Circle

from rpe_d2.ops.color import embedding_to_rgb

from .figure import Panel, image_panel
from .instances import instance_colors

LOOP_LEGEND = (
    "Embeddings: the same colour is the same embedding, in all loops; each object should become one colour that its "
    "neighbours do not have. Background is left grey.",
    "Sphere: each dot is a foreground pixel's embedding, in the colour of its object; a larger dot is many pixels, a "
    "pale one is on the far side. Each object should shrink to one dot. Dark grey: in no object.",
)
_BACKGROUND = 0.88
_NO_INSTANCE = (0.45, 0.45, 0.45)
# More points would only hide each other.
_MOST_POINTS = 5000
# On the sphere of radius 1.
_DOT_CELL = 0.02


def loop_panels(
    loops: Sequence[torch.Tensor],
    foreground: torch.Tensor,
    labels: np.ndarray,
    label_kind: str,
    stride: int,
    network_size: Sequence[int],
) -> List[List[Panel]]:
    """Panels of the embeddings' colours, one a loop, and of the sphere before and after all loops.

    Colours are three fixed random directions of the embedding space, stretched over the foreground pixels of all
    loops together: the same colour is the same embedding in every panel.

    Args:
        loops: (D, h, w) unit vectors before the first and after each loop, on cells of ``stride`` pixels of the
            network's input.
        foreground: (h, w) bool: cells that are grouped.
        labels: (H, W) int, instance of each pixel of the picture, negative = none: colours of the sphere's points.
        label_kind: what the labels are, for the title.
        stride: pixels per cell.
        network_size: (H, W) of the network's input, without padding.

    Returns:
        [sphere panels, colour panels].
    """
    loops = [x.detach().float().cpu() for x in loops]
    foreground = foreground.cpu()
    cells = _cell_of_pixel(labels.shape, foreground.shape, stride, network_size)
    shifted = torch.stack([x[:, foreground] for x in loops], dim=1)  # (D, L + 1, M)
    colors = embedding_to_rgb(shifted).permute(1, 2, 0)  # (L + 1, M, 3)
    color_panels = []
    for number, rgb in enumerate(colors):
        picture = torch.full((*foreground.shape, 3), _BACKGROUND)
        picture[foreground] = rgb
        note = "before shifting" if number == 0 else ""
        title = f"embeddings, loop {number}"
        color_panels.append(image_panel(picture.numpy()[cells], title, note, smooth=False))

    points_of = _pixel_of_cell(labels.shape, foreground.shape, stride, network_size)
    point_labels = labels[points_of][foreground.numpy()]  # (M,)
    kept = np.linspace(0, len(point_labels) - 1, min(len(point_labels), _MOST_POINTS)).astype(int)
    before, after = (x.T.numpy()[kept] for x in (shifted[:, 0], shifted[:, -1]))
    axes_3d = principal_axes(np.concatenate([before, after]))
    dim = loops[0].shape[0]
    how = f"{dim}-D projected on 3 axes (PCA)" if dim > 3 else f"{dim}-D, turned to the viewer"
    count = len(loops) - 1
    sphere_panels = [
        _sphere_panel(points @ axes_3d, point_labels[kept], title, f"{how}, colours: {label_kind}")
        for points, title in (
            (before, "sphere before shifting"),
            (after, f"sphere after {count} loop{'' if count == 1 else 's'}"),
        )
    ]
    return [sphere_panels, color_panels]


def principal_axes(points: np.ndarray) -> np.ndarray:
    """The three directions of largest mean square, about the origin, as the sphere has no other centre.

    Args:
        points: (M, D).

    Returns:
        (D, 3) float32, orthonormal columns, the first turned towards the points; columns of zeros for D < 3.
    """
    dim = points.shape[1]
    points = points.astype(np.float64)
    _, vectors = np.linalg.eigh(points.T @ points)
    vectors = vectors[:, ::-1][:, :3]
    # The sign of an eigenvector is arbitrary: the viewer looks at the points, the rest as the largest entry says.
    signs = np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(vectors.shape[1])])
    if len(points):
        signs[0] = 1.0 if points.mean(axis=0) @ vectors[:, 0] >= 0 else -1.0
    axes = np.zeros((dim, 3), dtype=np.float32)
    axes[:, : vectors.shape[1]] = vectors * signs
    return axes


def _cell_of_pixel(
    size: Sequence[int], grid: Sequence[int], stride: int, network_size: Sequence[int]
):
    """Index that turns a grid of cells into a picture of ``size`` (H, W)."""
    axes = [
        np.clip(((np.arange(side) + 0.5) * network / side / stride).astype(int), 0, cells - 1)
        for side, cells, network in zip(size, grid, network_size)
    ]
    return np.ix_(*axes)


def _pixel_of_cell(
    size: Sequence[int], grid: Sequence[int], stride: int, network_size: Sequence[int]
):
    """Index that picks from a picture of ``size`` (H, W) the pixel in the middle of every cell."""
    axes = [
        np.clip(((np.arange(cells) + 0.5) * stride * side / network).astype(int), 0, side - 1)
        for side, cells, network in zip(size, grid, network_size)
    ]
    return np.ix_(*axes)


def _sphere_panel(points: np.ndarray, labels: np.ndarray, title: str, note: str) -> Panel:
    """Points (M, 3), renormalised, on a globe seen along the first axis; what is behind is paler."""
    length = np.linalg.norm(points, axis=1, keepdims=True)
    points = points / np.maximum(length, 1e-12)
    # Shifted points coincide: one dot for those of a label in a small cell, its area by their number.
    cell = np.column_stack([np.round(points / _DOT_CELL), labels])
    _, first, counts = np.unique(cell, axis=0, return_index=True, return_counts=True)
    points, labels, areas = points[first], labels[first], 12 * counts**0.6
    palette = instance_colors(int(labels.max(initial=-1)) + 1)
    colors = np.array([palette[label] if label >= 0 else _NO_INSTANCE for label in labels]).reshape(
        -1, 3
    )
    depth = points[:, 0]
    paleness = np.where(depth >= 0, 0.0, 0.65)[:, None]
    colors = colors * (1 - paleness) + paleness
    order = np.argsort(depth)  # the nearest are drawn last

    def draw(axes: Axes) -> None:
        axes.set_xlim(-1.04, 1.04)
        axes.set_ylim(-1.04, 1.04)
        axes.set_aspect("equal")
        axes.add_patch(Circle((0, 0), 1, facecolor="0.97", edgecolor="0.5"))
        angle = np.linspace(-np.pi / 2, np.pi / 2, 60)
        for turn in np.radians((-60, -30, 0, 30, 60)):
            axes.plot(np.cos(angle) * np.sin(turn), np.sin(angle), color="0.85", linewidth=0.7)
            axes.plot(
                np.sin(angle) * np.cos(turn), np.full(60, np.sin(turn)), color="0.85", linewidth=0.7
            )
        if len(points):
            axes.scatter(
                points[order, 1],
                points[order, 2],
                s=areas[order],
                c=colors[order],
                edgecolors="white",
                linewidths=0.4,
                zorder=3,
            )
        else:
            axes.text(0, 0, "no foreground pixels", ha="center", va="center")

    return Panel(title, note, draw)
