"""Predictions of another model as an input: ``DATASETS.COARSE_DIRS``."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from rpe_d2.data import ImageMapper, register_coarse_dirs
from tests.helpers.configs import small_cfg_with


@pytest.fixture
def folder(tmp_path):
    """A data set "coarse_test" of two images, and predictions of three classes for them."""
    random = np.random.default_rng(0)
    dicts = []
    for name in ("a", "b"):
        image = random.integers(0, 255, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(image).save(tmp_path / f"{name}.png")
        maps = random.integers(1, 255, (3, 30, 40), dtype=np.uint8)
        np.savez_compressed(tmp_path / f"{name}.npz", probabilities=maps)
        dicts.append({"file_name": str(tmp_path / f"{name}.png"), "height": 30, "width": 40})
    DatasetCatalog.register("coarse_test", lambda: dicts)
    yield tmp_path
    DatasetCatalog.pop("coarse_test")
    MetadataCatalog.pop("coarse_test", None)


def test_images_get_the_predictions_and_flips_move_them(folder):
    register_coarse_dirs([f"coarse_test={folder}"])
    register_coarse_dirs([f"coarse_test={folder}"])  # a second time changes nothing
    items = DatasetCatalog.get("coarse_test")
    assert [item["coarse_file_name"] for item in items] == [
        str(folder / "a.npz"),
        str(folder / "b.npz"),
    ]
    expected = np.load(folder / "a.npz")["probabilities"].astype(float)
    expected /= expected.sum(axis=0)
    cfg = small_cfg_with("INPUT: {MIN_SIZE_TEST: 0}")
    found = ImageMapper(cfg, is_train=False)(items[0])
    assert "coarse_file_name" not in found
    np.testing.assert_allclose(found["coarse_sem_seg"].numpy(), expected, atol=1e-6)
    cfg = small_cfg_with(
        "INPUT: {MIN_SIZE_TRAIN: [0], RANDOM_FLIP: horizontal, QUARTER_TURNS: True}"
    )
    mapper = ImageMapper(cfg, is_train=True)
    image = ImageMapper(small_cfg_with("INPUT: {MIN_SIZE_TEST: 0}"), is_train=False)(items[0])
    turned = set()
    for _ in range(20):
        moved = mapper(items[0])
        for turns in range(4):
            for flip in (False, True):
                same = [
                    np.rot90(maps.numpy(), turns, axes=(1, 2))[:, :, :: -1 if flip else 1]
                    for maps in (image["image"], image["coarse_sem_seg"])
                ]
                if np.array_equal(same[0], moved["image"].numpy()):
                    np.testing.assert_array_equal(same[1], moved["coarse_sem_seg"].numpy())
                    turned.add((turns, flip))
    assert len(turned) > 2


def test_predictions_turn_and_shrink_smoothly_with_the_image(folder):
    """Bilinear interpolation in all of 21 maps, and the first class outside of the image."""
    y, x = np.mgrid[:30, :40]
    maps = np.zeros((21, 30, 40), np.uint8)
    maps[5], maps[20], maps[1] = 3 * x, 3 * y, 255 - 3 * x - 3 * y
    np.savez_compressed(folder / "a.npz", probabilities=maps)
    image = np.dstack([3 * x, 3 * y, 255 - 3 * x - 3 * y]).astype(np.uint8)
    Image.fromarray(image).save(folder / "a.png")
    register_coarse_dirs([f"coarse_test={folder}"])
    item = DatasetCatalog.get("coarse_test")[0]
    text = "INPUT: {FORMAT: RGB, MIN_SIZE_TRAIN: [24], ROTATION: 30.0}"
    mapper = ImageMapper(small_cfg_with(text), is_train=True)
    jitter = ImageMapper(small_cfg_with(text, "INPUT: {COLOR_JITTER: 0.5}"), is_train=True)
    for seed in range(5):
        np.random.seed(seed)
        moved = mapper(item)
        np.random.seed(seed)
        colored = jitter(item)
        assert torch.equal(moved["coarse_sem_seg"], colored["coarse_sem_seg"])
        assert not torch.equal(moved["image"], colored["image"])
        found, image = moved["coarse_sem_seg"].numpy(), moved["image"].numpy() / 255
        assert found.shape == (21, *image.shape[1:])
        np.testing.assert_allclose(found.sum(axis=0), 1, atol=1e-5)
        inside = found[0] < 1e-6
        assert 0.4 < inside.mean() < 1
        for number, channel in ((5, 0), (20, 1), (1, 2)):
            difference = np.abs(found[number] - image[channel])[inside]
            assert difference.max() < 0.06 and difference.mean() < 0.01
        assert len(np.unique(found[5][inside])) > 200


@pytest.mark.parametrize(
    "entry, error, message",
    [
        ("coarse_test", ValueError, "entries name=folder"),
        ("=x", ValueError, "entries name=folder"),
        ("nothing={folder}", ValueError, "not registered"),
        ("coarse_test={folder}/no", FileNotFoundError, "no such folder"),
    ],
)
def test_wrong_entries(folder, entry, error, message):
    with pytest.raises(error, match=message):
        register_coarse_dirs([entry.format(folder=folder)])


def test_a_missing_file_is_named(folder):
    register_coarse_dirs([f"coarse_test={folder}"])
    (folder / "b.npz").unlink()
    with pytest.raises(FileNotFoundError, match="no b.npz for"):
        DatasetCatalog.get("coarse_test")
