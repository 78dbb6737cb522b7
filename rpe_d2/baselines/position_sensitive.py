"""Position-sensitive RoI pooling: every part of a box is read from its own score maps."""

import torch
from torchvision.ops import roi_align

from rpe_d2.ops.roi_warp import check_batch_index


def position_sensitive_regions(
    features: torch.Tensor, boxes: torch.Tensor, parts: int, cells: int, spatial_scale: float
) -> torch.Tensor:
    """Reads each of the k x k parts of a box from one of k x k groups of maps.

    torchvision's ``ps_roi_align`` returns one value per part. FCIS needs 3 x 3 (Li et al., CVPR
    2017, section 3.3). Here the groups of maps become images of a batch and the parts of the boxes
    become boxes, so a single RoIAlign reads them all.

    Args:
        features: (N, C k k, H, W); channel c k k + i k + j belongs to the part in row i, column j.
        boxes: (R, 5): index in the batch, then x0, y0, x1, y1 in pixels of the image.
        parts: k.
        cells: cells of each part in each direction.
        spatial_scale: cells of the maps per pixel of the image, 1 / stride.

    Returns:
        (R, C, k cells, k cells) with the dtype of ``features``.

    Raises:
        ValueError: The number of channels is not a multiple of k k, or the image index of a box is
            not in the batch.
    """
    check_batch_index(boxes, len(features))
    channels = features.shape[1]
    groups = parts * parts
    if channels % groups:
        raise ValueError(
            f"features have {channels} channels; allowed with {parts} x {parts} parts: "
            f"multiples of {groups}"
        )
    folded = features.unflatten(1, (channels // groups, groups)).transpose(1, 2).flatten(0, 1)
    place = torch.arange(parts, device=boxes.device, dtype=boxes.dtype)
    x0, y0, x1, y1 = boxes[:, 1:].unbind(1)
    part_width = ((x1 - x0) / parts)[:, None, None]
    part_height = ((y1 - y0) / parts)[:, None, None]
    left = x0[:, None, None] + part_width * place[None, None, :]
    top = y0[:, None, None] + part_height * place[None, :, None]
    left, top = torch.broadcast_tensors(left, top)  # (R, k, k)
    group = place[:, None] * parts + place
    index = boxes[:, 0, None, None] * groups + group
    rois = torch.stack([index, left, top, left + part_width, top + part_height], dim=-1)
    values = roi_align(folded, rois.flatten(0, 2), cells, spatial_scale, 1, aligned=True)
    values = values.unflatten(0, (len(boxes), parts, parts))  # (R, k, k, C, cells, cells)
    return values.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
