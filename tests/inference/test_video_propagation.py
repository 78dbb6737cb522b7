"""The order in which a property goes through a clip, and how interrupted work continues."""

import numpy as np
import pytest

from rpe_d2.inference.video_propagation import (
    MODES,
    ChainStates,
    Span,
    VideoPropagation,
    plan_spans,
)
from rpe_d2.utils.video_files import open_clip
from tests.helpers.clips import write_frames

COUNT = 12
KEYS = {2: 50.0, 6: 80.0, 9: 10.0}
CUTS = [7]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Frame t is gray with the level 10 t."""
    frames = [np.full((4, 5, 3), 10 * index, np.uint8) for index in range(COUNT)]
    folder = write_frames(tmp_path_factory.mktemp("clip") / "frames", frames)
    with open_clip(str(folder)) as opened:
        yield opened


class Counting:
    """A propagator that counts its calls.

    The property decays, and grows with the difference of the frames, so that chains and direct
    jumps differ.
    """

    def __init__(self, fails_after=None):
        self.calls, self.fails_after = 0, fails_after

    def __call__(self, values, key_frame, frame):
        if self.calls == self.fails_after:
            raise InterruptedError
        self.calls += 1
        change = np.float32(frame.mean()) - np.float32(key_frame.mean())
        return np.float32(0.9) * values + np.float32(0.01) * change * change + change


def read_keys(indices):
    return [np.full((2, 4, 5), KEYS[index], np.float32) for index in indices]


def work(clip, propagator, folder, mode):
    spans = plan_spans(range(COUNT), list(KEYS), CUTS)
    return VideoPropagation(clip, propagator, spans, read_keys, ChainStates(folder), mode)


def expected(mode):
    """The property of each frame, computed one by one."""

    def step(value, first, second):
        change = 10.0 * (second - first)
        return 0.9 * value + 0.01 * change**2 + change

    def carried(key, index):
        if mode == "direct":
            return step(KEYS[key], key, index)
        value, place = KEYS[key], key
        while place != index:
            following = place + (1 if index > place else -1)
            value, place = step(value, place, following), following
        return value

    result = []
    for index in range(COUNT):
        shot = range(0, 8) if index < 8 else range(8, COUNT)
        before = [key for key in KEYS if key in shot and key <= index]
        after = [key for key in KEYS if key in shot and key > index]
        if index in KEYS:
            result.append(KEYS[index])
        elif before and after:
            left, right = max(before), min(after)
            share = (index - left) / (right - left)
            result.append((1 - share) * carried(left, index) + share * carried(right, index))
        else:
            result.append(carried(max(before) if before else min(after), index))
    return result


def test_spans_begin_with_key_frames_and_end_at_cuts():
    assert plan_spans(range(COUNT), [2, 9, 6], CUTS) == [
        Span(0, 1, None, 2),
        Span(2, 5, 2, 6),
        Span(6, 7, 6, None),
        Span(8, 8, None, 9),
        Span(9, 11, 9, None),
    ]
    assert plan_spans(range(3), [0], []) == [Span(0, 2, 0, None)]
    assert plan_spans(range(3), [2], [2]) == [Span(0, 1, None, 2), Span(2, 2, 2, None)]


def test_a_shot_without_key_frame_is_named_by_the_numbers_of_its_frames():
    with pytest.raises(ValueError, match="shot of frames 10 to 19 has no key frame"):
        plan_spans(range(30), [3, 25], [9, 19])


def test_weights_fall_with_the_distance():
    assert Span(2, 5, 2, 6).weights(3) == [0.75, 0.25]
    assert Span(0, 1, None, 2).weights(1) == [1.0]


@pytest.mark.parametrize("mode", MODES)
def test_every_frame_gets_its_property(clip, tmp_path, mode):
    propagator, steps = Counting(), []
    job = work(clip, propagator, tmp_path / "states", mode)
    count = job.count_steps(set())
    found = list(job.run(set(), lambda: steps.append(1)))
    assert [index for index, _ in found] == list(range(COUNT))
    for (_, values), value in zip(found, expected(mode)):
        np.testing.assert_allclose(values, np.full((2, 4, 5), value), rtol=1e-5)
    assert len(steps) == propagator.calls == count == 2 + 2 * 3 + 1 + 1 + 2
    assert not (tmp_path / "states").exists()


@pytest.mark.parametrize("mode", MODES)
def test_an_interrupted_run_continues_with_the_same_result(clip, tmp_path, mode):
    """It is interrupted before each of its steps by turns."""
    whole = {i: v for i, v in work(clip, Counting(), tmp_path / "whole", mode).run(set())}
    total = 12
    for stop in range(total):
        folder, finished = tmp_path / f"stop_{stop}", {}
        with pytest.raises(InterruptedError):
            for index, values in work(clip, Counting(stop), folder, mode).run(set()):
                finished[index] = values
        again = Counting()
        for index, values in work(clip, again, folder, mode).run(set(finished)):
            assert index not in finished
            finished[index] = values
        assert finished.keys() == whole.keys()
        for index, values in whole.items():
            assert np.array_equal(finished[index], values), (stop, index)
        # At most the last two steps, which were not saved, are repeated.
        assert again.calls <= total - stop + 2, stop
        assert not folder.exists()


def test_finished_frames_are_not_done_again(clip, tmp_path):
    propagator = Counting()
    job = work(clip, propagator, tmp_path / "states", "direct")
    finished = set(range(COUNT)) - {4, 11}
    assert job.count_steps(finished) == 3
    assert [index for index, _ in job.run(finished)] == [4, 11] and propagator.calls == 3
    assert not list(work(clip, propagator, tmp_path / "states", "chained").run(set(range(COUNT))))
    assert propagator.calls == 3


def test_states_of_another_shape_and_damaged_ones_are_not_used(tmp_path):
    states = ChainStates(tmp_path / "states")
    assert states.load("a", (1, 2, 2)) is None
    states.save("a", np.ones((1, 2, 2), np.float32))
    assert states.load("a", (1, 2, 2)).sum() == 4 and states.load("a", (1, 2, 3)) is None
    (tmp_path / "states" / "a.npy").write_bytes(b"\x93NUMPY")
    assert states.load("a", (1, 2, 2)) is None


def test_a_wrong_mode(clip, tmp_path):
    with pytest.raises(ValueError, match="mode is 'both'; allowed: direct, chained"):
        work(clip, Counting(), tmp_path, "both")
