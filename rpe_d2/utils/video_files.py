"""The reader of clips: video files, folders of numbered images, and images of several planes."""

import os
import re
import string
import tempfile
from abc import ABC, abstractmethod
from contextlib import contextmanager
from pathlib import Path
from typing import Dict, Iterator, Sequence, Tuple

import cv2
import numpy as np

from .image_files import (
    IMAGE_SUFFIXES,
    check_is_file,
    image_size,
    image_stem,
    list_images,
    plane_names,
    printable,
)
from .images import ImageReader, to_rgb
from .package_files import PACKAGE, extract_from_wheel, installed_files, split_wheel
from .readable import UnreadableImage

__all__ = [
    "Clip",
    "FrameReader",
    "VideoWriter",
    "frame_number",
    "open_clip",
    "open_video",
    "truncation",
]

# What is opened as an image, of one or several planes.
_IMAGES = (*IMAGE_SUFFIXES, ".gif")
_VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")
_FRAMES_PER_SECOND = 25.0  # where a file has none
# Frames that are kept in memory to read a video backwards.
_MOST_BYTES = 256 << 20
# How files begin that name other files or addresses, which FFmpeg would open.
_PLAYLISTS = (b"#EXTM3U", b"ffconcat", b"<")
_TEXT = string.printable.encode()
_START = 4096  # bytes


class FrameReader(ABC):
    """Reads the frames of a clip. It is fast if frames are read in ascending order."""

    def __init__(self, clip: "Clip"):
        self._clip = clip

    def read(self, index: int) -> np.ndarray:
        """Reads a frame.

        Args:
            index: index of the frame, from 0.

        Returns:
            (H, W, 3) uint8 RGB.

        Raises:
            UnreadableImage: The frame cannot be read, or it has another size than the first one.
        """
        frame = self._read(index)
        if frame.shape[:2] != self._clip.size:
            sizes = ["{1} x {0}".format(*size) for size in (frame.shape, self._clip.size)]
            raise UnreadableImage(
                f"{printable(self._clip.path)}: frame {self._clip.names[index]} has {sizes[0]} "
                f"pixels, and the first one {sizes[1]}; allowed: one size"
            )
        return frame

    def read_backwards(self, first: int, last: int) -> Iterator[Tuple[int, np.ndarray]]:
        """Yields the frames from ``last`` down to ``first``, with their indices.

        A limited number of them is in memory at once.
        """
        height, width = self._clip.size
        count = max(1, _MOST_BYTES // (3 * height * width))
        for end in range(last, first - 1, -count):
            indices = range(max(first, end - count + 1), end + 1)
            frames = [self.read(index) for index in indices]
            while frames:
                yield indices[len(frames) - 1], frames.pop()

    @abstractmethod
    def _read(self, index: int) -> np.ndarray:
        """Reads a frame (H, W, 3) uint8 RGB."""


class Clip(ABC):
    """A sequence of frames of one size. :func:`open_clip` opens it.

    Attributes:
        path: the file or folder.
        name: name for files that are made from it.
        numbers: numbers of the frames, ascending. Images of a folder have them in their names; the
            frames of a video and the planes of an image count from 0.
        names: names of the frames for files that are made from them.
        size: height and width.
        frames_per_second: 25 where the file does not say it.
    """

    frames_per_second = _FRAMES_PER_SECOND

    def __init__(
        self, path: str, numbers: Sequence[int], names: Sequence[str], size: Tuple[int, int]
    ):
        self.path, self.numbers, self.names, self.size = path, numbers, names, size
        self.name = Path(path).stem
        self._index_of: Dict[int, int] = {number: i for i, number in enumerate(numbers)}

    def __len__(self) -> int:
        return len(self.numbers)

    def index_of(self, where: str, number: int) -> int:
        """Returns the index of the frame with a number.

        Args:
            where: what has the number, the beginning of the message.
            number: the number.

        Raises:
            ValueError: There is no such frame.
        """
        if number not in self._index_of:
            raise ValueError(
                f"{where} has the frame number {number}; allowed for {printable(self.path)}: "
                f"{self.numbers[0]} to {self.numbers[-1]}"
            )
        return self._index_of[number]

    @abstractmethod
    def reader(self) -> FrameReader:
        """Returns a reader with a position of its own."""


@contextmanager
def open_clip(path: str, argument: str = "CLIP") -> Iterator[Clip]:
    """Opens a clip for a ``with`` block, and counts its frames.

    Args:
        path: a video that OpenCV can read, a folder of images with a number in their names, or an
            image of several planes such as a TIFF file. ``package://PACKAGE/NAME`` is a video in an
            installed package, and ``FILE.whl/NAME`` one in a wheel.
        argument: the argument that names it, for messages.

    Raises:
        ValueError: There is no such clip, it has no frames, it is truncated, or its frames differ
            in size. The message is one line.
    """
    if os.path.isdir(path):
        yield _folder(path, argument)
        return
    with tempfile.TemporaryDirectory() as folder:
        file = _file(path, argument, Path(folder))
        if os.path.splitext(file)[1].lower() in _IMAGES:
            planes = plane_names(file)
            yield _ImageClip(file, planes, range(len(planes)))
        else:
            yield _VideoClip(file, f"{argument} {printable(path)}")


def frame_number(file: str) -> int:
    """Returns the last number in the name of a file, such as 12 for ``frame_0012.png``.

    Raises:
        ValueError: The name has no number.
    """
    found = re.findall(r"\d+", image_stem(file))
    if not found:
        raise ValueError(
            f"{printable(file)} has no number in its name; allowed: the number of its frame, as in "
            "000012.png"
        )
    return int(found[-1])


def open_video(where: str, path: str) -> cv2.VideoCapture:
    """Opens a video file. No address and no other file that it names is opened.

    Args:
        where: the beginning of messages, such as an argument and the file.
        path: the file.

    Raises:
        ValueError: The file does not exist, or is not a video that OpenCV can read.
    """
    check_is_file(path)
    if not os.path.isfile(path):
        raise ValueError(f"{where}: no such file")
    with open(path, "rb") as file:
        start = file.read(_START)
    is_text = not start.translate(None, _TEXT)
    if not is_text and not start.lstrip().startswith(_PLAYLISTS):
        capture = cv2.VideoCapture(path)
        if capture.isOpened():
            return capture
    raise ValueError(f"{where} is not a video that OpenCV can read")


def truncation(capture: cv2.VideoCapture, read: int) -> str:
    """Says how many frames of a video are missing, or returns "" if none are.

    Args:
        capture: the video.
        read: number of the frames that could be read.
    """
    count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    # The number of frames in the header is an estimate in some formats.
    if count - read <= max(1, count // 100):
        return ""
    return f"{read} of {count} frames could be read; the video is truncated or damaged"


class VideoWriter:
    """Writes an MP4 file frame by frame."""

    def __init__(self, path: Path, frames_per_second: float, size: Tuple[int, int]):
        """
        Args:
            path: the file, which ends in ".mp4".
            frames_per_second: frames per second.
            size: height and width.

        Raises:
            OSError: OpenCV cannot write the file.
        """
        codec = cv2.VideoWriter_fourcc(*"mp4v")
        self._writer = cv2.VideoWriter(str(path), codec, frames_per_second, size[::-1])
        if not self._writer.isOpened():
            raise OSError(f"{path} cannot be written: OpenCV has no MP4 encoder here")

    def write(self, frame: np.ndarray) -> None:
        """Appends a frame (H, W, 3) uint8 RGB."""
        self._writer.write(np.ascontiguousarray(frame[:, :, ::-1]))

    def release(self) -> None:
        """Completes the file."""
        self._writer.release()


class _VideoClip(Clip):
    def __init__(self, path: str, where: str):
        capture = open_video(where, path)
        success, frame = capture.read()
        size = frame.shape[:2] if success else (0, 0)
        count = 0
        while success:
            count += 1
            success = capture.grab()
        rate = capture.get(cv2.CAP_PROP_FPS)
        missing = truncation(capture, count)
        capture.release()
        if not count:
            raise UnreadableImage(f"{where}: no frame could be read")
        if missing:
            raise UnreadableImage(f"{where}: {missing}; allowed: a whole file")
        super().__init__(path, range(count), [f"{number:06d}" for number in range(count)], size)
        if 0 < rate < float("inf"):
            self.frames_per_second = rate

    def reader(self) -> FrameReader:
        return _VideoReader(self)


class _VideoReader(FrameReader):
    def __init__(self, clip: Clip):
        super().__init__(clip)
        self._open()

    def _open(self) -> None:
        self._capture = open_video(printable(self._clip.path), self._clip.path)
        self._next = 0  # index of the frame that is read next
        self._last = None  # the frame before it, if it was decoded

    def _read(self, index: int) -> np.ndarray:
        # Frames are counted instead of seeking, which is not exact in all formats.
        if index == self._next - 1 and self._last is not None:
            return self._last
        if index < self._next:
            self._capture.release()
            self._open()
        success, self._last = True, None
        while success and self._next < index:
            success = self._capture.grab()
            self._next += 1
        self._next += 1
        success, frame = self._capture.read() if success else (False, None)
        if not success:
            raise UnreadableImage(f"{printable(self._clip.path)}: frame {index} cannot be read")
        self._last = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        return self._last


class _ImageClip(Clip):
    def __init__(self, path: str, files: Sequence[str], numbers: Sequence[int]):
        is_file = os.path.isfile(path)  # of several planes, whose sizes are checked when it is read
        names = [f"{n:06d}" if is_file else image_stem(f) for n, f in zip(numbers, files)]
        width, height = image_size(files[0])
        for file in [] if is_file else files:
            size = image_size(file)
            if size != (width, height):
                raise UnreadableImage(
                    f"{printable(file)} has {size[0]} x {size[1]} pixels, and "
                    f"{printable(os.path.basename(files[0]))} {width} x {height}; allowed: one size"
                )
        super().__init__(path, numbers, names, (height, width))
        self._files = files

    def reader(self) -> FrameReader:
        return _ImageFrames(self, self._files)


class _ImageFrames(FrameReader):
    def __init__(self, clip: Clip, files: Sequence[str]):
        super().__init__(clip)
        self._files, self._images = files, ImageReader("RGB")

    def _read(self, index: int) -> np.ndarray:
        return to_rgb(self._images.read(self._files[index]))


def _folder(path: str, argument: str) -> Clip:
    files = list_images(path)
    if not files:
        raise ValueError(f"{argument} {printable(path)} has no images; allowed: numbered images")
    file_of: Dict[int, str] = {}
    for file in files:
        other = file_of.setdefault(frame_number(file), file)
        if other != file:
            raise ValueError(
                f"{argument} {printable(path)} has {printable(os.path.basename(other))} and "
                f"{printable(os.path.basename(file))}; allowed: one image for each number"
            )
    numbers = sorted(file_of)
    return _ImageClip(path, [file_of[number] for number in numbers], numbers)


def _file(path: str, argument: str, folder: Path) -> str:
    """Returns the file of a clip. Those of packages are looked up, and those of wheels copied."""
    wheel, name = split_wheel(path)
    where = f"{argument} is {printable(path)}"
    if name:
        return str(extract_from_wheel(wheel, lambda files: _of_name(where, files, name), folder))
    if path.startswith(PACKAGE):
        package, _, name = path.removeprefix(PACKAGE).partition("/")
        return _of_name(where, installed_files(where, package, _VIDEOS), name)
    if not os.path.exists(path):
        raise ValueError(f"{argument} {printable(path)}: no such file or folder")
    return path


def _of_name(where: str, files: Sequence[str], name: str) -> str:
    """Returns the only video of a name, with or without its suffix."""
    videos = {file: os.path.splitext(os.path.basename(file)) for file in files}
    videos = {file: parts for file, parts in videos.items() if parts[1].lower() in _VIDEOS}
    found = [file for file, parts in videos.items() if name in (parts[0], "".join(parts))]
    if len(found) != 1:
        names = ", ".join(sorted(parts[0] for parts in videos.values()))
        raise ValueError(
            f"{where}; there are {len(found)} such videos; allowed: "
            f"{names or 'a package with videos'}"
        )
    return found[0]
