"""``rpe_d2.refine``: what it accepts, and what it never does, whatever the network says."""

import numpy as np
import pytest
import torch
from skimage.measure import label as connected_regions

from rpe_d2.refinement import proposals
from rpe_d2.refinement.label_geometry import boundary_distance
from rpe_d2.refinement.network import build_refiner_network
from rpe_d2.refinement.refine import LabelRefiner
from tests.refinement.conftest import image_of, scene


@pytest.fixture(scope="module")
def wild():
    """A refiner with random weights that changes as much as it is allowed to."""
    torch.manual_seed(1)
    network = build_refiner_network()
    torch.nn.init.normal_(network.output[1].weight, std=2.0)
    torch.nn.init.constant_(network.output[1].bias, 2.0)
    return LabelRefiner(network)


def parts(labels: np.ndarray) -> dict:
    """Returns the number of connected parts of each object."""
    regions = connected_regions(labels, background=-1, connectivity=2)
    _, first = np.unique(regions, return_index=True)
    values, counts = np.unique(labels.ravel()[first], return_counts=True)
    return {int(v): int(n) for v, n in zip(values, counts) if v != 0}


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "uint32", "int64"])
def test_label_maps_keep_their_type_and_their_labels(wild, dtype):
    labels = (scene(0) * 12).astype(dtype)
    before = labels.copy()
    image = image_of(scene(0))
    refined, confidence, report = wild.refine(image, labels)
    assert (labels == before).all()
    assert refined.dtype == labels.dtype and refined.shape == labels.shape
    assert set(np.unique(refined)) == set(np.unique(labels))
    assert confidence.dtype == np.float32 and confidence.shape == labels.shape
    assert 0 <= confidence.min() and confidence.max() <= 1 + 1e-5
    assert report["pixels"] == labels.size
    assert report["changed_pixels"] == (refined != labels).sum() > 50


@pytest.mark.parametrize("max_shift", [1, 3, 8.5])
def test_no_boundary_moves_farther_than_allowed(wild, labels, max_shift):
    refined = wild.refine(image_of(labels), labels, max_shift=max_shift, may_split=True).result
    changed = refined != labels
    assert changed.any()
    assert boundary_distance(labels)[changed].max() <= max_shift
    for label in np.unique(refined[changed]):
        from scipy.ndimage import distance_transform_edt

        far = distance_transform_edt(labels != label)
        assert far[changed & (refined == label)].max() <= max_shift * 1.02


@pytest.mark.parametrize("seed", range(6))
def test_objects_neither_vanish_nor_split(wild, seed):
    labels = scene(seed, count=25)
    refined = wild.refine(image_of(labels), labels).result
    before, after = parts(labels), parts(refined)
    assert set(before) == set(after)
    assert all(after[label] <= before[label] for label in before)
    harmed = parts(wild.refine(image_of(labels), labels, may_split=True).result)
    assert any(harmed.get(label, 0) != before[label] for label in before)  # the guard works


def test_masks_that_do_not_overlap_still_do_not(wild, labels):
    masks = labels == np.arange(1, labels.max() + 1)[:, None, None]
    refined, _, report = wild.refine(image_of(labels), masks)
    assert refined.dtype == bool and refined.shape == masks.shape
    assert refined.sum(axis=0).max() <= 1
    assert report["changed_pixels"] > 0
    as_labels = wild.refine(image_of(labels), labels).result
    assert (refined == (as_labels == np.arange(1, labels.max() + 1)[:, None, None])).all()


def test_masks_that_overlap_are_refined_one_by_one(wild):
    masks = np.zeros((3, 64, 64), bool)
    masks[0, 10:40, 10:40] = masks[1, 12:42, 12:42] = True
    image = image_of(masks[0].astype(int))
    refined = wild.refine(image, masks).result
    for mask, found in zip(masks, refined):
        alone = wild.refine(image, mask)
        assert alone.result.shape == mask.shape and (alone.result == found).all()
    assert not refined[2].any()


def test_no_masks():
    refiner = LabelRefiner(build_refiner_network())
    refined = refiner.refine(np.zeros((8, 9, 3), np.uint8), np.zeros((0, 8, 9), bool))
    assert refined.result.shape == (0, 8, 9) and (refined.confidence == 1).all()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_probabilities_stay_probabilities(wild, dtype):
    labels = scene(0, count=3)
    maps = np.where(labels == np.arange(4)[:, None, None], 0.7, 0.1).astype(dtype)
    refined, confidence, report = wild.refine(image_of(labels), maps, max_shift=3)
    assert refined.dtype == maps.dtype and refined.shape == maps.shape
    np.testing.assert_allclose(refined.sum(axis=0, dtype=float), 1, atol=5e-3)
    changed = refined.argmax(axis=0) != labels
    assert report["changed_pixels"] == changed.sum() > 0
    assert boundary_distance(labels)[changed].max() <= 3
    assert (confidence == refined.max(axis=0).astype(np.float32)).all()


def test_classes_that_do_not_occur_keep_their_probability(wild):
    labels = scene(0, count=1)
    maps = np.where(labels == np.arange(5)[:, None, None], 0.985, 0.005)
    maps /= maps.sum(axis=0)
    refined = wild.refine(image_of(labels), maps).result
    np.testing.assert_allclose(refined[2:], maps[2:], atol=1e-6)


@pytest.mark.parametrize(
    "image",
    [
        lambda rgb: rgb[..., 0],
        lambda rgb: rgb[..., :1],
        lambda rgb: np.dstack([rgb, np.full(rgb.shape[:2], 9, np.uint8)]),
        lambda rgb: rgb.astype(np.uint16) * 257,
        lambda rgb: rgb / 255.0,
        lambda rgb: rgb.astype(np.int32) - 100,
    ],
)
def test_images_of_any_number_type(wild, image):
    labels = scene(1)
    refined = wild.refine(image(image_of(labels)), labels)
    assert refined.report["changed_pixels"] > 0


def test_depth_and_scale_of_intensities_do_not_matter(wild):
    labels = scene(1)
    rgb = image_of(labels)
    expected = wild.refine(rgb, labels).result
    for other in (rgb.astype(np.uint16) * 100, rgb.astype(np.float32) / 255):
        assert (wild.refine(other, labels).result == expected).mean() > 0.99


def test_a_map_without_boundaries_does_not_change(wild):
    for labels in (np.zeros((20, 30), int), np.full((1, 1), 7)):
        refined = wild.refine(np.zeros((*labels.shape, 3), np.uint8), labels)
        assert (refined.result == labels).all() and (refined.confidence == 1).all()


def test_large_images_are_refined_in_windows(wild, monkeypatch):
    labels = scene(0, size=160, count=12)
    image = image_of(labels)
    seen = []
    run = wild._run
    monkeypatch.setattr(wild, "_run", lambda *args: seen.append(args[0].shape) or run(*args))
    monkeypatch.setattr(proposals, "CORE", 64)
    refined = wild.refine(image, labels).result
    assert len(seen) > 4 and max(max(shape[:2]) for shape in seen) <= 64 + 2 * proposals.MARGIN
    changed = refined != labels
    assert changed.any() and boundary_distance(labels)[changed].max() <= 8
    before, after = parts(labels), parts(refined)
    assert before.keys() == after.keys() and all(after[k] <= before[k] for k in before)


def test_only_what_is_near_a_boundary_is_computed(wild, monkeypatch):
    labels = np.zeros((700, 900), np.uint8)
    labels[620:650, 100:140] = 1
    seen = []
    run = wild._run
    monkeypatch.setattr(wild, "_run", lambda *args: seen.append(args[0].shape) or run(*args))
    wild.refine(np.zeros((700, 900, 3), np.uint8), labels)
    assert len(seen) == 1 and max(seen[0][:2]) <= 40 + 2 * (8 + 1 + proposals.MARGIN)


@pytest.mark.parametrize(
    "image, labels, message",
    [
        ((8, 8, 3), np.zeros((8, 9), int), "8 x 8 pixels and the labels 8 x 9"),
        ((8, 8, 2), np.zeros((8, 8), int), "(8, 8, 2)"),
        ((8, 8, 3), np.zeros((8, 8)), "label map (H, W) of integers"),
        ((8, 8, 3), np.zeros((2, 8, 8), int), "masks (N, H, W) of bool"),
        ((8, 8, 3), np.full((2, 8, 8), 0.4), "sum 1"),
        ((8, 8, 3), np.full((2, 8, 8), np.nan), "sum 1"),
        ((8, 8, 3), np.stack([np.full((8, 8), 1.5), np.full((8, 8), -0.5)]), "0 or more"),
    ],
)
def test_wrong_input_is_named_in_one_line(wild, image, labels, message):
    with pytest.raises(ValueError) as error:
        wild.refine(np.zeros(image, np.uint8), labels)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("max_shift", [0, -1, float("nan")])
def test_wrong_shift(wild, max_shift):
    with pytest.raises(ValueError, match="max_shift is"):
        wild.refine(np.zeros((4, 4), np.uint8), np.zeros((4, 4), int), max_shift=max_shift)


def test_wrong_weights_are_named_in_one_line(tmp_path):
    from safetensors.torch import save_file

    file = tmp_path / "other.safetensors"
    for content, message in (
        (None, "No such file"),
        ({"a": torch.zeros(1)}, "has no "),
        ({"encoder.conv_stem.weight": torch.zeros(1)}, "has shape (1,)"),
    ):
        if content is not None:
            save_file(content, file)
        with pytest.raises(ValueError, match=message.replace("(", r"\(").replace(")", r"\)")) as e:
            LabelRefiner.load(file)
        assert str(file) in str(e.value) and "\n" not in str(e.value)
    file.write_bytes(b"no weights")
    with pytest.raises(ValueError, match="allowed: a .safetensors or .pth file"):
        LabelRefiner.load(file)


def test_a_checkpoint_has_the_same_weights(wild, tmp_path):
    state = {f"network.{name}": value for name, value in wild.network.state_dict().items()}
    torch.save({"model": state, "iteration": 3}, tmp_path / "model.pth")
    labels = scene(0)
    refined = LabelRefiner.load(tmp_path / "model.pth", "cpu").refine(image_of(labels), labels)
    assert (refined.result == wild.refine(image_of(labels), labels).result).all()
    torch.save([1], tmp_path / "model.pth")
    with pytest.raises(ValueError, match="model.pth"):
        LabelRefiner.load(tmp_path / "model.pth")
