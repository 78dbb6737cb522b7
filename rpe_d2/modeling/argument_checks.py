"""Checks of constructor arguments and configuration keys, each with a one-line error."""

import math
from typing import Any, Dict, Sequence


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    """Raises a ValueError that names the argument or key if the value is none of the choices."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; allowed: {', '.join(map(str, choices))}")


def check_range(name: str, value: float, low: float, high: float = math.inf) -> None:
    """Raises a ValueError that names the argument or key if the value is not in [low, high].

    NaN and infinite values are not.
    """
    if not low <= value <= high or value == math.inf:
        allowed = f"{low} or more" if high == math.inf else f"{low} to {high}"
        raise ValueError(f"{name} is {value}; allowed: {allowed}")


def check_positive(name: str, value: float) -> None:
    """Raises a ValueError that names the argument or key if the value is not above 0 and finite."""
    if not 0 < value < math.inf:
        raise ValueError(f"{name} is {value}; allowed: numbers above 0")


def check_power_of_two(name: str, value: int) -> None:
    """Raises a ValueError that names the argument or key if the value is not 1, 2, 4, 8 …"""
    if value < 1 or math.log2(value) % 1:
        raise ValueError(f"{name} is {value}; allowed: 1, 2, 4 …")


def checked_topk(
    pre_nms_topk: int, post_nms_topk_train: int, post_nms_topk_test: int
) -> Dict[bool, int]:
    """Checks the numbers of proposals before and after non-maximum suppression.

    Returns:
        The numbers of proposals that are kept: True is the key for training, False for inference.

    Raises:
        ValueError: A number is out of range. In training, 0 is allowed and means no proposals.
    """
    check_range("pre_nms_topk", pre_nms_topk, 1)
    check_range("post_nms_topk_train", post_nms_topk_train, 0)
    check_range("post_nms_topk_test", post_nms_topk_test, 1)
    return {True: post_nms_topk_train, False: post_nms_topk_test}


def check_batch(name: str, batch_size: int, num_images: int) -> None:
    """Raises a ValueError if feature maps do not have one entry for each image of a batch.

    Args:
        name: the component that receives the maps, for the message.
        batch_size: length of the maps' first dimension.
        num_images: number of images.
    """
    if batch_size != num_images:
        raise ValueError(
            f"{name} gets features of {batch_size} images for a batch of {num_images}; allowed: "
            "one for each image. Backbones with branches, as in TridentNet, need the proposal "
            "generators and RoI heads of their own project"
        )
