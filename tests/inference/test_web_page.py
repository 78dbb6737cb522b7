"""The page of rpe-d2 serve, without a browser; tests/release/test_serve.py has one."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from rpe_d2.inference import Segmenter, web_page
from rpe_d2.visualization import at_most
from tests.helpers.environment import required
from tests.helpers.runs import CONFIG, TINY, save_random


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    weights = save_random(CONFIG, TINY, tmp_path_factory.mktemp("weights") / "rpe.pth")
    return Segmenter.load(CONFIG, weights, min_score=0.0, opts=TINY)


@pytest.fixture
def upload(tmp_path):
    image = np.random.default_rng(0).integers(0, 99, (48, 64, 3), dtype=np.uint8)
    image[10:30, 10:40] += 100
    path = tmp_path / "cells.png"
    cv2.imwrite(str(path), image)
    return str(path)


def test_an_upload_gives_pictures_a_summary_and_files(segmenter, upload, tmp_path):
    found = segmenter.predict(upload)
    results = web_page._Results(segmenter, tmp_path)
    (image, overlay), summary, files = results.segment(upload)
    assert np.array_equal(image, found.image) and np.array_equal(overlay, found.overlay())
    assert summary.startswith(f"{len(found)} object") and len(found) > 0
    assert [Path(file).name for file in files] == ["cells.tif", "cells.geojson", "cells.csv"]
    assert np.array_equal(tifffile.imread(files[0]), found.labels)


def test_names_with_a_dot_in_front(segmenter, upload, tmp_path):
    hidden = tmp_path / ".hidden.png"
    hidden.write_bytes(Path(upload).read_bytes())
    folder = tmp_path / "results"
    folder.mkdir()
    files = web_page._Results(segmenter, folder).segment(str(hidden))[2]
    assert [Path(file).name for file in files] == ["hidden.tif", "hidden.geojson", "hidden.csv"]


def test_large_pictures_are_shown_smaller():
    assert at_most(np.zeros((3200, 800, 3), np.uint8), 1600).shape == (1600, 400, 3)
    assert at_most(np.zeros((90, 80, 3), np.uint8), 1600).shape == (90, 80, 3)


def test_only_files_of_the_last_results_are_kept(segmenter, upload, tmp_path, monkeypatch):
    monkeypatch.setattr(web_page, "_KEPT", 2)
    folder = tmp_path / "results"
    folder.mkdir()
    results = web_page._Results(segmenter, folder)
    files = [results.segment(upload)[2] for _ in range(4)]
    assert [Path(of[0]).exists() for of in files] == [False, False, True, True]
    assert len(list(folder.iterdir())) == 2


def test_errors_name_the_upload_but_no_folder_of_the_server(segmenter, tmp_path, monkeypatch):
    gradio = required("gradio", "-e '.[dev]'")
    page = web_page.build_page(segmenter, tmp_path)
    (segment,) = [function.fn for function in page.fns.values()]
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    with pytest.raises(gradio.Error) as raised:
        segment(str(broken))
    assert "broken.png" in raised.value.message and str(tmp_path) not in raised.value.message
    assert "\n" not in raised.value.message
    spaces = tmp_path / "a  b\u3000c.png"
    spaces.write_bytes(b"no image")
    with pytest.raises(gradio.Error) as raised:
        segment(str(spaces))
    assert "a b c.png" in raised.value.message and str(tmp_path) not in raised.value.message
    large = tmp_path / "large.tif"
    tifffile.imwrite(large, np.zeros((40, 60), np.uint8))
    monkeypatch.setattr(web_page, "MOST_READ", 2000)
    with pytest.raises(gradio.Error, match=r"large\.tif has 2400 pixels; allowed: at most 2000"):
        segment(str(large))
