"""Region proposals as inputs: their files, and masks that follow the augmentations."""

import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.layers.mask_ops import paste_masks_in_image

from rpe_d2.data import PixelLabelMapper, load_shapes, register_mask_proposals
from rpe_d2.data.augmentation import QuarterTurnTransform
from rpe_d2.data.datasets.mask_proposals import read_regions
from rpe_d2.data.mask_proposals import RegionSettings, transform_regions
from rpe_d2.utils.mat_regions import Region
from rpe_d2.utils.readable import UnreadableImage
from tests.helpers.configs import small_cfg_with

SIZE = (60, 90)


def encode(mask: np.ndarray) -> dict:
    rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


@pytest.fixture(scope="module")
def masks() -> np.ndarray:
    """Disks and half disks (8, H, W)."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    rng = np.random.default_rng(0)
    masks = []
    for number in range(8):
        y, x, radius = rng.uniform(12, 48), rng.uniform(12, 78), rng.uniform(8, 20)
        mask = (rows - y) ** 2 + (columns - x) ** 2 < radius**2
        masks.append(mask & (columns > x) if number % 2 else mask)
    return np.stack(masks)


@pytest.fixture(scope="module")
def regions(masks) -> list:
    return [Region(encode(mask), 8.0 - number) for number, mask in enumerate(masks)]


TRANSFORMS = {
    "nothing": [],
    "flip": [T.HFlipTransform(SIZE[1])],
    "enlarge": [T.ResizeTransform(*SIZE, 150, 200)],
    "shrink and flip": [T.ResizeTransform(*SIZE, 40, 60), T.HFlipTransform(60)],
    "crop": [T.CropTransform(20, 10, 50, 40)],
    "crop and enlarge": [T.CropTransform(20, 10, 50, 40), T.ResizeTransform(40, 50, 80, 100)],
    "quarter turn": [QuarterTurnTransform(1, *SIZE)],
    "rotation": [T.RotationTransform(*SIZE, 20, expand=False)],
    "pad": [T.PadTransform(5, 7, 11, 13)],
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_masks_equal_those_of_transformed_images(masks, regions, name):
    """Each mask is transformed as a whole image, which is slow and obvious."""
    transforms = T.TransformList([T.NoOpTransform(), *TRANSFORMS[name]])
    expected = [transforms.apply_segmentation(mask.astype(np.uint8)) > 0 for mask in masks]
    kept = [number for number, mask in enumerate(expected) if mask.any()]
    size = expected[0].shape
    found = transform_regions(regions, SIZE, transforms, size, RegionSettings(mask_size=56))
    assert found.image_size == size and found.proposal_masks.dtype == torch.uint8
    assert found.objectness_logits.tolist() == [8 - number for number in kept]
    pasted = paste_masks_in_image(
        found.proposal_masks.float() / 255, found.proposal_boxes.tensor, size
    ).numpy()
    for mask, number in zip(pasted, kept):
        iou = (mask & expected[number]).sum() / (mask | expected[number]).sum()
        assert iou > (0.98 if name in ("nothing", "flip", "pad", "quarter turn") else 0.88), iou


def test_masks_of_one_size_are_coverages():
    mask = np.zeros(SIZE, bool)
    mask[10:20, 30:50] = True
    mask[20:30, 30:40] = True  # an L: three of four quarters of its box
    regions = [Region(encode(mask), 1.0)]
    found = transform_regions(regions, SIZE, T.TransformList([]), SIZE, RegionSettings(mask_size=2))
    assert found.proposal_boxes.tensor.tolist() == [[30, 10, 50, 30]]
    assert found.proposal_masks.tolist() == [[[255, 255], [255, 0]]]


def test_empty_outside_and_small_regions_are_dropped(masks):
    corner = np.zeros(SIZE, bool)
    corner[:4, :4] = True
    nothing = np.zeros(SIZE, bool)
    regions = [Region(encode(m), 3.0 - n) for n, m in enumerate((nothing, corner, masks[0]))]
    crop = T.TransformList([T.CropTransform(5, 5, SIZE[1] - 5, SIZE[0] - 5)])
    inside = transform_regions(regions, SIZE, crop, (55, 85), RegionSettings())
    assert inside.objectness_logits.tolist() == [1]
    small = RegionSettings(min_box_size=5, mask_size=None)
    found = transform_regions(regions, SIZE, T.TransformList([]), SIZE, small)
    assert found.objectness_logits.tolist() == [1] and not found.has("proposal_masks")
    nothing = transform_regions([], SIZE, T.TransformList([]), SIZE, RegionSettings(mask_size=7))
    assert len(nothing) == 0 and nothing.proposal_masks.shape == (0, 7, 7)


def test_transforms_that_are_not_affine_are_refused(regions):
    class Bend(T.NoOpTransform):
        def apply_coords(self, coords):
            return coords + 0.001 * coords[:, :1] * coords[:, 1:]

    with pytest.raises(ValueError, match="cannot follow the augmentations; allowed: affine"):
        transform_regions(regions, SIZE, T.TransformList([Bend()]), SIZE, RegionSettings())


@pytest.fixture
def dataset(tmp_path):
    """A data set "regions_test" of three shapes images, and a file of their own masks."""
    items = load_shapes("val")[:3]
    results = [
        {"image_id": item["image_id"], "segmentation": a["segmentation"], "score": -number / 7}
        for item in items[:2]
        for number, a in enumerate(item["annotations"])
    ]
    path = tmp_path / "regions.json"
    path.write_text(json.dumps(results))
    DatasetCatalog.register("regions_test", lambda: items)
    yield path
    DatasetCatalog.pop("regions_test")
    MetadataCatalog.pop("regions_test", None)


@pytest.mark.parametrize("masks_in_training", [False, True])
def test_the_mapper_adds_proposals(dataset, masks_in_training):
    for _ in range(2):  # a second time changes nothing
        register_mask_proposals("DATASETS.PROPOSAL_MASKS_TRAIN", [f"regions_test={dataset}"])
    items = DatasetCatalog.get("regions_test")
    cfg = small_cfg_with(
        "INPUT: {MIN_SIZE_TRAIN: [96], RANDOM_FLIP: horizontal, QUARTER_TURNS: True}",
        f"MODEL: {{PROPOSAL_GENERATOR: {{MASKS_IN_TRAINING: {masks_in_training}}}}}",
        "MODEL: {RPE: {PROPOSAL_MASK_SIZE: 28}}",
        "DATASETS: {PRECOMPUTED_PROPOSAL_TOPK_TRAIN: 3}",
    )
    mapper = PixelLabelMapper(cfg, is_train=True)
    for _ in range(4):
        item = mapper(items[0])
        proposals, targets = item["proposals"], item["instances"]
        fields = {"proposal_boxes", "objectness_logits"}
        fields |= {"proposal_masks"} if masks_in_training else set()
        assert set(proposals.get_fields()) == fields and len(proposals) <= 3
        # The proposals are the first objects, and follow them through every augmentation.
        boxes = targets.gt_boxes.tensor[: len(proposals)]
        torch.testing.assert_close(proposals.proposal_boxes.tensor, boxes, atol=1e-3, rtol=0)
        if masks_in_training:
            soft = proposals.proposal_masks.float() / 255
            pasted = paste_masks_in_image(soft, boxes, targets.image_size)
            both = targets.gt_masks.tensor[: len(proposals)]
            iou = (pasted & both).sum((1, 2)) / (pasted | both).sum((1, 2))
            assert iou.min() > 0.7
    assert len(mapper(items[2])["proposals"]) == 0  # the file has no region of this image


@pytest.mark.parametrize(
    "content, message",
    [
        ({}, "is not a list"),
        ([{"image_id": 1, "score": 1}], "entry 0 has no image_id or no segmentation"),
        ("[", "is not JSON"),
    ],
)
def test_a_wrong_file_is_reported_in_one_line(dataset, tmp_path, content, message):
    path = tmp_path / "wrong.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=message) as error:
        register_mask_proposals("KEY", [f"regions_test={path}"])
    assert "wrong.json" in str(error.value) and "\n" not in str(error.value)


def test_wrong_entries_and_masks(dataset, tmp_path):
    for entry, message in (
        ("regions_test", "'regions_test'; allowed: entries name=path.json"),
        (f"other={dataset}", "names a data set that is not registered"),
    ):
        with pytest.raises(ValueError, match=message):
            register_mask_proposals("KEY", [entry])
    with pytest.raises(FileNotFoundError, match="KEY: 'regions_test=.*': there is no such file"):
        register_mask_proposals("KEY", [f"regions_test={tmp_path / 'no.json'}"])
    register_mask_proposals("KEY", [f"regions_test={dataset}"])
    other = tmp_path / "other.json"
    broken = {"size": [128, 128], "counts": [5]}
    other.write_text(json.dumps([{"image_id": 0, "segmentation": broken, "score": 1}]))
    with pytest.raises(ValueError, match="allowed: one file"):
        register_mask_proposals("KEY", [f"regions_test={other}"])
    with pytest.raises(UnreadableImage, match="other.json: entry 0 has RLE runs that sum to 5"):
        read_regions((str(other), 0), 10, (128, 128))


def test_a_file_for_other_images_is_refused(dataset, tmp_path):
    other = tmp_path / "other.json"
    rle = {"size": [2, 2], "counts": [4]}
    other.write_text(json.dumps([{"image_id": "x", "segmentation": rle, "score": 1}]))
    register_mask_proposals("KEY", [f"regions_test={other}"])
    with pytest.raises(ValueError, match="has no region of any image.*its own first one is 'x'"):
        DatasetCatalog.get("regions_test")
