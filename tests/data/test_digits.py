"""Rendered images of overlapping digits, and those of the authors."""

import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from scipy.io import savemat

from rpe_d2.data import DIGITS_SPLITS, register_digits, register_digits_authors, render_digits
from rpe_d2.data.datasets.digits import _COLORS, _GRID

NAMES = ("digits_train", "digits_val", "digits_authors")


@pytest.fixture(autouse=True)
def no_registered_digits():
    def remove():
        for name in NAMES:
            if name in DatasetCatalog.list():
                DatasetCatalog.remove(name)
                MetadataCatalog.remove(name)

    remove()
    yield
    remove()


def write_digits(path, count=40):
    """Writes full stamps, each with its own brightness, of which the class is the tens digit."""
    images = np.zeros((count, 28, 28), np.uint8)
    images[:, 4:-4, 4:-4] = 100 + np.arange(count)[:, None, None]
    np.savez(path, images=images, labels=np.arange(count) // 10)
    return str(path)


@pytest.fixture
def npz(tmp_path):
    return write_digits(tmp_path / "digits.npz")


def masks_of(record):
    masks = [mask_util.decode(a["segmentation"]) for a in record["annotations"]]
    return np.array(masks, bool).reshape(-1, 64, 64)


def test_images_agree_with_their_annotations(npz):
    register_digits(npz)
    register_digits(npz)  # a second time, as a second run of a process does
    register_digits("")  # the registered file stays
    records = DatasetCatalog.get("digits_val")
    assert len(records) == DIGITS_SPLITS["val"]
    assert json.loads(json.dumps(records)) == records
    counts = [len(record["annotations"]) for record in records]
    assert min(counts) == 0 and max(counts) == 9
    for record in records[:20]:
        image = read_image(record["file_name"], "RGB").astype(float)
        masks = masks_of(record)
        assert masks.sum(axis=0).max(initial=0) <= 1
        assert np.array_equal(masks.any(axis=0) if len(masks) else image.any(2), image.any(axis=2))
        for mask, annotation in zip(masks, record["annotations"]):
            # One brightness per digit, times the color of its class.
            (color,) = np.unique(image[mask], axis=0)
            brightness = color.max()
            assert np.abs(color - brightness * _COLORS[annotation["category_id"]]).max() <= 1
            assert (brightness - 100) // 10 == annotation["category_id"]
            assert (brightness - 100) % 10 == 0  # every tenth digit is for validation
    assert MetadataCatalog.get("digits_train").thing_classes == list("0123456789")


def test_later_digits_are_in_front_and_lie_on_the_grid():
    stamps = np.full((1, 28, 28), 255, np.uint8)
    for seed in range(30):
        image, owner, classes = render_digits(stamps, np.array([3]), np.random.default_rng(seed))
        assert set(classes) <= {3}
        for number in range(len(classes)):
            rows, columns = np.nonzero(owner == number)
            assert any(start <= rows.min() and rows.max() < start + 28 for start in _GRID)
            assert any(start <= columns.min() and columns.max() < start + 28 for start in _GRID)
        if len(classes):
            assert (owner == len(classes) - 1).sum() == 28 * 28  # nothing is in front of the last


def test_digits_of_scikit_learn_serve_without_a_file():
    pytest.importorskip("sklearn")
    register_digits()
    record = next(r for r in DatasetCatalog.get("digits_val") if r["annotations"])
    image = read_image(record["file_name"], "RGB")
    assert image.shape == (64, 64, 3)
    areas = masks_of(record).sum(axis=(1, 2))
    assert 20 < np.median(areas) < 300


def test_what_is_wrong_with_a_file_is_one_line(tmp_path, npz):
    with pytest.raises(FileNotFoundError, match="^DATASETS.DIGITS is /.*none.npz; there is no"):
        register_digits(str(tmp_path / "none.npz"))
    (tmp_path / "text.npz").write_text("digits")
    with pytest.raises(ValueError, match="text.npz: cannot be read as digits"):
        register_digits(str(tmp_path / "text.npz"))
    np.savez(tmp_path / "float.npz", images=np.zeros((3, 28, 28)), labels=np.zeros(3, int))
    with pytest.raises(ValueError, match="float.npz: images is float64 .*; allowed: uint8"):
        register_digits(str(tmp_path / "float.npz"))
    np.savez(tmp_path / "ten.npz", images=np.zeros((3, 28, 28), np.uint8), labels=[1, 2, 10])
    with pytest.raises(ValueError, match="ten.npz: labels are not integers in 0-9"):
        register_digits(str(tmp_path / "ten.npz"))
    register_digits(npz)
    with pytest.raises(ValueError, match="digits_train is registered from .*digits.npz"):
        register_digits(write_digits(tmp_path / "other.npz"))
    for name in (
        "digits://",
        "digits://sklearn/train/1.png.png",
        "digits://sklearn/test/000000.png",
    ):
        with pytest.raises(FileNotFoundError):
            read_image(name)


def test_the_authors_images(tmp_path):
    images = np.zeros((64, 64, 3, 2))
    instances, classes = (np.zeros((64, 64, 1, 2), np.uint8) for _ in range(2))
    images[5:9, 6:8, :, 1] = 0.5, 0.25, 1
    instances[5:9, 6:8, 0, 1], classes[5:9, 6:8, 0, 1] = 1, 10
    path = tmp_path / "authors.mat"
    savemat(path, {"imgMat": images, "instanceMaskMat": instances, "semanticMaskMat": classes})
    register_digits_authors("")
    assert "digits_authors" not in DatasetCatalog.list()
    register_digits_authors(str(path))
    empty, record = DatasetCatalog.get("digits_authors")
    assert empty["annotations"] == []
    (annotation,) = record["annotations"]
    assert annotation["category_id"] == 0
    assert annotation["bbox"] == [6, 5, 2, 4]
    assert read_image(record["file_name"], "RGB")[6, 7].tolist() == [128, 64, 255]
    savemat(tmp_path / "flat.mat", {"imgMat": images, "instanceMaskMat": 1, "semanticMaskMat": 1})
    with pytest.raises(ValueError, match="registered from"):
        register_digits_authors(str(tmp_path / "flat.mat"))


def test_the_authors_real_images(real_data):
    register_digits_authors(str(real_data("rpe_golden") / "main001.mat"))
    records = DatasetCatalog.get("digits_authors")
    counts = [len(record["annotations"]) for record in records]
    assert (len(counts), sum(counts), counts.count(0)) == (30, 110, 7)
    for record in records:
        image = read_image(record["file_name"], "RGB")
        assert np.array_equal(masks_of(record).sum(axis=0) == 1, image.any(axis=2))
        for mask, annotation in zip(masks_of(record), record["annotations"]):
            brightest = image[mask][image[mask].sum(axis=1).argmax()] / 255
            color = _COLORS[annotation["category_id"]]
            assert np.allclose(brightest / brightest.max(), color, atol=0.01)
