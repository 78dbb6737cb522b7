"""Pairs of frames from stills, against a renderer that goes pixel by pixel."""

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from rpe_d2.data import FramePairMapper, make_frame_pair, register_frame_pairs
from rpe_d2.data.frame_pairs import Layer, change_light, occluded, render
from rpe_d2.engine import Trainer
from rpe_d2.engine.datasets import register_datasets
from rpe_d2.utils.frame_properties import join_lab
from tests.helpers.keys import new_cfg
from tests.reference import frame_pairs as reference


def scene(height=40, width=50):
    """A smooth picture, and a label map with a rectangle and a strip."""
    random = np.random.default_rng(0)
    picture = random.uniform(0, 255, (height, width, 3)).astype(np.float32)
    picture = cv2.GaussianBlur(picture, (0, 0), 3)
    picture = 255 * (picture - picture.min()) / np.ptp(picture)
    labels = np.zeros((height, width), np.int64)
    labels[8:26, 12:30] = 3
    labels[30:, :] = 5
    labels[:2, :2] = 255
    return picture.round().astype(np.uint8), labels


def layers_and_places():
    """Three layers, and places in steps of OpenCV's positions, 1/32 of a pixel, also outside."""
    random = np.random.default_rng(1)
    masks = [np.ones((12, 14)), *(random.uniform(0, 1, (12, 14)) for _ in range(2))]
    layers = [
        Layer(random.uniform(0, 255, (12, 14, 3)).astype(np.float32), mask.astype(np.float32))
        for mask in masks
    ]
    places = [
        (random.integers(-5 * 32, 20 * 32, (9, 11, 2)) / 32).astype(np.float32) for _ in layers
    ]
    return layers, places


def test_frames_are_those_of_the_slow_reference():
    layers, places = layers_and_places()
    frame = render(layers, places)
    picture, shares, owner = reference.render(layers, places)
    np.testing.assert_allclose(frame.picture, picture, atol=1e-2)
    np.testing.assert_allclose(frame.shares, shares, atol=1e-4)
    np.testing.assert_allclose(frame.shares.sum(axis=0), 1, atol=1e-5)
    assert np.array_equal(frame.owner, owner)
    assert set(np.unique(owner)) == {0, 1, 2}


def test_hidden_pixels_are_those_of_the_slow_reference():
    layers, places = layers_and_places()
    x, y = np.meshgrid(np.arange(11), np.arange(9))
    grid = np.stack([x + 2, y + 1], axis=2).astype(np.float32)
    target, key = render(layers, places), render(layers, [grid] * 3)
    expected = reference.occluded(target.owner, places, key.owner, np.array([2, 1]))
    found = occluded(target, key, (2, 1))
    # Python and NumPy round halves to even numbers.
    assert np.array_equal(found, expected)
    assert found.any() and not found.all()


def test_nothing_is_hidden_if_nothing_moves():
    picture, labels = scene()
    pair = make_frame_pair(picture, labels, (20, 24), np.random.default_rng(0))
    assert not occluded(pair.key, pair.key, pair.key.place[0, 0]).any()


@pytest.mark.parametrize("with_labels", [True, False])
def test_properties_move_with_the_pictures(with_labels):
    """What a pixel of the target shows is what the key frame shows at the place it came from."""
    picture, labels = scene()
    compared = 0
    for seed in range(8):
        random = np.random.default_rng(seed)
        pair = make_frame_pair(picture, labels if with_labels else None, (24, 28), random)
        assert pair.key.picture.shape == (24, 28, 3) and pair.occluded.shape == (24, 28)
        place = pair.target.place - pair.key.place[0, 0]
        # Pixels inside one layer in both frames, away from what covers others in part.
        alone = pair.target.shares.max(axis=0) > 0.999
        for i, j in zip(*np.nonzero(~pair.occluded & alone)):
            x, y = place[i, j]
            row, column = int(y), int(x)
            if not (0 < row < 22 and 0 < column < 26):
                continue
            around = pair.key.shares[pair.target.owner[i, j], row : row + 2, column : column + 2]
            if around.min() < 0.999:
                continue
            expected = reference.sample(pair.key.picture, x, y)
            # OpenCV rounds positions to 1/32 of a pixel.
            np.testing.assert_allclose(pair.target.picture[i, j], expected, atol=2.5)
            compared += 1
    assert compared > 500


def test_the_key_frame_is_the_still():
    picture, labels = scene()
    pair = make_frame_pair(picture, labels, (20, 30), np.random.default_rng(3), centered=True)
    difference = np.abs(pair.key.picture - picture[10:30, 10:40])
    # The background beside a layer has pixels that mix both, which are replaced.
    boundary = (pair.key.shares.max(axis=0) < 0.999).astype(np.uint8)
    inside = cv2.dilate(boundary, np.ones((7, 7), np.uint8)) == 0
    assert difference[inside].max() < 1e-2 and inside.mean() > 0.2
    assert len(pair.key.shares) >= 2


def test_pairs_repeat_with_the_generator_and_differ_otherwise():
    picture, labels = scene()
    pairs = [
        make_frame_pair(picture, labels, (20, 24), np.random.default_rng(seed)).target.picture
        for seed in (1, 1, 2)
    ]
    assert np.array_equal(pairs[0], pairs[1]) and not np.array_equal(pairs[0], pairs[2])


@pytest.mark.parametrize("size", [(1, 1), (2, 7), (64, 80)])
def test_pictures_smaller_than_the_frames_are_reflected(size):
    picture, labels = scene(*((6, 5) if size == (64, 80) else (9, 9)))
    pair = make_frame_pair(picture, labels, size, np.random.default_rng(0))
    assert pair.target.picture.shape == (*size, 3) and np.isfinite(pair.target.picture).all()


def test_light_changes_the_second_picture_alone_and_stays_in_range():
    picture, _ = scene()
    shown = change_light([picture, picture], np.random.default_rng(0))
    assert np.abs(shown[0] - picture).max() < 15  # noise
    assert abs(shown[1].mean() - picture.mean()) > 1
    bright = change_light([picture], np.random.default_rng(0), gain=3.0)[0]
    assert bright.max() == 255 and bright.min() >= 0 and (bright == 255).mean() > 0.3


@pytest.fixture
def folders(tmp_path):
    picture, labels = scene()
    for folder in ("images", "labels"):
        (tmp_path / folder / "sub").mkdir(parents=True)
    for name in ("a", "sub/b"):
        cv2.imwrite(str(tmp_path / "images" / f"{name}.png"), picture[:, :, ::-1])
    cv2.imwrite(str(tmp_path / "labels" / "a.png"), labels.astype(np.uint8))
    before = set(DatasetCatalog.list())
    yield tmp_path
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def configuration(folders, *overrides):
    cfg = new_cfg()
    cfg.MODEL.META_ARCHITECTURE = "TemporalPropagationNet"
    cfg.DATASETS.FRAME_PAIRS = [f"pairs={folders}/images:{folders}/labels"]
    cfg.INPUT.SCALE = 1.0
    cfg.merge_from_list(list(overrides))
    register_datasets(cfg)
    return cfg


def test_pictures_are_registered_with_their_label_maps(folders):
    cfg = configuration(folders)
    register_datasets(cfg)  # a second time changes nothing
    items = DatasetCatalog.get("pairs")
    assert [item["image_id"] for item in items] == ["a", "sub/b"]
    assert items[0]["sem_seg_file_name"] == str(folders / "labels" / "a.png")
    assert "sem_seg_file_name" not in items[1]
    items[0].clear()
    assert DatasetCatalog.get("pairs")[0]
    assert MetadataCatalog.get("pairs").evaluator_type == "frame_pairs"
    register_frame_pairs([f"plain={folders}/images"])
    assert all("sem_seg_file_name" not in item for item in DatasetCatalog.get("plain"))


@pytest.mark.parametrize(
    "entry, error, message",
    [
        ("pairs", ValueError, "malformed entry"),
        ("=images", ValueError, "malformed entry"),
        ("pairs=a:b:c", ValueError, "allowed: 'name=images/' or 'name=images/:labels/'"),
        ("pairs={folder}/no", FileNotFoundError, "there is no folder"),
        ("pairs={folder}/images:{folder}/no", FileNotFoundError, "there is no folder"),
        ("pairs={folder}/labels/sub", ValueError, "has no images"),
        ("pairs={folder}/images:{folder}/labels/sub", ValueError, "no picture has a label map"),
        ("shapes_train={folder}/images", ValueError, "taken by another dataset"),
    ],
)
def test_wrong_entries_are_one_line(folders, entry, error, message):
    with pytest.raises(error, match=f"DATASETS.FRAME_PAIRS.*{message}") as raised:
        register_frame_pairs([entry.format(folder=folders)])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind, channels, guidance", [("ab", 2, 1), ("rgb", 3, 3), ("masks", 0, 3)])
def test_the_mapper_makes_pairs_of_each_kind(folders, kind, channels, guidance):
    cfg = configuration(
        folders, "MODEL.TPN.PROPERTY", kind, "INPUT.CROP.ENABLED", "True",
        "INPUT.CROP.TYPE", "absolute", "INPUT.CROP.SIZE", "[24, 32]",
    )  # fmt: skip
    mapper = Trainer.build_train_mapper(cfg)
    assert type(mapper) is FramePairMapper
    for record in DatasetCatalog.get("pairs"):
        for _ in range(6):
            item = mapper(record)
            assert "image" not in item and "sem_seg" not in item
            count = channels or len(item["key_property"])
            assert count >= 1 and item["property_kind"] == kind
            for role in ("key", "target"):
                prop, guide = item[f"{role}_property"], item[f"{role}_guidance"]
                assert prop.shape == (count, 24, 32) and guide.shape == (guidance, 24, 32)
                assert prop.dtype == guide.dtype == torch.float32
                assert 0 <= guide.min() and guide.max() <= 1.001
                assert prop.abs().max() <= 1.001
            assert item["occluded"].shape == (24, 32) and item["occluded"].dtype == torch.bool
            assert (item["height"], item["width"]) == (24, 32)


def test_evaluation_has_the_same_pairs_every_time(folders):
    cfg = configuration(folders, "DATALOADER.NUM_WORKERS", 0)
    batches = [list(Trainer.build_test_loader(cfg, "pairs")) for _ in range(2)]
    assert len(batches[0]) == 2
    for (one,), (other,) in zip(*batches):
        for name in ("key_property", "target_property", "key_guidance", "target_guidance"):
            assert torch.equal(one[name], other[name])
        assert one["key_property"].shape == (2, 40, 50)  # the whole picture


def test_colors_and_lightness_are_the_picture(folders):
    cfg = configuration(folders)
    item = FramePairMapper(cfg, is_train=False)(DatasetCatalog.get("pairs")[1])
    picture = join_lab(item["key_guidance"].numpy(), item["key_property"].numpy())
    original, _ = scene()
    # The region that moves shows the picture upside down, and the guidance has noise.
    shows_still = np.abs(picture.astype(int) - original).max(axis=2) < 16
    assert shows_still.mean() > 0.6


def test_a_crop_has_a_size_in_pixels(folders):
    cfg = configuration(folders, "INPUT.CROP.ENABLED", "True")
    with pytest.raises(ValueError, match="INPUT.CROP.TYPE is relative_range; allowed with FrameP"):
        Trainer.build_train_mapper(cfg)


def test_stanfords_pictures_give_pairs(real_data):
    root = real_data("stanford_background")
    register_frame_pairs([f"stanford_pairs={root}/images/test:{root}/labels/test"])
    try:
        records = DatasetCatalog.get("stanford_pairs")
        assert len(records) == 143 and all("sem_seg_file_name" in r for r in records)
        cfg = new_cfg()
        cfg.INPUT.SCALE = 1.0
        mapper = FramePairMapper(cfg, is_train=False)
        shares = [mapper(record)["occluded"].float().mean() for record in records[:3]]
        assert max(shares) > 0.02 and min(shares) < 0.5
    finally:
        DatasetCatalog.remove("stanford_pairs")
        MetadataCatalog.remove("stanford_pairs")
