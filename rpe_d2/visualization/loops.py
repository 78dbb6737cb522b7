"""Panels of mean shift: embeddings as colors after every loop, and as points on the sphere."""

from typing import List, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Circle

from rpe_d2.ops.color import embedding_to_rgb

from .figure import Panel, counted, image_panel
from .instances import instance_colors

LOOP_LEGEND = (
    "Embeddings: equal colors are equal embeddings, in all loops. Each object should converge to "
    "one color that its neighbors do not have. Background is light gray.",
    "Sphere: each dot is the embedding of a foreground pixel in the color of its object. A larger "
    "dot is many pixels, and a pale one is on the far side. Each object should shrink to one dot. "
    "Dark gray: in no object.",
)
_BACKGROUND = 0.88
_NO_INSTANCE = (0.45, 0.45, 0.45)
# Larger numbers of points would hide each other.
_MAX_POINTS = 5000
# Side of the cells in which equal points are merged, on the unit sphere.
_DOT_CELL = 0.02


def loop_panels(
    loops: Sequence[torch.Tensor],
    foreground: torch.Tensor,
    labels: np.ndarray,
    label_kind: str,
    stride: int,
    network_size: Sequence[int],
) -> List[List[Panel]]:
    """Draws the embeddings' colors after every loop, and the sphere before and after all loops.

    Colors are projections on three fixed random directions, stretched over the foreground pixels
    of all loops together, so that equal colors are equal embeddings in every panel.

    Args:
        loops: (D, h, w) unit vectors before the first loop and after each loop, on cells of
            ``stride`` pixels of the network's input.
        foreground: (h, w) bool, the cells that are grouped.
        labels: (H, W) int, the instance of each pixel of the image, negative for none. They color
            the points of the sphere.
        label_kind: what the labels are, for the title.
        stride: side of a cell in pixels.
        network_size: (H, W) of the network's input without padding.

    Returns:
        [sphere panels, color panels].
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

    pixels = _pixel_of_cell(labels.shape, foreground.shape, stride, network_size)
    point_labels = labels[pixels][foreground.numpy()]  # (M,)
    kept = np.linspace(0, len(point_labels) - 1, min(len(point_labels), _MAX_POINTS)).astype(int)
    before, after = (x.T.numpy()[kept] for x in (shifted[:, 0], shifted[:, -1]))
    axes_3d = principal_axes(np.concatenate([before, after]))
    dim = loops[0].shape[0]
    view = f"{dim}-D projected on 3 axes (PCA)" if dim > 3 else f"{dim}-D, turned to the viewer"
    count = len(loops) - 1
    sphere_panels = [
        _sphere_panel(points @ axes_3d, point_labels[kept], title, f"{view}, colors: {label_kind}")
        for points, title in (
            (before, "sphere before shifting"),
            (after, f"sphere after {counted(count, 'loop')}"),
        )
    ]
    return [sphere_panels, color_panels]


def principal_axes(points: np.ndarray) -> np.ndarray:
    """Computes the three directions of largest mean square about the origin, the sphere's center.

    Args:
        points: (M, D).

    Returns:
        (D, 3) float32 with orthonormal columns, and columns of zeros if D < 3. The mean of the
        points has a non-negative first coordinate.
    """
    dim = points.shape[1]
    points = points.astype(np.float64)
    _, vectors = np.linalg.eigh(points.T @ points)
    vectors = vectors[:, ::-1][:, :3]
    # Eigenvectors have arbitrary signs. The first one points to the viewer's side, where the points
    # are. The others have a positive largest entry.
    signs = np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(vectors.shape[1])])
    if len(points):
        signs[0] = 1.0 if points.mean(axis=0) @ vectors[:, 0] >= 0 else -1.0
    axes = np.zeros((dim, 3), dtype=np.float32)
    axes[:, : vectors.shape[1]] = vectors * signs
    return axes


def labels_of_cells(labels: np.ndarray, stride: int, network_size: Sequence[int]) -> np.ndarray:
    """Reads the label of every cell of a network's maps at the center of the cell.

    Args:
        labels: (H, W) int labels of the image.
        stride: side of a cell in pixels of the network's input.
        network_size: (H, W) of the network's input without padding.

    Returns:
        (h, w) int.
    """
    grid = [-(-side // stride) for side in network_size]
    return labels[_pixel_of_cell(labels.shape, grid, stride, network_size)]


def _cell_of_pixel(
    size: Sequence[int], grid: Sequence[int], stride: int, network_size: Sequence[int]
):
    """Returns an index that resamples a grid of cells to an image of ``size`` (H, W)."""
    axes = [
        np.clip(((np.arange(side) + 0.5) * network / side / stride).astype(int), 0, cells - 1)
        for side, cells, network in zip(size, grid, network_size)
    ]
    return np.ix_(*axes)


def _pixel_of_cell(
    size: Sequence[int], grid: Sequence[int], stride: int, network_size: Sequence[int]
):
    """Returns an index of the central pixel of every cell in an image of ``size`` (H, W)."""
    axes = [
        np.clip(((np.arange(cells) + 0.5) * stride * side / network).astype(int), 0, side - 1)
        for side, cells, network in zip(size, grid, network_size)
    ]
    return np.ix_(*axes)


def _sphere_panel(points: np.ndarray, labels: np.ndarray, title: str, note: str) -> Panel:
    """Draws renormalized points (M, 3) on a globe viewed along the first axis."""
    length = np.linalg.norm(points, axis=1, keepdims=True)
    points = points / np.maximum(length, 1e-12)
    # Shifted points coincide: those of a label in a small cell become one dot whose area grows with
    # their number.
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
