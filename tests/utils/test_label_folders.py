"""Matching of images and label maps by name."""

import numpy as np
import pytest
from PIL import Image

from rpe_d2.utils.label_folders import common_stem, match_files


def fill(folder, *names):
    folder.mkdir(exist_ok=True)
    for name in names:
        Image.fromarray(np.zeros((2, 2), np.uint8)).save(folder / name)
    return str(folder)


def test_names_of_other_programs():
    for name in ("a", "a_masks", "a_cp_masks", "a.labels", "a_label", "a_mask", "a_seg"):
        assert common_stem(f"x/{name}.png") == "a", name
    assert common_stem("_masks.png") == "_masks"  # nothing would remain


def test_two_folders_and_one(tmp_path):
    images = fill(tmp_path / "images", "b.png", "a.tif")
    labels = fill(tmp_path / "labels", "a_masks.png", "b.tif", "c.png")
    pairs = match_files(("IMAGES", images), ("LABELS", labels))
    names = [tuple(path.rsplit("/", 1)[1] for path in pair) for pair in pairs]
    assert names == [("a.tif", "a_masks.png"), ("b.png", "b.tif")]
    both = fill(tmp_path / "both", "a.png", "a_masks.tif", "b.png", "b_masks.tif")
    names = [p[1].rsplit("/", 1)[1] for p in match_files(("IMAGES", both), ("LABELS", both + "/"))]
    assert names == ["a_masks.tif", "b_masks.tif"]


def test_what_cannot_be_matched(tmp_path):
    images = fill(tmp_path / "images", "a.png")
    cases = [
        (fill(tmp_path / "1", "b.png"), "IMAGES: .*a.png has no partner in LABELS .*1; allowed: a"),
        (
            fill(tmp_path / "2", "a.png", "a_masks.png"),
            "LABELS .* has a.png and a_masks.png; allow",
        ),
        (str(tmp_path / "3"), "LABELS is .*3; there is no such folder"),
        (fill(tmp_path / "4"), "LABELS is .*4, which has no images"),
    ]
    for labels, message in cases:
        with pytest.raises(ValueError, match=message):
            match_files(("IMAGES", images), ("LABELS", labels))
