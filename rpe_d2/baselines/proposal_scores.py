"""Semantic maps from the crops of object proposals, as DeconvNet predicts them."""

from typing import Any, Dict, Sequence

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from rpe_d2.modeling.argument_checks import check_choice, check_range

COMBINATIONS = ("max", "sum")


@torch.no_grad()
def scores_of_proposals(
    model: nn.Module,
    item: Dict[str, Any],
    boxes: torch.Tensor,
    *,
    combine: str = "max",
    context: float = 1.2,
    size: int = 224,
    batch_size: int = 8,
) -> torch.Tensor:
    """Predicts a semantic map from the crops of proposals (Noh et al., ICCV 2015, section 5.1).

    The scores of every crop are resized to the crop, and are 0 outside of it. The maximum or the
    sum of all crops are the scores of the image. Pixels that no crop covers have the score 0 for
    each class, so the first one, background, is their class.

    Args:
        model: a semantic segmentor in evaluation mode.
        item: an input of the model, with "image" (C, H, W).
        boxes: (N, 4) float32 x0, y0, x1, y1 in pixels of the image, the best ones first.
        combine: "max" or "sum".
        context: side of the square crop, as a multiple of the longer side of the box.
        size: side in pixels to which crops are resized.
        batch_size: number of crops that the model gets at once.

    Returns:
        (K, H, W) scores.

    Raises:
        ValueError: An argument is out of range, or there is no box.
    """
    check_choice("combine", combine, COMBINATIONS)
    check_range("context", context, 0.1)
    check_range("size", size, 1)
    check_range("batch_size", batch_size, 1)
    check_range("the number of boxes", len(boxes), 1)
    image = item["image"].float()
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]).max(dim=1, keepdim=True).values * context / 2
    # Whole pixels, so that scores are pasted without another resampling.
    squares = torch.cat([(centers - half).floor(), (centers + half).ceil()], dim=1)
    total = None
    for part in squares.split(batch_size):
        rois = torch.cat([part.new_zeros(len(part), 1), part], dim=1)
        crops = roi_align(image[None], rois.to(image), size, aligned=True)
        outputs = model([{"image": crop} for crop in crops])
        for output, square in zip(outputs, part.long().tolist()):
            scores = output["sem_seg"]
            if total is None:
                total = scores.new_zeros(len(scores), *image.shape[1:])
            _paste(total, scores, square, combine)
    return total


def _paste(total: torch.Tensor, scores: torch.Tensor, square: Sequence[int], combine: str) -> None:
    """Combines the scores (K, h, w) of a square with those of the image (K, H, W), in place."""
    x0, y0, x1, y1 = square
    scores = F.interpolate(scores[None], (y1 - y0, x1 - x0), mode="bilinear", align_corners=False)[
        0
    ]
    height, width = total.shape[-2:]
    top, left = max(0, -y0), max(0, -x0)
    inside = scores[:, top : max(top, height - y0), left : max(left, width - x0)]
    view = total[:, max(0, y0) : max(0, y1), max(0, x0) : max(0, x1)]
    view.copy_(torch.maximum(view, inside) if combine == "max" else view + inside)


def mean_probabilities(*scores: torch.Tensor) -> torch.Tensor:
    """Averages the class probabilities of several models, the ensemble of DeconvNet and FCN.

    Args:
        scores: maps (K, H, W) of logits.

    Returns:
        (K, H, W) probabilities.
    """
    return torch.stack([one.softmax(dim=0) for one in scores]).mean(dim=0)
