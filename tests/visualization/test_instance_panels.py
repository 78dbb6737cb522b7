"""Matching, colors and label maps of instance panels."""

import colorsys

import numpy as np
from matplotlib.figure import Figure

from rpe_d2.visualization import (
    InstanceMasks,
    draw_instances,
    instance_colors,
    instance_panels,
    label_map,
)
from rpe_d2.visualization.instances import mask_iou, match_by_iou, panoptic_quality

RED = (230, 0, 0)


def masks(*slices: tuple) -> np.ndarray:
    out = np.zeros((len(slices), 40, 60), dtype=bool)
    for mask, where in zip(out, slices):
        mask[where] = True
    return out


TRUTH = masks(np.s_[5:15, 5:15], np.s_[20:35, 30:50])
# Matches the second one, none, and less than half of the first one.
PREDICTED = masks(np.s_[20:34, 30:50], np.s_[0:5, 50:60], np.s_[5:9, 5:15])


def drawn(panel) -> np.ndarray:
    axes = Figure().add_subplot()
    panel.draw(axes)
    return axes.images[0].get_array()


def test_match_by_iou() -> None:
    assert match_by_iou(mask_iou(PREDICTED, TRUTH)).tolist() == [1, -1, -1]
    assert match_by_iou(mask_iou(PREDICTED, TRUTH[:0])).tolist() == [-1, -1, -1]
    # Of two predictions of an object, the better one is matched.
    twice = masks(np.s_[20:34, 30:50], np.s_[20:35, 30:50])
    assert match_by_iou(mask_iou(twice, TRUTH)).tolist() == [-1, 1]


def test_panoptic_quality() -> None:
    # One of three predictions matches one of two objects, with an IoU of 14/15.
    assert np.isclose(panoptic_quality(PREDICTED, TRUTH), 14 / 15 / (1 + 0.5 * 2 + 0.5 * 1))
    assert panoptic_quality(TRUTH, TRUTH) == 1.0
    assert panoptic_quality(TRUTH[:0], TRUTH) == panoptic_quality(TRUTH, TRUTH[:0]) == 0.0
    assert panoptic_quality(TRUTH[:0], TRUTH[:0]) == 1.0


def test_draw_instances_keeps_the_rest_of_the_image() -> None:
    image = np.full((40, 60, 3), 100, np.uint8)
    drawn_picture = draw_instances(image, TRUTH, instance_colors(2), ["", ""])
    outside = ~TRUTH.any(axis=0)
    assert (drawn_picture[outside] == 100).all() and (drawn_picture[TRUTH[0]] != 100).any()
    named = draw_instances(image, TRUTH, instance_colors(2), ["", "a name"])
    assert (named != drawn_picture).any() and (image == 100).all()


def test_palette_is_distinct_and_not_red() -> None:
    colors = instance_colors(60)
    assert colors.shape == (60, 3) and colors.min() >= 0 and colors.max() <= 1
    assert len(np.unique(colors.round(2), axis=0)) == 60
    assert all(0.1 < colorsys.rgb_to_hsv(*color)[0] < 0.9 for color in colors)


def test_matched_color_and_red_outlines() -> None:
    image = np.full((40, 60, 3), 100, dtype=np.uint8)
    names = ["a", "b"]
    truth_panel, prediction_panel = instance_panels(
        image, InstanceMasks(PREDICTED, ["b", "a", "a"]), InstanceMasks(TRUTH, names)
    )
    truth, prediction = drawn(truth_panel), drawn(prediction_panel)
    scale = truth.shape[0] / 40
    middle = int(27 * scale), int(33 * scale)  # inside the matched object, beside its name
    assert truth[middle].tolist() == prediction[middle].tolist()
    assert len(set(truth[middle].tolist())) > 1  # colored

    def has_red(picture: np.ndarray, rows: slice, columns: slice) -> bool:
        rows, columns = (slice(int(s.start * scale), int(s.stop * scale)) for s in (rows, columns))
        return bool((picture[rows, columns] == RED).all(axis=2).any())

    assert has_red(truth, slice(4, 16), slice(4, 16))
    assert not has_red(truth, slice(18, 37), slice(28, 52))
    assert has_red(prediction, slice(0, 6), slice(49, 60))
    assert not has_red(prediction, slice(18, 37), slice(28, 52))
    assert truth_panel.note == "2 objects, 1 missed"
    assert prediction_panel.note.endswith("2 wrong")


def test_nothing_to_draw() -> None:
    image = np.zeros((40, 60, 3), dtype=np.uint8)
    nothing = InstanceMasks(np.zeros((0, 40, 60), dtype=bool), [])
    for panel in instance_panels(image, nothing, nothing):
        assert not drawn(panel).any()
    assert label_map(nothing.masks).tolist() == [[-1] * 60] * 40


def test_label_map_shows_the_smaller_on_top() -> None:
    labels = label_map(masks(np.s_[10:12, 10:12], np.s_[5:20, 5:20]))
    assert labels[10, 10] == 0 and labels[6, 6] == 1 and labels[0, 0] == -1
