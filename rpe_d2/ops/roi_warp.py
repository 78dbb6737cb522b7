"""RoI warping, a pooling of regions that is differentiable in their boxes."""

from typing import Tuple, Union

import torch
from torch.nn import functional as F


def roi_warp(
    features: torch.Tensor,
    boxes: torch.Tensor,
    output_size: Union[int, Tuple[int, int]],
    spatial_scale: float,
) -> torch.Tensor:
    """Samples features bilinearly at the cell centers of a grid laid over each box.

    This is the RoI warping layer of MNC (Dai et al., CVPR 2016, section 3.2, equations 3 to 7).
    Unlike RoIAlign it has gradients with respect to the boxes as well as the features. In the
    interior of a map it equals RoIAlign (``aligned=True``) with one sample per cell. Beyond the
    border the outermost values are repeated.

    Args:
        features: (N, C, H, W) floating point.
        boxes: (R, 5): index in the batch, then x0, y0, x1, y1 in pixels of the image.
        output_size: (height, width) of the grid, or one side for both.
        spatial_scale: 1 / stride of the features.

    Returns:
        (R, C, height, width) like ``features``. Half precision is interpolated in float32.

    Raises:
        ValueError: A shape does not fit, or the image index of a box is not in the batch.
    """
    if features.dim() != 4 or boxes.dim() != 2 or boxes.shape[1] != 5:
        raise ValueError(
            f"features have shape {tuple(features.shape)} and boxes {tuple(boxes.shape)}; "
            "allowed: (N, C, H, W) and (R, 5)"
        )
    check_batch_index(boxes, len(features))
    rows, columns = (output_size,) * 2 if isinstance(output_size, int) else output_size
    channels, height, width = features.shape[1:]
    # bfloat16 has a resolution of 4 cells at position 1,000.
    precise = torch.promote_types(features.dtype, torch.float32)
    corners = boxes[:, 1:].to(precise) * spatial_scale
    x = _centers(corners[:, 0], corners[:, 2], columns)  # (R, columns)
    y = _centers(corners[:, 1], corners[:, 3], rows)
    # From cells to grid_sample's -1 … 1 over the map.
    grid = torch.stack(
        torch.broadcast_tensors((2 * x / width - 1)[:, None], (2 * y / height - 1)[:, :, None]),
        dim=-1,
    )  # (R, rows, columns, 2)
    image = boxes[:, 0].long()
    output = features.new_zeros(len(boxes), channels, rows, columns)
    # Sample all regions of an image in one call, as one tall grid, so that its map is not copied.
    for index in torch.unique(image).tolist():
        chosen = torch.nonzero(image == index).squeeze(1)
        tall = grid[chosen].flatten(0, 1)[None]  # (1, R' x rows, columns, 2)
        sampled = F.grid_sample(
            features[index : index + 1].to(precise),
            tall,
            padding_mode="border",
            align_corners=False,
        )
        sampled = sampled[0].unflatten(1, (len(chosen), rows)).transpose(0, 1)
        output = output.index_copy(0, chosen, sampled.to(features.dtype))
    return output


def _centers(start: torch.Tensor, end: torch.Tensor, count: int) -> torch.Tensor:
    """Returns (R, count) centers of equal parts of each interval."""
    share = (torch.arange(count, device=start.device, dtype=start.dtype) + 0.5) / count
    return start[:, None] + (end - start)[:, None] * share


def check_batch_index(boxes: torch.Tensor, batch_size: int) -> None:
    """Checks that the images of boxes are in the batch; RoIAlign would read memory out of bounds.

    Args:
        boxes: (R, 5): index in the batch, then the box.
        batch_size: number of images.

    Raises:
        ValueError: An index is not in the batch. The message is one line.
    """
    if len(boxes) == 0:
        return
    index = boxes[:, 0]
    wrong = ~((index >= 0) & (index < batch_size) & (index == index.floor()))
    if bool(wrong.any()):
        raise ValueError(
            f"boxes have the batch index {float(index[wrong][0]):g}; allowed: 0 to {batch_size - 1}"
        )
