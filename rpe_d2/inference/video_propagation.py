"""Propagation of a property from key frames through a clip, which can be interrupted."""

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterator, List, Optional, Sequence, Set, Tuple

import numpy as np

from rpe_d2.utils.files import TEMPORARY
from rpe_d2.utils.video_files import Clip

from .propagators import Propagator

__all__ = ["CHAINED", "DIRECT", "MODES", "ChainStates", "Span", "VideoPropagation", "plan_spans"]

DIRECT, CHAINED = "direct", "chained"
MODES = (DIRECT, CHAINED)

# Reads the properties (C, H, W) of key frames, of which at most two are needed at once. Both have
# the same channels.
ReadKeys = Callable[[Sequence[int]], List[np.ndarray]]


@dataclass(frozen=True)
class Span:
    """Frames of one shot that get their property from the same key frames.

    Attributes:
        first, last: indices of the first and the last frame.
        left: index of the key frame before them, which is the first frame of the span, or None.
        right: index of the key frame after them, or None.
    """

    first: int
    last: int
    left: Optional[int]
    right: Optional[int]

    @property
    def keys(self) -> List[int]:
        """The key frames, one or two."""
        return [key for key in (self.left, self.right) if key is not None]

    def weights(self, index: int) -> List[float]:
        """Returns the weight of each key frame for a frame; the nearer one has the larger."""
        if len(self.keys) == 1:
            return [1.0]
        share = (index - self.left) / (self.right - self.left)
        return [1 - share, share]


def plan_spans(numbers: Sequence[int], keys: Sequence[int], cuts: Sequence[int]) -> List[Span]:
    """Divides a clip into spans between key frames. No span crosses a cut.

    Args:
        numbers: the number of each frame, for messages.
        keys: indices of the key frames.
        cuts: indices of the last frames of shots.

    Returns:
        Spans that cover the clip, in ascending order.

    Raises:
        ValueError: A shot has no key frame.
    """
    spans = []
    ends = sorted({*cuts, len(numbers) - 1})
    for start, end in zip([0, *(end + 1 for end in ends)], ends):
        inside = sorted({key for key in keys if start <= key <= end})
        if not inside:
            raise ValueError(
                f"the shot of frames {numbers[start]} to {numbers[end]} has no key frame; allowed: "
                "one or more for each shot"
            )
        if start < inside[0]:
            spans.append(Span(start, inside[0] - 1, None, inside[0]))
        for left, right in zip(inside, inside[1:]):
            spans.append(Span(left, right - 1, left, right))
        spans.append(Span(inside[-1], end, inside[-1], None))
    return spans


class ChainStates:
    """Intermediate results of chains in a folder, so that memory is bounded and runs continue.

    A chain that runs backwards leaves the property of each frame. One that runs forward leaves that
    of its last frame.
    """

    def __init__(self, folder: Path):
        """
        Args:
            folder: created if a state is saved.
        """
        self._folder = folder

    def save(self, name: str, values: np.ndarray) -> None:
        """Saves a property (C, H, W) float32 under a name."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._path(name)
        temporary = path.with_suffix(TEMPORARY)
        # It need not reach the disk: what a power failure takes is computed again.
        with open(temporary, "wb") as file:
            np.save(file, values)
        os.replace(temporary, path)

    def load(self, name: str, shape: Tuple[int, ...]) -> Optional[np.ndarray]:
        """Returns a saved property, or None if there is none of that shape."""
        with contextlib.suppress(OSError, ValueError, EOFError):
            values = np.load(self._path(name), allow_pickle=False)
            return values if values.shape == shape else None
        return None

    def clear(self) -> None:
        """Deletes all states."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.npy"


class VideoPropagation:
    """Carries a property from key frames to all frames of a clip.

    In the mode "direct", each frame gets it from its key frames. In the mode "chained", it goes
    from frame to frame. Between two key frames, it comes from both sides, and the two are averaged
    with weights that fall linearly with the distance.
    """

    def __init__(
        self,
        clip: Clip,
        propagator: Propagator,
        spans: Sequence[Span],
        read_keys: ReadKeys,
        states: ChainStates,
        mode: str = DIRECT,
    ):
        """
        Args:
            clip: the clip.
            propagator: carries the property from one frame to another.
            spans: result of :func:`plan_spans`.
            read_keys: returns the properties of key frames by their indices.
            states: keeps intermediate results of chains.
            mode: "direct" or "chained".

        Raises:
            ValueError: There is no such mode.
        """
        if mode not in MODES:
            raise ValueError(f"mode is {mode!r}; allowed: {', '.join(MODES)}")
        self._propagator, self._spans, self._mode = propagator, spans, mode
        self._read_keys, self._states = read_keys, states
        # Each has a position of its own, so that all of them read in ascending order.
        self._forward, self._backward, self._key_frames = (clip.reader() for _ in range(3))

    def count_steps(self, finished: Set[int]) -> int:
        """Returns the largest number of propagations that :meth:`run` makes.

        Args:
            finished: indices of frames that are not needed.
        """
        count = 0
        for span in self._spans:
            frames = set(range(span.first, span.last + 1)) - {span.left}
            remaining = frames - finished
            if remaining:
                frames = remaining if self._mode == DIRECT else frames
                count += len(frames) * len(span.keys)
        return count

    def run(
        self, finished: Set[int], on_step: Callable[[], object] = lambda: None
    ) -> Iterator[Tuple[int, np.ndarray]]:
        """Yields the frames that are not finished, in ascending order.

        A frame counts as finished when the next one is asked for.

        Args:
            finished: indices of frames that are not needed.
            on_step: called after each propagation.

        Yields:
            The index and the property (C, H, W) float32.
        """
        self._on_step = on_step
        for span in self._spans:
            if set(range(span.first, span.last + 1)) <= finished:
                continue
            keys = self._read_keys(span.keys)
            if span.left is not None and span.left not in finished:
                yield span.left, keys[0]
            frames = self._direct if self._mode == DIRECT else self._chained
            yield from frames(span, keys, finished)
            self._states.clear()
        self._states.clear()  # also what an interrupted run left of its last span

    def _direct(
        self, span: Span, keys: List[np.ndarray], finished: Set[int]
    ) -> Iterator[Tuple[int, np.ndarray]]:
        key_frames = [self._key_frames.read(key) for key in span.keys]
        for index in range(span.first, span.last + 1):
            if index == span.left or index in finished:
                continue
            frame = self._forward.read(index)
            found = [
                self._step(values, key_frame, frame) for values, key_frame in zip(keys, key_frames)
            ]
            yield index, _blend(found, span.weights(index))

    def _chained(
        self, span: Span, keys: List[np.ndarray], finished: Set[int]
    ) -> Iterator[Tuple[int, np.ndarray]]:
        if span.right is not None:
            self._chain_backwards(span, keys[-1])
        chain = self._chain_forward(span, keys[0], finished) if span.left is not None else None
        for index in range(span.first, span.last + 1):
            if index == span.left:
                continue
            found = []
            if chain is not None:
                values = next(chain)
                if values is None:  # the state of a later frame is known
                    continue
                found.append(values)
            if index in finished:
                continue
            if span.right is not None:
                found.append(self._states.load(f"backward_{index}", keys[-1].shape))
            yield index, _blend(found, span.weights(index))

    def _chain_backwards(self, span: Span, values: np.ndarray) -> None:
        """Propagates from the right key frame, and saves the property of each frame."""
        first = span.first + (span.left is not None)
        start = span.right
        while start > first:  # continue from the last frame that is known
            saved = self._states.load(f"backward_{start - 1}", values.shape)
            if saved is None:
                break
            start, values = start - 1, saved
        frame = None
        for index, previous in self._backward.read_backwards(first, start):
            if frame is not None:
                values = self._step(values, frame, previous)
                self._states.save(f"backward_{index}", values)
            frame = previous

    def _chain_forward(
        self, span: Span, values: np.ndarray, finished: Set[int]
    ) -> Iterator[Optional[np.ndarray]]:
        """Yields the property of each frame after the left key frame, None before a saved one."""
        name = f"forward_{span.left}"
        start, saved = span.left, self._states.load(name, (len(values) + 1, *values.shape[1:]))
        if saved is not None and set(range(span.left, int(saved[0, 0, 0]) + 1)) <= finished:
            start, values = int(saved[0, 0, 0]), saved[1:]
        frame = None
        for index in range(span.left + 1, span.last + 1):
            if index <= start:
                yield None
                continue
            if frame is None:
                frame = self._forward.read(index - 1)
            previous, frame = frame, self._forward.read(index)
            values = self._step(values, previous, frame)
            yield values
            # With the index in front, so that both are replaced at once.
            place = np.full_like(values[:1], index)
            self._states.save(name, np.concatenate([place, values]))

    def _step(self, values: np.ndarray, key_frame: np.ndarray, frame: np.ndarray) -> np.ndarray:
        values = self._propagator(values, key_frame, frame)
        self._on_step()
        return values


def _blend(found: List[np.ndarray], weights: List[float]) -> np.ndarray:
    if len(found) == 1:
        return found[0]
    return sum(np.float32(weight) * values for weight, values in zip(weights, found))
