"""Projection of masks to superpixels."""

from typing import Dict, List, Sequence, Tuple

import numpy as np
import torch
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, Instances

from .backbone import IMAGE

__all__ = [
    "SUPERPIXEL_CELLS",
    "check_has_image",
    "crop_superpixels",
    "segment_superpixels",
    "superpixel_means",
    "superpixels_in_boxes",
]

# Cells of a box in each direction in which superpixels are read, to follow their boundaries.
SUPERPIXEL_CELLS = 112

# Weight of distances in the image plane, for images scaled to 0-1 without conversion to Lab.
_COMPACTNESS = 0.1


def check_has_image(key: str, count: int, where: str, shapes: Dict[str, ShapeSpec]) -> None:
    """Checks that a head which uses superpixels gets the image.

    Args:
        key: the configuration key or argument of the number of superpixels.
        count: its value; 0 for none.
        where: what names the feature maps of the head, for the message.
        shapes: the feature maps.

    Raises:
        ValueError: There are superpixels and no image.
    """
    if count and IMAGE not in shapes:
        raise ValueError(
            f"{key} is {count}, and {where} has {', '.join(shapes)}; allowed: 0, or the output "
            f"{IMAGE} of build_guided_backbone"
        )


def superpixels_in_boxes(
    image: torch.Tensor,
    instances: Sequence[Instances],
    boxes: Sequence[Boxes],
    count: int,
    size: int,
) -> torch.Tensor:
    """Segments the images of a batch and reads the superpixels in boxes.

    Args:
        image: (B, C, H, W) images, padded.
        instances: an element with the size of the image for each image.
        boxes: the boxes of each image, R in total.
        count: approximate number of superpixels of an image.
        size: cells of a box in each direction.

    Returns:
        (R, size, size) int64, as :func:`superpixel_means` takes them.
    """
    labels = segment_superpixels(image, [part.image_size for part in instances], count)
    return crop_superpixels(labels, [part.tensor for part in boxes], size)


def segment_superpixels(
    images: torch.Tensor, sizes: Sequence[Tuple[int, int]], count: int
) -> List[torch.Tensor]:
    """Segments images into superpixels by SLIC (Achanta et al., PAMI 2012) with scikit-image.

    Args:
        images: (B, C, H, W) floating point, in any range, padded.
        sizes: (H, W) of each image without padding.
        count: approximate number of superpixels of an image.

    Returns:
        Labels (H, W) int64 from 0 for each image, without padding, on the device of the images.
    """
    from skimage.segmentation import slic  # slow to import

    labels = []
    for image, (height, width) in zip(images.detach(), sizes):
        pixels = image[:, :height, :width].float().cpu().numpy()
        segments = slic(
            pixels,
            n_segments=count,
            compactness=_COMPACTNESS,
            start_label=0,
            channel_axis=0,
            convert2lab=False,
        )
        labels.append(torch.from_numpy(segments.astype(np.int64)).to(images.device))
    return labels


def crop_superpixels(
    labels: Sequence[torch.Tensor], boxes: Sequence[torch.Tensor], size: int
) -> torch.Tensor:
    """Reads the superpixel at the center of each cell of boxes.

    Args:
        labels: (H, W) int64 for each image.
        boxes: (R_i, 4) x0, y0, x1, y1 in pixels of each image.
        size: cells of a box in each direction.

    Returns:
        (R, size, size) int64. Cells outside an image get the nearest superpixel inside it.
    """
    crops = [torch.zeros(0, size, size, dtype=torch.int64, device=boxes[0].device)]
    for own, part in zip(labels, boxes):
        place = (torch.arange(size, device=part.device) + 0.5) / size
        x = part[:, 0, None] + place * (part[:, 2] - part[:, 0])[:, None]
        y = part[:, 1, None] + place * (part[:, 3] - part[:, 1])[:, None]
        column = x.floor().long().clamp(0, own.shape[1] - 1)
        row = y.floor().long().clamp(0, own.shape[0] - 1)
        crops.append(own[row[:, :, None], column[:, None, :]])
    return torch.cat(crops)


def superpixel_means(values: torch.Tensor, superpixels: torch.Tensor) -> torch.Tensor:
    """Replaces each value by the mean over its superpixel, inside its box.

    Args:
        values: (R, m, m) floating point.
        superpixels: (R, m, m) int64 from 0, the superpixel of each cell.

    Returns:
        (R, m, m), with gradient if ``values`` have one.
    """
    if not values.numel():
        return values
    count = int(superpixels.max()) + 1
    row = torch.arange(len(values), device=values.device)[:, None, None]
    index = (row * count + superpixels).flatten()
    sums = values.new_zeros(len(values) * count).index_add(0, index, values.flatten())
    cells = torch.bincount(index, minlength=len(sums)).clamp(min=1)
    return (sums / cells)[index].view_as(values)
