"""Position-sensitive regions: every part of a box is read from score maps of its own (Dai et al., ECCV and NIPS 2016)."""

import torch
from torchvision.ops import roi_align


def position_sensitive_regions(
    features: torch.Tensor, boxes: torch.Tensor, parts: int, cells: int, spatial_scale: float
) -> torch.Tensor:
    """Reads each of k x k parts of a box from one of k x k groups of maps, at several cells a part.

    torchvision's ``ps_roi_align`` gives one value a part; FCIS needs 3 x 3 (Li et al., CVPR 2017, section 3.3). Groups go
    into the batch, boxes are split into their parts, and one RoIAlign reads them all.

    Args:
        features: (N, C k k, H, W); channel c k k + i k + j belongs to the part in row i and column j.
        boxes: (R, 5): index in the batch, x0, y0, x1, y1 in pixels of the image.
        parts: k.
        cells: of each part, each way.
        spatial_scale: cells of the maps per pixel of the image, 1 / stride.

    Returns:
        (R, C, k cells, k cells) like ``features``.

    Raises:
        ValueError: the number of channels is no multiple of k k.
    """
    images, channels, height, width = features.shape
    groups = parts * parts
    if channels % groups:
        raise ValueError(
            f"features have {channels} channels; allowed with {parts} x {parts} parts: multiples of {groups}"
        )
    folded = features.unflatten(1, (channels // groups, groups)).transpose(1, 2).flatten(0, 1)
    place = torch.arange(parts, device=boxes.device, dtype=boxes.dtype)
    x0, y0, x1, y1 = boxes[:, 1:].unbind(1)
    across, down = ((x1 - x0) / parts)[:, None, None], ((y1 - y0) / parts)[:, None, None]
    left = x0[:, None, None] + across * place[None, None, :]
    top = y0[:, None, None] + down * place[None, :, None]
    left, top = torch.broadcast_tensors(left, top)  # (R, k, k)
    group = place[:, None] * parts + place
    index = boxes[:, 0, None, None] * groups + group
    regions = torch.stack([index, left, top, left + across, top + down], dim=-1)
    found = roi_align(folded, regions.flatten(0, 2), cells, spatial_scale, 1, aligned=True)
    found = found.unflatten(0, (len(boxes), parts, parts))  # (R, k, k, C, cells, cells)
    return found.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
