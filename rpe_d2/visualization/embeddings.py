"""Panels of what embeddings encode: their angle, their kernel and the steps of mean shift."""

from typing import List, Optional, Tuple

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from scipy import ndimage

from rpe_d2.ops.embedding_statistics import (
    angle_colors,
    kernel_row,
    orientation_correlation,
    plane_angles,
    variance_explained,
)

from .figure import Panel, image_panel
from .instances import instance_colors

EMBEDDING_LEGEND = (
    "Angle: the hue is the angle of the embedding in the plane of largest variance over all "
    "objects. Doubled: opposite angles have the same hue. Edge orientation: correlation of the "
    "angle, from 0 to 1, with the orientation of the nearest edge of an object. R²: fraction of "
    "the variance that a linear function of the embedding explains, of the distance to the edge "
    "and of the center (x, y) and the size of the pixel's object.",
    "Steps: how the first loop moves embeddings in that plane, in the colors of the objects.",
    "Kernel: the weights with which the marked pixel attracts all others in the first loop.",
)
# Cells up to this distance from an edge have its orientation.
_NEAR = 3.0
_MAX_ARROWS = 300


def embedding_panels(
    before: torch.Tensor,
    after: torch.Tensor,
    labels: np.ndarray,
    bandwidth: float,
    pixel: Optional[Tuple[int, int]] = None,
) -> List[Panel]:
    """Draws the angles of embeddings, their first mean-shift step and the kernel of one pixel.

    Args:
        before: (D, h, w) unit vectors before the first loop, D >= 2.
        after: (D, h, w) unit vectors after the first loop.
        labels: (h, w) int, the object of each cell, negative for none.
        bandwidth: bandwidth of the kernel.
        pixel: row and column of the cell whose kernel is drawn. None: the middle of the largest
            object.

    Returns:
        Panels with the angles, the doubled angles, the steps and the kernel. There are none if no
        cell belongs to an object.
    """
    inside = torch.from_numpy(labels >= 0)
    if not inside.any():
        return []
    before, after = (x.detach().float().cpu() for x in (before, after))
    angles = plane_angles(before, inside)
    distance, orientation = _edges(labels)
    near = inside & (distance <= _NEAR)
    single, doubled = orientation_correlation(angles[near], orientation[near])
    vectors = before[:, inside].T
    explained = [variance_explained(vectors, distance[inside])]
    explained += [variance_explained(vectors, values) for values in _objects(labels)]
    distance_r2, x_r2, y_r2, size_r2 = explained
    row, column = pixel or _middle_of_largest(labels)
    kernel = colormaps["magma"](kernel_row(before, row, column, bandwidth).numpy())[..., :3]
    return [
        _map_panel(
            angle_colors(angles),
            "angle",
            f"edge orientation {single:.2f}, R²: distance to it {distance_r2:.2f}",
        ),
        _map_panel(
            angle_colors(angles, doubled=True),
            "angle, doubled",
            f"edge orientation {doubled:.2f}, R²: x {x_r2:.2f}, y {y_r2:.2f}, size {size_r2:.2f}",
        ),
        _step_panel(before, after, labels),
        _kernel_panel(kernel, row, column),
    ]


def _edges(labels: np.ndarray) -> tuple:
    """Returns (h, w) distances to the nearest cell of another label and orientations of edges."""
    distance = np.full(labels.shape, np.inf)
    for label in np.unique(labels):
        same = labels == label
        if not same.all():
            distance[same] = ndimage.distance_transform_edt(same)[same]
    distance[np.isinf(distance)] = max(labels.shape)
    rows, columns = np.gradient(np.where(labels >= 0, distance, -distance))
    return torch.from_numpy(distance), torch.from_numpy(np.arctan2(rows, columns)).float()


def _objects(labels: np.ndarray) -> List[torch.Tensor]:
    """Returns (M,) x and y of the center, and the size, of the object of each labeled cell."""
    inside = labels >= 0
    _, index, counts = np.unique(labels[inside], return_inverse=True, return_counts=True)
    centers = [np.bincount(index, where) / counts for where in np.nonzero(inside)[::-1]]
    return [torch.from_numpy(values[index]) for values in (*centers, np.sqrt(counts))]


def _middle_of_largest(labels: np.ndarray) -> tuple:
    """Returns the row and column of the innermost cell of the largest object."""
    names, counts = np.unique(labels[labels >= 0], return_counts=True)
    inside = np.pad(labels == names[counts.argmax()], 1)
    deepest = ndimage.distance_transform_edt(inside).argmax()
    row, column = np.unravel_index(deepest, inside.shape)
    return int(row) - 1, int(column) - 1


def _map_panel(colors: torch.Tensor, title: str, note: str) -> Panel:
    return image_panel(colors.permute(1, 2, 0).numpy(), title, note, smooth=False)


def _step_panel(before: torch.Tensor, after: torch.Tensor, labels: np.ndarray) -> Panel:
    rows, columns = np.nonzero(labels >= 0)
    kept = np.linspace(0, len(rows) - 1, min(len(rows), _MAX_ARROWS)).astype(int)
    rows, columns = rows[kept], columns[kept]
    start, end = (x[:, rows, columns].T.double() for x in (before, after))
    _, vectors = torch.linalg.eigh((start - start.mean(0)).T @ (start - start.mean(0)))
    plane = vectors[:, -2:].flip(1)
    start, end = ((x @ plane).numpy() for x in (start, end))
    palette = instance_colors(int(labels.max()) + 1)
    colors = [palette[label] for label in labels[rows, columns]]
    length = float(np.linalg.norm(end - start, axis=1).mean())

    def draw(axes: Axes) -> None:
        step = end - start
        style = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.004}
        axes.quiver(*start.T, *step.T, color=colors, **style)
        limit = max(1e-6, 1.05 * max(np.abs(start).max(), np.abs(end).max()))
        axes.set_xlim(-limit, limit)
        axes.set_ylim(-limit, limit)
        axes.set_aspect("equal")

    return Panel("steps of the first loop", f"mean length {length:.3f}", draw)


def _kernel_panel(kernel: np.ndarray, row: int, column: int) -> Panel:
    panel = image_panel(kernel, "kernel of a pixel", "dark: 0, bright: 1", smooth=False)

    def draw(axes: Axes) -> None:
        panel.draw(axes)
        height, width = axes.images[0].get_array().shape[:2]
        x = (column + 0.5) * width / kernel.shape[1] - 0.5
        y = (row + 0.5) * height / kernel.shape[0] - 0.5
        axes.plot(x, y, "o", markersize=9, markerfacecolor="none", markeredgecolor="cyan")

    return panel._replace(draw=draw)
