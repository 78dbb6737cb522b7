"""Patches of a picture: where they lie, and that all maps of a patch agree."""

import numpy as np
import pytest
import torch
from PIL import Image

from rpe_d2.data import PatchMapper
from rpe_d2.data.build import build_train_mapper
from tests.helpers.configs import small_cfg_with
from tests.reference.patches import bilinear, nearest

HEIGHT, WIDTH = 60, 80
INPUT = """
INPUT:
  FORMAT: RGB
  SCALE: 1.0
  RANDOM_FLIP: none
  ROTATION: 15.0
  SCALE_JITTER: [0.9, 1.1]
  CROP: {ENABLED: True, TYPE: absolute, SIZE: [24, 32]}
"""


@pytest.fixture
def record(tmp_path):
    """A picture with a label map, and with predictions that encode the position of each pixel."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    image = np.dstack([127 + 120 * np.sin(x / a + y / b) for a, b in ((9, 7), (5, 11), (12, 6))])
    Image.fromarray(image.astype(np.uint8)).save(tmp_path / "a.png")
    labels = (x // 13 + 2 * (y // 11)) % 5
    labels[:, 70:73] = 255
    Image.fromarray(labels.astype(np.uint8)).save(tmp_path / "a_labels.png")
    maps = np.stack([255 - x - y, x, y]).astype(np.uint8)
    np.savez(tmp_path / "a.npz", probabilities=maps)
    return {
        "file_name": str(tmp_path / "a.png"),
        "sem_seg_file_name": str(tmp_path / "a_labels.png"),
        "coarse_file_name": str(tmp_path / "a.npz"),
        "height": HEIGHT,
        "width": WIDTH,
    }


def read(record):
    image = np.array(Image.open(record["file_name"])).astype(float)
    return image, np.array(Image.open(record["sem_seg_file_name"]))


def test_the_maps_of_a_patch_are_the_same_part_of_the_picture(record):
    np.random.seed(0)
    image, labels = read(record)
    mapped = build_train_mapper("PatchMapper", small_cfg_with(INPUT))(record)
    assert not {"image", "sem_seg", "coarse_sem_seg"} & set(mapped)
    assert len(mapped["patches"]) == 10
    angles, scales = [], []
    for patch in mapped["patches"]:
        assert patch["image"].shape == (3, 24, 32) and patch["image"].dtype == torch.uint8
        assert patch["sem_seg"].shape == (24, 32) and patch["sem_seg"].dtype == torch.int64
        maps = patch["coarse_sem_seg"].double().numpy()
        np.testing.assert_allclose(maps.sum(axis=0), 1, atol=1e-5)
        # The position of every pixel, and the similarity that it follows where it is inside.
        x, y = 255 * maps[1], 255 * maps[2]
        inside = (x > 0.1) & (x < WIDTH - 1.1) & (y > 0.1) & (y < HEIGHT - 1.1)
        row, column = np.nonzero(inside)
        design = np.column_stack([column, row, np.ones(len(row))])
        (a, c), (b, d), offset = np.linalg.lstsq(
            design, np.column_stack([x[inside], y[inside]]), rcond=None
        )[0]
        assert a == pytest.approx(d, abs=0.01) and b == pytest.approx(-c, abs=0.01)
        angles.append(np.degrees(np.arctan2(c, a)))
        scales.append(1 / np.hypot(a, c))
        grid_y, grid_x = np.mgrid[:24, :32]
        x, y = a * grid_x + b * grid_y + offset[0], c * grid_x + d * grid_y + offset[1]
        # Positions that are so close to the middle between two pixels that rounding decides.
        sure = np.minimum(abs((x % 1) - 0.5), abs((y % 1) - 0.5)) > 0.1
        expected = nearest(labels, x, y, 255)
        np.testing.assert_array_equal(patch["sem_seg"].numpy()[sure], expected[sure])
        for channel in range(3):
            expected = bilinear(image[..., channel], x, y)
            np.testing.assert_allclose(patch["image"][channel].numpy(), expected, atol=3)
    assert max(np.abs(angles)) <= 15.1 and np.ptp(angles) > 5
    assert 0.895 < min(scales) and max(scales) < 1.105 and np.ptp(scales) > 0.05


def test_without_rotation_a_patch_lies_inside(record):
    still = "INPUT: {ROTATION: 0.0, SCALE_JITTER: []}"
    mapper = build_train_mapper("PatchMapper", small_cfg_with(INPUT, still), num_patches=40)
    image, labels = read(record)
    corners = set()
    for patch in mapper(record)["patches"]:
        maps = 255 * patch["coarse_sem_seg"].numpy()
        x, y = maps[1, 0, 0], maps[2, 0, 0]
        assert -0.51 <= x <= WIDTH - 31.49 and -0.51 <= y <= HEIGHT - 23.49
        corners.add((round(float(x)), round(float(y))))
    assert len(corners) > 30


def test_patches_have_two_classes_where_the_picture_has(record, tmp_path):
    np.random.seed(0)
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[:8, :8] = 3
    labels[30:] = 255
    Image.fromarray(labels).save(tmp_path / "corner.png")
    corner = {**record, "sem_seg_file_name": str(tmp_path / "corner.png")}
    mapper = build_train_mapper("PatchMapper", small_cfg_with(INPUT), max_tries=1000)
    for patch in mapper(corner)["patches"]:
        assert set(patch["sem_seg"].unique().tolist()) - {255} == {0, 3}


def test_tries_are_bounded_where_the_picture_has_one_class(record, tmp_path):
    Image.fromarray(np.full((HEIGHT, WIDTH), 2, np.uint8)).save(tmp_path / "one.png")
    tries = []

    class Counting(PatchMapper):
        def _placement(self, shape):
            tries.append(shape)
            return super()._placement(shape)

    mapper = Counting(small_cfg_with(INPUT), is_train=True, num_patches=3, max_tries=4)
    patches = mapper({**record, "sem_seg_file_name": str(tmp_path / "one.png")})["patches"]
    assert len(patches) == 3 and len(tries) == 12
    assert all(set(p["sem_seg"].unique().tolist()) <= {2, 255} for p in patches)


def test_pictures_may_be_smaller_than_a_patch_and_have_no_predictions(record):
    large = "INPUT: {CROP: {SIZE: [100, 90]}}"
    del record["coarse_file_name"]
    (patch, *_) = build_train_mapper("PatchMapper", small_cfg_with(INPUT, large))(record)["patches"]
    assert patch["image"].shape == (3, 100, 90) and "coarse_sem_seg" not in patch
    unknown = (patch["sem_seg"] == 255).float().mean()
    assert 1 - 1.25 * HEIGHT * WIDTH / 9000 < unknown < 0.75


def test_evaluation_sees_whole_pictures(record):
    mapped = PatchMapper(small_cfg_with(INPUT), is_train=False)(record)
    assert mapped["image"].shape == (3, HEIGHT, WIDTH) and "patches" not in mapped


def test_wrong_settings_are_reported_in_one_line(record):
    relative = "INPUT: {CROP: {TYPE: relative}}"
    with pytest.raises(ValueError, match="INPUT.CROP.TYPE is 'relative'; allowed with PatchM"):
        PatchMapper(small_cfg_with(INPUT, relative), is_train=True)
    with pytest.raises(ValueError, match="num_patches is 0; allowed: 1 or more"):
        PatchMapper(small_cfg_with(INPUT), is_train=True, num_patches=0)
    del record["sem_seg_file_name"]
    with pytest.raises(ValueError, match="a.png has no label map; allowed with PatchMapper"):
        PatchMapper(small_cfg_with(INPUT), is_train=True)(record)
