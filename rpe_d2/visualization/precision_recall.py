"""Precision-recall plots of contour benchmarks."""

import io
from typing import Optional

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rpe_d2.ops.boundary_scores import BoundaryScores, OperatingPoint
from rpe_d2.utils.image_files import printable

from .figure import counted

# Written to the metadata of PNG files, so that a tool recognizes its own output.
SOFTWARE = "rpe_d2 precision-recall plot"
_ISO_F = np.arange(0.1, 0.95, 0.1)
_HUMAN_COLOR = "#1b7837"
_CURVE_COLOR = "#2166ac"


def precision_recall_plot(
    scores: BoundaryScores, human: Optional[OperatingPoint], name: str, num_images: int
) -> bytes:
    """Plots the curve of a dataset with its best point, the human point and iso-F lines.

    No display is needed.

    Args:
        scores: scores of the dataset.
        human: agreement of each annotator with the others, or None if images have only one.
        name: name of the predictions, for the legend.
        num_images: number of images evaluated.

    Returns:
        The content of a PNG file whose metadata have "Software" :data:`SOFTWARE`.
    """
    figure = Figure(figsize=(6.4, 6.4), dpi=120, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for f_measure in _ISO_F:
        _draw_iso_f(axes, f_measure, color="0.82", linewidth=0.8)
    if human is not None:
        _draw_iso_f(axes, human.f_measure, color=_HUMAN_COLOR, linewidth=1, linestyle="--")
        label = f"[F = {human.f_measure:.3f}] each annotator against the others"
        axes.plot(human.recall, human.precision, "o", color=_HUMAN_COLOR, markersize=9, label=label)
    # Thresholds above all predictions have recall and precision 0. They would add a line to the
    # origin.
    curve = [point for point in scores.curve if point.recall > 0 or point.precision > 0]
    label = (
        f"[F = {scores.ods.f_measure:.3f}] {printable(name)}: ODS; OIS {scores.ois.f_measure:.3f}, "
        f"AP {scores.ap:.3f}"
    )
    axes.plot(
        [point.recall for point in curve],
        [point.precision for point in curve],
        color=_CURVE_COLOR,
        linewidth=2,
        marker="." if len(curve) < 30 else None,
        markersize=8,
        clip_on=False,  # full width along the frame, at a precision of 1
        label=label,
    )
    axes.plot(
        scores.ods.recall,
        scores.ods.precision,
        "D",
        color=_CURVE_COLOR,
        markersize=7,
        clip_on=False,
    )
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_aspect("equal")
    axes.set_xticks(np.linspace(0, 1, 11))
    axes.set_yticks(np.linspace(0, 1, 11))
    axes.set_xlabel("recall")
    axes.set_ylabel("precision")
    axes.set_title(f"boundaries, {counted(num_images, 'image')}")
    legend = axes.legend(loc="lower left", fontsize=8, framealpha=0.95)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a dollar sign in the name does not start a formula
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": SOFTWARE})
    return buffer.getvalue()


def _draw_iso_f(axes: Axes, f_measure: float, **style) -> None:
    """Draws the line of equal F-measure, with its value at the right end."""
    # At a recall below F / (2 - F) no precision up to 1 has this F-measure.
    recall = np.linspace(f_measure / (2 - f_measure), 1, 200)
    axes.plot(recall, f_measure * recall / (2 * recall - f_measure), zorder=1, **style)
    if style.get("linestyle") is None:
        axes.annotate(
            f"F {f_measure:.1f}",
            (1, f_measure / (2 - f_measure)),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color="0.5",
            annotation_clip=False,
        )
