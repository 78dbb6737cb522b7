"""Clips in which the objects of shapes_val and shapes_large_val move, with true label maps."""

from dataclasses import replace
from typing import Iterator, Tuple

import numpy as np

from rpe_d2.data.datasets import shapes

# Largest motion from frame to frame, in pixels of shapes_val and in radians.
_SPEED, _TURN = 1.5, 0.05
_NOISE = 3.0  # standard deviation of the noise that changes from frame to frame, in gray levels


def moving_shapes(
    split: str, index: int, num_frames: int
) -> Iterator[Tuple[np.ndarray, np.ndarray]]:
    """Renders a clip that begins with an image of a data set.

    Every object moves straight on, turns, and bounces off the border of the image. Objects cover
    each other in the same order in all frames.

    Args:
        split: "val" or "large_val".
        index: index of the image.
        num_frames: number of frames.

    Yields:
        A frame (H, W, 3) uint8 RGB, and its label map (H, W) uint8: 1 for the object in the back
        and so on, 0 for the background.
    """
    scale = shapes._scale(split)
    objects, _ = shapes._arrange(split, index)
    random = np.random.default_rng([index, num_frames])
    speeds = random.uniform(-_SPEED, _SPEED, (len(objects), 2))
    turns = random.uniform(-_TURN, _TURN, len(objects))
    inside = slice(shapes._MARGIN * scale, (shapes._MARGIN + shapes._SIZE) * scale)
    for frame in range(num_frames):
        moved = []
        for obj, speed, turn in zip(objects, speeds, turns):
            # The position between two mirrors, the borders.
            center = shapes._SIZE - np.abs(
                (obj.center + frame * speed) % (2 * shapes._SIZE) - shapes._SIZE
            )
            angle = obj.angle + frame * turn
            canvas = shapes._draw(obj.category, center, obj.radius, angle, obj.aspect, scale)
            mask = canvas[inside, inside].astype(bool)
            moved.append(replace(obj, center=center, angle=angle, mask=mask))
        labels = np.zeros((shapes._SIZE * scale,) * 2, np.uint8)
        for label, obj in enumerate(moved, start=1):
            labels[obj.mask] = label
        # The same colors, textures and background in each frame.
        picture = shapes._paint(np.random.default_rng([index, 1]), moved, scale)
        noise = random.normal(0, _NOISE, picture.shape)
        yield np.clip(np.rint(picture + noise), 0, 255).astype(np.uint8), labels
