"""The ground truth of an image as one label per pixel."""

import logging
from typing import List, NamedTuple, Optional

import torch
from detectron2.structures import BitMasks, Instances
from detectron2.utils.logger import log_first_n
from torch.nn import functional as F

BACKGROUND = -1
IGNORED = -2
_MASKS_AT_ONCE = 64
_CONTACT = 8  # pixels


class PixelLabels(NamedTuple):
    """Labels of one image.

    Attributes:
        instances: (H, W) int64, the row of the image's ``Instances`` whose mask covers the pixel,
            or BACKGROUND or IGNORED.
        classes: (n,) int64 class of each instance.
        centers: (n, 2) float32 mean position x, y of each instance's pixels, in pixels.
        sizes: (n,) float32 square root of the number of each instance's pixels, at least 1.
    """

    instances: torch.Tensor
    classes: torch.Tensor
    centers: torch.Tensor
    sizes: torch.Tensor

    def class_map(self, background: int, ignored: int) -> torch.Tensor:
        """Returns (H, W) int64 classes, with the given values at pixels without an instance."""
        lookup = torch.cat([self.classes, self.classes.new_tensor([ignored, background])])
        return lookup[self.instances]

    def at_cells(self, stride: int) -> torch.Tensor:
        """Returns the instances (H / stride, W / stride) at the middle of each cell of a grid."""
        middle = slice(stride // 2, None, stride)
        return self.instances[middle, middle]


def pixel_labels(
    instances: Instances, size: torch.Size, ignore_mask: Optional[torch.Tensor] = None
) -> PixelLabels:
    """Labels every pixel with its instance.

    The masks are ``gt_masks`` or, if the mapper provides none, filled ``gt_boxes``. Where masks
    overlap, the smaller instance is in front.

    Args:
        instances: ground truth with ``gt_classes`` and ``gt_masks`` (bit masks or polygons) or
            ``gt_boxes``.
        size: (H, W) of the labels, at least the image size. Pixels outside the image are ignored.
        ignore_mask: (h, w) bool, True for pixels of the image that are neither instance nor
            background, such as those of crowds.
    """
    height, width = instances.image_size
    device = instances.gt_classes.device
    masks = instance_masks(instances)  # (n, h, w)
    areas = masks.flatten(1).sum(dim=1)
    owner = torch.full((height, width), BACKGROUND, dtype=torch.long, device=device)
    if ignore_mask is not None:
        owner.masked_fill_(ignore_mask.to(device), IGNORED)
    # From large to small, a few masks at a time, so that memory does not grow with the instances.
    order = torch.argsort(areas, descending=True, stable=True)
    for start in range(0, len(order), _MASKS_AT_ONCE):
        chunk = order[start : start + _MASKS_AT_ONCE]
        # 0 for no mask, then 1, 2, … from the back to the front.
        depth = torch.arange(1, len(chunk) + 1, dtype=torch.uint8, device=device)
        front = (masks[chunk] * depth.view(-1, 1, 1)).amax(dim=0).long()  # (h, w)
        owner = torch.where(front > 0, chunk[front - 1], owner)
    labels = torch.full(tuple(size), IGNORED, dtype=torch.long, device=device)
    labels[:height, :width] = owner

    owned = torch.nonzero(labels >= 0)  # (P, 2) row, column
    index = labels[owned[:, 0], owned[:, 1]]
    sums = torch.zeros(len(masks), 2, device=device)
    sums.index_add_(0, index, owned.flip(1).to(sums) + 0.5)
    counts = torch.bincount(index, minlength=len(masks)).clamp(min=1)
    return PixelLabels(labels, instances.gt_classes, sums / counts[:, None], counts.sqrt())


def sample_pixels(labels: torch.Tensor, num_points: int) -> torch.Tensor:
    """Samples pixels at random, stratified by their label.

    Every label gets the same number of pixels, or all its pixels if it has fewer.

    Args:
        labels: (H, W) integer. Pixels with negative labels are never sampled.
        num_points: largest number of pixels.

    Returns:
        (P,) int64 indices into the flattened map. P is ``num_points`` or the number of pixels with
        a label, whichever is smaller.
    """
    candidates = torch.nonzero(labels.flatten() >= 0).squeeze(1)
    if len(candidates) <= num_points:
        return candidates
    candidates = candidates[torch.randperm(len(candidates), device=labels.device)]
    values, order = torch.sort(labels.flatten()[candidates], stable=True)
    _, group, sizes = torch.unique_consecutive(values, return_inverse=True, return_counts=True)
    starts = torch.cumsum(sizes, 0) - sizes
    rank = torch.arange(len(values), device=labels.device) - starts[group]
    # The first pixel of every label, then the second of every label, and so on. The last rank may
    # be incomplete and is cut at random.
    last_round = torch.argsort(rank + torch.rand(len(rank), device=labels.device), stable=True)
    return candidates[order[last_round[:num_points]]]


def sample_pixels_by_contact(labels: torch.Tensor, num_points: int) -> torch.Tensor:
    """Samples pixels at random, half of them where labels meet.

    The pixels of a label that are at most 8 pixels from another label, and those that are not, are
    sampled like two labels by :func:`sample_pixels`.

    Args:
        labels: (H, W) integer. Pixels with negative labels are never sampled.
        num_points: largest number of pixels.

    Returns:
        (P,) int64 indices into the flattened map.
    """
    size = 2 * _CONTACT + 1
    inside = labels >= 0
    values = labels[None, None].float()  # exact below 2^24
    highest = F.max_pool2d(values, size, stride=1, padding=_CONTACT)[0, 0]
    others = torch.where(inside, -values, -float("inf"))
    lowest = -F.max_pool2d(others, size, stride=1, padding=_CONTACT)[0, 0]
    is_near = (highest != labels) | (lowest != labels)
    return sample_pixels(torch.where(inside, 2 * labels + is_near, labels), num_points)


def sample_pixels_uniformly(labels: torch.Tensor, num_points: int) -> torch.Tensor:
    """Samples pixels at random, each with the same probability and at most once.

    Args:
        labels: (H, W) integer. Pixels with negative labels are never sampled.
        num_points: largest number of pixels.

    Returns:
        (P,) int64 indices into the flattened map.
    """
    candidates = torch.nonzero(labels.flatten() >= 0).squeeze(1)
    if len(candidates) <= num_points:
        return candidates
    return candidates[torch.randperm(len(candidates), device=labels.device)[:num_points]]


def instance_masks(instances: Instances) -> torch.Tensor:
    """Returns ``gt_masks`` as (n, H, W) bool, or filled ``gt_boxes`` if there are no masks."""
    height, width = instances.image_size
    if len(instances) == 0:
        return torch.zeros(0, height, width, dtype=torch.bool, device=instances.gt_classes.device)
    if instances.has("gt_masks"):
        masks = instances.gt_masks
        if isinstance(masks, BitMasks):
            return masks.tensor
        bits = BitMasks.from_polygon_masks(masks, height, width).tensor
        return bits.to(instances.gt_classes.device)
    log_first_n(
        logging.WARNING,
        "The data has no gt_masks: pixels are labeled from filled gt_boxes. "
        "Set MODEL.MASK_ON True or use rpe_d2.data.PixelLabelMapper for masks.",
        key="message",
    )
    boxes = instances.gt_boxes.tensor
    y = torch.arange(height, device=boxes.device).view(1, -1, 1) + 0.5
    x = torch.arange(width, device=boxes.device).view(1, 1, -1) + 0.5
    x0, y0, x1, y1 = (side.view(-1, 1, 1) for side in boxes.unbind(1))
    return (x >= x0) & (x < x1) & (y >= y0) & (y < y1)


def pad_points(points: List[torch.Tensor]) -> torch.Tensor:
    """Stacks tensors (P_i, …) to (B, max P, …), padded with zeros."""
    return torch.nn.utils.rnn.pad_sequence(points, batch_first=True)
