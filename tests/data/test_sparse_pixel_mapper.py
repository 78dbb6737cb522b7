"""A few known pixels of a picture, one in each superpixel."""

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from rpe_d2.data import SparsePixelMapper
from rpe_d2.data.build import build_train_mapper
from rpe_d2.data.sparse_pixel_mapper import draw_pixels, superpixels
from tests.helpers.configs import small_cfg_with

SPARSE = """
MODEL: {SPN: {NETWORK: sparse_labels}, SEM_SEG_HEAD: {NUM_CLASSES: 5}}
INPUT: {FORMAT: RGB, SCALE: 1.0, RANDOM_FLIP: none}
"""
COLOR = "MODEL: {SPN: {NETWORK: sparse_color}}"


@pytest.fixture
def record(tmp_path):
    random = np.random.default_rng(0)
    small = random.integers(0, 255, (6, 8, 3), dtype=np.uint8)
    image = cv2.resize(small, (80, 60), interpolation=cv2.INTER_CUBIC)
    Image.fromarray(image).save(tmp_path / "a.png")
    labels = np.repeat(np.arange(5, dtype=np.uint8), 16)[None].repeat(60, axis=0)
    labels[:20] = 255
    Image.fromarray(labels).save(tmp_path / "labels.png")
    return {
        "file_name": str(tmp_path / "a.png"),
        "sem_seg_file_name": str(tmp_path / "labels.png"),
        "image_id": "a",
        "height": 60,
        "width": 80,
    }


def test_every_pixel_of_a_segment_is_drawn_as_often():
    segments = np.array([[0, 0, 0, 7], [3, 3, 0, 7]])
    random = np.random.default_rng(0)
    counts = np.zeros(segments.shape)
    for _ in range(2000):
        drawn = draw_pixels(segments, random)
        assert sorted(segments[drawn]) == [0, 3, 7]
        counts += drawn
    expected = np.where(segments == 0, 500, 1000)
    assert np.abs(counts - expected).max() < 5 * np.sqrt(500)
    allowed = segments != 3
    allowed[0, 0] = False
    drawn = draw_pixels(segments, random, allowed)
    assert sorted(segments[drawn]) == [0, 7] and not (drawn & ~allowed).any()
    assert not draw_pixels(segments, random, np.zeros_like(allowed)).any()


def test_there_are_about_as_many_superpixels_as_desired(record):
    image = cv2.resize(np.array(Image.open(record["file_name"])), (512, 256))
    segments = superpixels(image[..., 1], 300)
    assert segments.shape == (256, 512)
    assert 240 < len(np.unique(segments)) < 360
    assert np.bincount(segments.ravel()).max() < 10 * segments.size / 300


def test_labels_are_known_at_one_pixel_of_each_superpixel(record):
    cfg = small_cfg_with(SPARSE)
    mapper = SparsePixelMapper(cfg, is_train=False, num_superpixels=40)
    item, again = mapper(record), mapper(record)
    maps, labels = item["sparse_labels"].numpy(), item["sem_seg"].numpy()
    assert maps.shape == (5, 60, 80) and maps.dtype == np.float32
    known = maps.sum(axis=0) > 0
    assert 15 < known.sum() < 50
    assert np.array_equal(maps.argmax(axis=0)[known], labels[known]) and set(np.unique(maps)) == {
        0,
        1,
    }
    assert torch.equal(item["sparse_labels"], again["sparse_labels"])
    other = mapper({**record, "image_id": "b"})
    assert not torch.equal(item["sparse_labels"], other["sparse_labels"])
    np.random.seed(0)
    train = build_train_mapper("SparsePixelMapper", cfg, num_superpixels=40)
    drawn = [train(record)["sparse_labels"] for _ in range(2)]
    assert not torch.equal(*drawn)
    np.random.seed(0)
    assert torch.equal(train(record)["sparse_labels"], drawn[0])


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_color_is_known_at_a_few_pixels_of_a_gray_image(record, image_format):
    cfg = small_cfg_with(SPARSE, COLOR, f"INPUT: {{FORMAT: {image_format}}}")
    item = SparsePixelMapper(cfg, is_train=False, num_superpixels=40)(record)
    lab = cv2.cvtColor(np.array(Image.open(record["file_name"])), cv2.COLOR_RGB2LAB)
    assert item["image"].shape == (3, 60, 80) and item["image"].dtype == torch.uint8
    assert all(np.array_equal(channel, lab[..., 0]) for channel in item["image"].numpy())
    np.testing.assert_allclose(
        255 * item["values"].numpy(), lab[..., 1:].transpose(2, 0, 1), atol=1e-4
    )
    known = item["known"]
    assert known.dtype == torch.bool and 30 < known.sum() < 50
    assert torch.equal(item["sparse_values"], item["values"] * known)
    assert "sparse_labels" not in item


def test_wrong_data_are_reported_in_one_line(record, tmp_path):
    cfg = small_cfg_with(SPARSE)
    with pytest.raises(ValueError, match="num_superpixels is 0; allowed: 1 or more"):
        SparsePixelMapper(cfg, is_train=True, num_superpixels=0)
    with pytest.raises(ValueError, match="kind is 'depth'; allowed: labels, color"):
        SparsePixelMapper(cfg, is_train=True, kind="depth")
    unlabeled = {key: record[key] for key in record if key != "sem_seg_file_name"}
    with pytest.raises(ValueError, match="a.png has no label map"):
        SparsePixelMapper(cfg, is_train=False)(unlabeled)
    gray = small_cfg_with(SPARSE, COLOR, "INPUT: {FORMAT: L}")
    with pytest.raises(ValueError, match="a.png has 1 channel; allowed for color: 3"):
        SparsePixelMapper(gray, is_train=False)(record)
