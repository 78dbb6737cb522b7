"""Panels of ground-truth and predicted instances in matching colors, with errors in red."""

import colorsys
from typing import List, NamedTuple, Optional, Sequence, Tuple

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

from rpe_d2.utils.image_files import printable

from .figure import Panel, counted, fit_to_panel

_ERROR_COLOR = (230, 0, 0)  # not in the palette of instances
_MATCH_IOU = 0.5
_FONT = cv2.FONT_HERSHEY_SIMPLEX
# Above this number of instances names would hide the image.
_MAX_NAMES = 10


INSTANCE_LEGEND = (
    "Ground truth and prediction: each object has a color. A prediction has the color of the "
    "object that it matches (IoU 0.5 or more). Red outline: an object without a match, or a "
    "prediction without a match. Red name: wrong class. Stripes: ignored region."
)


class InstanceMasks(NamedTuple):
    """Instances of one image.

    Attributes:
        masks: (N, H, W) bool.
        names: N class names, all "" if there is only one class.
    """

    masks: np.ndarray
    names: List[str]


def instance_colors(count: int) -> np.ndarray:
    """Returns (count, 3) float RGB in 0 to 1, distinct, not red, and independent of ``count``."""
    colors = []
    for index in range(count):
        # Multiples of the golden ratio fill the hues evenly for any count; 0.11-0.87 excludes red.
        hue = 0.11 + 0.76 * ((0.3 + index * 0.6180339887) % 1.0)
        saturation, value = ((0.9, 0.95), (0.55, 0.95), (0.95, 0.6))[index % 3]
        colors.append(colorsys.hsv_to_rgb(hue, saturation, value))
    return np.array(colors, dtype=np.float64).reshape(count, 3)


def mask_iou(pred: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Computes (P, T) float32 IoU of (P, H, W) bool with (T, H, W) bool masks."""
    flat_pred, flat_truth = (
        masks.reshape(len(masks), np.prod(masks.shape[1:])).astype(np.float32)
        for masks in (pred, truth)
    )
    intersection = flat_pred @ flat_truth.T
    union = flat_pred.sum(axis=1)[:, None] + flat_truth.sum(axis=1) - intersection
    return intersection / np.maximum(union, 1)


def match_by_iou(iou: np.ndarray, min_iou: float = _MATCH_IOU) -> np.ndarray:
    """Matches predictions with ground truth one to one so that the sum of IoUs is largest.

    Args:
        iou: (P, T), see :func:`mask_iou`.
        min_iou: smallest IoU of a pair.

    Returns:
        (P,) int: index of the matched ground-truth instance, or -1.
    """
    from scipy.optimize import linear_sum_assignment

    match = np.full(len(iou), -1)
    iou = np.where(iou >= min_iou, iou, 0)
    rows, columns = linear_sum_assignment(iou, maximize=True)
    kept = iou[rows, columns] > 0
    match[rows[kept]] = columns[kept]
    return match


def panoptic_quality(pred: np.ndarray, truth: np.ndarray) -> float:
    """Computes class-agnostic panoptic quality for one image (Kirillov et al., CVPR 2019, sec. 4).

    Args:
        pred: (P, H, W) bool.
        truth: (T, H, W) bool.

    Returns:
        Value in 0 to 1, which is 1 if there are no masks at all.
    """
    if len(pred) + len(truth) == 0:
        return 1.0
    iou = mask_iou(pred, truth)
    match = match_by_iou(iou)
    matched = match >= 0
    return float(2 * iou[matched, match[matched]].sum() / (len(pred) + len(truth)))


def label_map(masks: np.ndarray) -> np.ndarray:
    """Converts masks (N, H, W) bool to (H, W) int indices of the smallest instance, -1 for none."""
    labels = np.full(masks.shape[1:], -1)
    for index in _largest_first(masks):
        labels[masks[index]] = index
    return labels


def instance_panels(
    image: np.ndarray,
    predicted: Optional[InstanceMasks],
    truth: Optional[InstanceMasks],
    ignored: Optional[np.ndarray] = None,
    min_score: float = 0.0,
) -> List[Panel]:
    """Creates panels of ground truth and prediction over the gray image.

    A prediction has the color of the ground-truth instance that it matches (IoU at least 0.5). A
    thick red outline marks instances without a match. A red name marks a wrong class.

    Args:
        image: (H, W, 3) uint8 RGB.
        predicted: predictions, or None for no panel.
        truth: ground truth, or None for no panel.
        ignored: (H, W) bool, crowd regions of the ground truth, drawn striped.
        min_score: smallest score of the predictions, for the note.
    """
    num_truth = len(truth.masks) if truth else 0
    num_predicted = len(predicted.masks) if predicted else 0
    colors = instance_colors(num_truth + num_predicted)
    panels = []
    if truth and predicted:
        match = match_by_iou(mask_iou(predicted.masks, truth.masks))
        missed = ~np.isin(np.arange(num_truth), match)
        wrong = match < 0
        own = num_truth + np.cumsum(wrong) - 1
        predicted_colors = colors[np.where(wrong, own, match)]
        wrong_name = [m >= 0 and truth.names[m] != name for m, name in zip(match, predicted.names)]
    else:
        match = np.full(num_predicted, -1)
        missed, wrong = np.zeros(num_truth, bool), np.zeros(num_predicted, bool)
        predicted_colors, wrong_name = colors[:num_predicted], [False] * num_predicted
    if truth:
        note = counted(num_truth, "object")
        if predicted:
            note += f", {int(missed.sum())} missed"
        no_name_wrong = [False] * num_truth
        panels.append(
            _overlay_panel(
                "ground truth",
                note,
                image,
                truth,
                colors[:num_truth],
                missed,
                no_name_wrong,
                ignored,
            )
        )
    if predicted:
        note = f"{counted(num_predicted, 'instance')} (score ≥ {min_score:g})"
        if truth:
            note += f", {int(wrong.sum())} wrong"
        panels.append(
            _overlay_panel(
                "prediction", note, image, predicted, predicted_colors, wrong, wrong_name, None
            )
        )
    return panels


def draw_instances(
    image: np.ndarray, masks: np.ndarray, colors: np.ndarray, names: Sequence[str]
) -> np.ndarray:
    """Draws colored masks with outlines over an image at its own size.

    Args:
        image: (H, W, 3) uint8 RGB.
        masks: (N, H, W) bool. Small masks are drawn on top.
        colors: (N, 3) in 0 to 1.
        names: N texts, "" for none.

    Returns:
        (H, W, 3) uint8.
    """
    canvas = image.astype(np.float32)
    order = _largest_first(masks)
    for index in order:
        canvas[masks[index]] = 0.55 * canvas[masks[index]] + 0.45 * 255 * colors[index]
    canvas = np.ascontiguousarray(canvas.round().astype(np.uint8))
    width = max(1, round(max(image.shape[:2]) / 600))
    for index in order:
        color = tuple((255 * colors[index]).round().tolist())
        mask = masks[index].astype(np.uint8)
        contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(canvas, contours, -1, color, width)
    scale = max(0.35, max(image.shape[:2]) / 1600)
    for index in order:
        if names[index] and masks[index].any():
            x, y = _innermost_pixel(masks[index].astype(np.uint8))
            (text_width, _), _ = cv2.getTextSize(names[index], _FONT, scale, width)
            origin = (max(0, min(x - text_width // 2, image.shape[1] - text_width)), y)
            cv2.putText(
                canvas, names[index], origin, _FONT, scale, (0, 0, 0), 3 * width, cv2.LINE_AA
            )
            cv2.putText(
                canvas, names[index], origin, _FONT, scale, (255, 255, 255), width, cv2.LINE_AA
            )
    return canvas


def _innermost_pixel(mask: np.ndarray) -> Tuple[int, int]:
    """Returns (x, y) farthest from the edge of a mask (H, W) uint8; a centroid may lie outside."""
    depth = cv2.distanceTransform(np.pad(mask, 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return int(x), int(y)


def _largest_first(masks: np.ndarray) -> np.ndarray:
    return np.argsort(-masks.sum(axis=(1, 2)), kind="stable")


def _overlay_panel(
    title: str,
    note: str,
    image: np.ndarray,
    instances: InstanceMasks,
    colors: np.ndarray,
    is_error: np.ndarray,
    is_wrong_name: Sequence[bool],
    ignored: Optional[np.ndarray],
) -> Panel:
    gray = cv2.cvtColor(fit_to_panel(image, smooth=True), cv2.COLOR_RGB2GRAY)
    canvas = np.repeat(gray[:, :, None], 3, axis=2).astype(np.float64)
    masks = [fit_to_panel(mask.astype(np.uint8)) for mask in instances.masks]
    if ignored is not None:
        stripes = np.add(*np.indices(gray.shape)) % 12 < 5
        canvas[stripes & (fit_to_panel(ignored.astype(np.uint8)) > 0)] = 255
    order = _largest_first(instances.masks)
    for index in order:  # small masks on top
        inside = masks[index] > 0
        canvas[inside] = 0.4 * canvas[inside] + 0.6 * 255 * colors[index]
    canvas = np.ascontiguousarray(canvas.round().astype(np.uint8))
    for index in sorted(order, key=lambda i: is_error[i]):  # red on top
        contours, _ = cv2.findContours(masks[index], cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        color = _ERROR_COLOR if is_error[index] else tuple((255 * colors[index]).round().tolist())
        cv2.drawContours(canvas, contours, -1, color, 4 if is_error[index] else 2)

    def draw(axes: Axes) -> None:
        axes.imshow(canvas)
        if len(masks) > _MAX_NAMES:
            return
        for mask, name, wrong in zip(masks, instances.names, is_wrong_name):
            if not name or not mask.any():
                continue
            x, y = _innermost_pixel(mask)
            position = x / mask.shape[1]
            alignment = "left" if position < 0.12 else "right" if position > 0.88 else "center"
            axes.text(
                x,
                y,
                printable(name),
                ha=alignment,
                va="center",
                fontsize=9,
                color="red" if wrong else "black",
                path_effects=[withStroke(linewidth=2.5, foreground="white")],
                clip_on=True,
            )

    return Panel(title, note, draw)
