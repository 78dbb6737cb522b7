#!/usr/bin/env python3
"""Draws the figures of docs/concepts.md with this package's own operators.

usage: python dev/figures.py
"""

import math
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from rpe_d2.ops.clustering import cluster_embeddings  # noqa: E402
from rpe_d2.ops.mean_shift import mean_shift  # noqa: E402
from rpe_d2.ops.pair_loss import spherical_pair_loss  # noqa: E402
from rpe_d2.ops.propagation import spatial_propagation  # noqa: E402
from rpe_d2.ops.sphere import min_margin  # noqa: E402
from tests.helpers.embeddings import loop_gradients  # noqa: E402
from tests.helpers.points_on_a_line import LOOPS, points_on_a_line, shift, train  # noqa: E402

# Colors that color-blind readers can tell apart (Okabe and Ito).
BLUE, ORANGE, GREEN, PURPLE, RED = "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00"
COLORS = np.array([matplotlib.colors.to_rgb(color) for color in (BLUE, ORANGE, GREEN, PURPLE)])
SIZE = 48


def main() -> None:
    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    for draw in (
        draw_pair_loss,
        draw_margin,
        draw_mean_shift,
        draw_gradients,
        draw_training,
        draw_connections,
        draw_propagation,
    ):
        name = draw.__name__.removeprefix("draw_")
        draw().savefig(ROOT / "docs" / f"concepts_{name}.png", dpi=110, bbox_inches="tight")
        plt.close("all")


def draw_pair_loss() -> plt.Figure:
    """Draws the loss of a pair by its similarity, and embeddings before and after training."""
    figure, (left, before, after) = plt.subplots(1, 3, figsize=(10, 3.2))
    similarity = np.linspace(0, 1, 101)
    left.plot(similarity, 1 - similarity, color=BLUE, label="same instance: 1 − s")
    hinge = np.maximum(similarity - 0.5, 0)
    left.plot(similarity, hinge, color=RED, label="different: max(0, s − margin)")
    left.axvline(0.5, color="gray", linestyle=":", label="margin 0.5")
    left.set(xlabel="similarity s = (1 + cosine) / 2", ylabel="loss of the pair", ylim=(-0.03, 1.5))
    left.legend(frameon=False, fontsize=9)

    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat_interleave(30)
    start = torch.randn(90, 2, generator=generator)
    points = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([points], lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        spherical_pair_loss(points, labels, margin=0.25, normalization="per_term").backward()
        optimizer.step()
    for axes, vectors, title in (
        (before, start, "before training"),
        (after, points.detach(), "after training"),
    ):
        _draw_circle(axes, torch.nn.functional.normalize(vectors), COLORS[labels.numpy()], title)
    figure.tight_layout()
    return figure


def draw_margin() -> plt.Figure:
    """Draws the smallest margin at which the loss of a number of instances can reach zero."""
    figure, axes = plt.subplots(figsize=(5.4, 3.2))
    for dim, color in ((3, BLUE), (8, ORANGE), (32, GREEN)):
        numbers = range(2, 101)
        margins = [max(min_margin(number, dim)[0], 0) for number in numbers]
        axes.plot(numbers, margins, color=color, label=f"{dim} dimensions")
    axes.axhline(0.5, color="gray", linestyle=":", label="margin of the paper on VOC")
    axes.set(xscale="log", xlabel="instances in a picture", ylabel="smallest margin of zero loss")
    axes.set_xticks([2, 5, 10, 20, 50, 100], ["2", "5", "10", "20", "50", "100"])
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize=9)
    return figure


def draw_mean_shift() -> plt.Figure:
    """Draws noisy embeddings of three touching discs after some loops, as points and as colors."""
    instances = _discs()
    inside = instances >= 0
    generator = torch.Generator().manual_seed(0)
    centers = torch.tensor([0.5, 2.6, 4.7])
    noise = 0.5 * torch.randn(int(inside.sum()), generator=generator)
    angles = centers[torch.from_numpy(instances[inside])] + noise
    x = torch.stack([angles.cos(), angles.sin()], dim=1)
    trajectory = mean_shift(x, bandwidth=0.35, num_loops=5, return_trajectory=True)
    clusters = cluster_embeddings(trajectory[-1], threshold=0.9)

    figure, axes = plt.subplots(2, 5, figsize=(10, 4.2))
    for column, loop in enumerate((0, 1, 2, 5)):
        vectors = trajectory[loop]
        hues = (torch.atan2(vectors[:, 1], vectors[:, 0]) / (2 * math.pi)) % 1
        colors = plt.get_cmap("hsv")(hues.numpy())[:, :3]
        _draw_circle(
            axes[0, column],
            vectors[::4],
            colors[::4],
            f"after {loop} loop{'' if loop == 1 else 's'}",
        )
        _draw_pixels(axes[1, column], inside, colors)
    _draw_circle(axes[0, 4], trajectory[-1][::4], COLORS[clusters[::4] % 4], "clusters")
    _draw_pixels(axes[1, 4], inside, COLORS[clusters % 4])
    figure.tight_layout()
    return figure


def draw_gradients() -> plt.Figure:
    """Draws the gradient of the loss after up to 100 loops, and the loss, by bandwidth."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.6, 3.2))
    loops = [0, 1, 2, 3, 5, 7, 10, 15, 20, 30, 40, 50, 60, 80, 100]
    for bandwidth, color in ((0.2, BLUE), (0.3, ORANGE), (0.5, RED)):
        gradients, losses = loop_gradients(loops, bandwidth)
        left.plot(loops, gradients, color=color, marker=".", label=f"bandwidth {bandwidth}")
        right.plot(loops, losses, color=color, marker=".")
    left.set(xlabel="loops", ylabel="norm of the gradient", yscale="log")
    left.legend(frameon=False, fontsize=9)
    right.axhline(0.4, color="gray", linestyle=":")
    right.text(100, 0.39, "all in one mode", ha="right", va="top", fontsize=9, color="gray")
    right.set(xlabel="loops", ylabel="pair loss after the last loop", ylim=(0, 0.43))
    figure.tight_layout()
    return figure


def draw_training() -> plt.Figure:
    """Draws where points on a line end, shifted only and trained with and without loops."""
    points = points_on_a_line(1000, 0)
    figure, panels = plt.subplots(1, 4, figsize=(10.5, 2.6), sharex=True)
    bins = np.linspace(2, 5.6, 73)
    for axes, values, title in zip(
        panels,
        (points, shift(points, LOOPS), train(points, 0), shift(train(points, LOOPS), LOOPS)),
        ("points", "5 loops", "trained without loops", "trained through 5 loops"),
    ):
        for group, color in enumerate((BLUE, ORANGE, GREEN)):
            part = values[1000 * group : 1000 * (group + 1)].numpy()
            axes.hist(part, bins, color=color, alpha=0.75)
        for target in (3, 5):
            axes.axvline(target, color="gray", linestyle=":")
        axes.set_title(title, fontsize=10)
        axes.set(xlim=(2, 5.6), yticks=[], xticks=[2, 3, 4, 5])
    figure.tight_layout()
    return figure


def draw_connections() -> plt.Figure:
    """Draws the three connections of a pixel to the previous column, and the directions."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3))
    arrow = {"arrowstyle": "->", "color": RED, "lw": 1.8, "shrinkA": 9, "shrinkB": 9}
    for column in range(4):
        for row in range(4):
            hit = column == 2 and row == 1
            source = column == 1 and row <= 2
            color = RED if hit else ORANGE if source else "#d5d9e0"
            left.plot(column, -row, "s", markersize=20, color=color)
    for row, name in ((0, "a"), (1, "b"), (2, "c")):
        left.annotate("", xy=(2, -1), xytext=(1, -row), arrowprops=arrow)
        left.text(0.72, -row, name, ha="right", va="center", color="#333333")
    left.set_title("left to right, three connections", fontsize=10)
    left.set(xlim=(-0.5, 3.5), ylim=(-3.5, 0.5), aspect="equal")
    for angle, name in ((0, "left to right"), (180, "right to left"), (90, "up"), (270, "down")):
        x, y = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        style = {"arrowstyle": "-|>", "lw": 2, "color": BLUE}
        right.annotate("", xy=(1.1 * x, 1.1 * y), xytext=(0.15 * x, 0.15 * y), arrowprops=style)
        align = {0: "left", 180: "right"}.get(angle, "center")
        right.text(1.2 * x, 1.25 * y, name, ha=align, va="center")
    right.set_title("four directions, then the largest value", fontsize=10, pad=14)
    right.set(xlim=(-2.4, 2.4), ylim=(-1.5, 1.5), aspect="equal")
    for axes in (left, right):
        axes.axis("off")
    figure.tight_layout()
    return figure


def draw_propagation() -> plt.Figure:
    """Draws a coarse mask that is propagated in each direction with gates that close at edges."""
    picture = np.where(_discs() == 0, 0.85, np.where(_discs() == 1, 0.5, 0.15))
    picture += 0.01 * np.random.default_rng(0).standard_normal(picture.shape)
    true = torch.from_numpy((_discs() == 0).astype(np.float32))[None, None]
    small = torch.nn.functional.avg_pool2d(true.roll((3, 2), (2, 3)), 8)
    coarse = torch.nn.functional.interpolate(small, size=true.shape[-2:], mode="bilinear")
    gates = _edge_gates(torch.from_numpy(picture).float())
    directions = spatial_propagation(coarse, gates, merge="none")
    merged = spatial_propagation(spatial_propagation(coarse, gates, merge="mean"), gates, "mean")

    panels = [(picture, "picture"), (coarse[0, 0], "coarse mask")]
    names = ("left to right", "right to left", "top down", "bottom up")
    panels += [(mask[0, 0], name) for mask, name in zip(directions, names)]
    panels += [(merged[0, 0], "two units, mean"), (merged[0, 0] > 0.4, "above 0.4")]
    figure, axes = plt.subplots(2, 4, figsize=(9, 4.8))
    for axis, (values, title) in zip(axes.flat, panels):
        axis.imshow(np.asarray(values), cmap="gray", vmin=0, vmax=1)
        axis.contour(true[0, 0].numpy(), [0.5], colors=[RED], linewidths=1)
        axis.set_title(title, fontsize=10)
        axis.axis("off")
    figure.tight_layout()
    return figure


def _discs() -> np.ndarray:
    """Returns labels (SIZE, SIZE) int of three discs, two of which touch; -1 is background."""
    y, x = np.mgrid[:SIZE, :SIZE]
    labels = np.full((SIZE, SIZE), -1)
    for label, (cx, cy, radius) in enumerate(((16, 17, 12), (36, 17, 9), (26, 36, 8))):
        labels[(x - cx) ** 2 + (y - cy) ** 2 < radius**2] = label
    return labels


def _edge_gates(picture: torch.Tensor) -> torch.Tensor:
    """Returns gates (1, 1, 12, H, W) that are small where a pixel differs from its neighbor."""
    gates = []
    for axis, step in ((1, 1), (1, -1), (0, 1), (0, -1)):
        for sideways in (-1, 0, 1):
            neighbor = picture.roll((step, -sideways), (axis, 1 - axis))
            closeness = torch.exp(-(((picture - neighbor) / 0.12) ** 2))
            gates.append(0.33 * closeness)
    return torch.stack(gates)[None, None]


def _draw_circle(axes: plt.Axes, vectors: torch.Tensor, colors: np.ndarray, title: str) -> None:
    ring = np.linspace(0, 2 * math.pi, 100)
    axes.plot(np.cos(ring), np.sin(ring), color="#c5cad3", lw=1)
    # Points that coincide are spread a little along the radius.
    spread = 1 + 0.06 * np.random.default_rng(0).standard_normal(len(vectors))
    points = vectors.numpy() * spread[:, None]
    axes.scatter(points[:, 0], points[:, 1], s=9, c=colors, alpha=0.8, linewidths=0)
    axes.set(xlim=(-1.3, 1.3), ylim=(-1.3, 1.3), aspect="equal")
    axes.set_title(title, fontsize=10)
    axes.axis("off")


def _draw_pixels(axes: plt.Axes, inside: np.ndarray, colors: np.ndarray) -> None:
    picture = np.ones((*inside.shape, 3))
    picture[inside] = colors
    axes.imshow(picture)
    axes.axis("off")


if __name__ == "__main__":
    main()
