"""Small clips with known motion."""

import zipfile
from pathlib import Path
from typing import List, Sequence, Tuple

import cv2
import numpy as np
from PIL import Image

SIZE = (48, 64)  # height and width


def moving_square(count: int, size: Tuple[int, int] = SIZE) -> Tuple[List[np.ndarray], list]:
    """Frames (H, W, 3) uint8 RGB in which a textured red square moves over a textured background.

    It moves by one pixel to the right and one down in each frame.

    Returns:
        The frames, and their label maps (H, W) uint8 with 1 for the square.
    """
    random = np.random.default_rng(0)
    background = _texture(random, size) * np.array([0.7, 0.8, 1.0])
    side = 5 * size[0] // 12
    square = (_texture(random, (side, side)) + 40) * np.array([1.0, 0.5, 0.3])
    frames, labels = [], []
    for index in range(count):
        place = slice(4 + index, 4 + index + side), slice(6 + index, 6 + index + side)
        frame = background.copy()
        frame[place] = square[: frame[place].shape[0], : frame[place].shape[1]]
        label = np.zeros(size, np.uint8)
        label[place] = 1
        frames.append(np.clip(np.rint(frame), 0, 255).astype(np.uint8))
        labels.append(label)
    return frames, labels


def _texture(random: np.random.Generator, size: Tuple[int, int]) -> np.ndarray:
    """Returns smooth gray levels (H, W, 1), which optical flow can follow."""
    cells = (random.random((size[0] // 4, size[1] // 4)) * 120 + 60).astype(np.float32)
    return cv2.resize(cells, size[::-1], interpolation=cv2.INTER_CUBIC)[:, :, None]


def write_frames(folder: Path, frames: Sequence[np.ndarray], first: int = 0) -> Path:
    """Writes frames as numbered PNG files, and returns the folder."""
    folder.mkdir(parents=True)
    for number, frame in enumerate(frames, start=first):
        Image.fromarray(frame).save(folder / f"frame_{number}.png")
    return folder


def write_clip(path: Path, frames: Sequence[np.ndarray], rate: float = 12.0) -> Path:
    """Writes a Motion JPEG, and returns its path."""
    codec = cv2.VideoWriter_fourcc(*"MJPG")
    writer = cv2.VideoWriter(str(path), codec, rate, frames[0].shape[1::-1])
    for frame in frames:
        writer.write(np.ascontiguousarray(frame[:, :, ::-1]))
    writer.release()
    return path


def write_wheel(path: Path, videos: Sequence[Path]) -> Path:
    """Writes a wheel of a package with videos, and returns its path."""
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("clips/__init__.py", "raise RuntimeError('the package is not imported')")
        for video in videos:
            wheel.write(video, f"clips/data/{video.name}")
    return path
