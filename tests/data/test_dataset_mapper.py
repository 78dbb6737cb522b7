import copy

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper, build_detection_train_loader
from detectron2.data import transforms as T
from detectron2.data.datasets import load_coco_json
from detectron2.structures import BitMasks, BoxMode
from PIL import Image

from rpe_d2.data import CountInstances, ImageMapper, PixelLabelMapper, UnreadableImage, load_shapes

H, W = 128, 128
POLYGON = [[10.0, 20.0, 60.0, 20.0, 60.0, 50.0, 10.0, 50.0]]


def make_cfg(*opts):
    cfg = get_cfg()
    # Detectron2's defaults have masks off.
    assert not cfg.MODEL.MASK_ON and cfg.INPUT.MASK_FORMAT == "polygon"
    cfg.INPUT.MIN_SIZE_TRAIN = (H,)
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.merge_from_list(list(opts))
    return cfg


def make_record(*annotations):
    """Returns a dataset dict with an image of the shapes dataset and the given annotations."""
    record = load_shapes("val")[0]
    record["annotations"] = copy.deepcopy(list(annotations))
    return record


def annotate(segmentation=None, category_id=1, iscrowd=0, bbox=(10.0, 20.0, 60.0, 50.0)):
    annotation = {
        "bbox": list(bbox),
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": category_id,
        "iscrowd": iscrowd,
    }
    if segmentation is not None:
        annotation["segmentation"] = segmentation
    return annotation


def filled_box():
    mask = np.zeros((H, W), dtype=np.uint8)
    mask[20:50, 10:60] = 1
    return mask


def uncompressed_rle(mask):
    pixels = np.concatenate([[0], mask.ravel(order="F")])
    changes = np.flatnonzero(np.diff(pixels))
    counts = np.diff(np.concatenate([[0], changes, [mask.size]]))
    return {"size": list(mask.shape), "counts": counts.tolist()}


def compressed_rle(mask):
    rle = mask_util.encode(np.asfortranarray(mask))
    return {"size": rle["size"], "counts": rle["counts"].decode("ascii")}


@pytest.mark.parametrize(
    "segmentation",
    [POLYGON, compressed_rle(filled_box()), uncompressed_rle(filled_box()), None],
    ids=["polygon", "compressed", "uncompressed", "box only"],
)
@pytest.mark.parametrize("crop", [False, True], ids=["whole", "crop"])
def test_every_kind_of_mask(segmentation, crop):
    opts = ["INPUT.CROP.ENABLED", crop, "INPUT.CROP.TYPE", "absolute", "INPUT.CROP.SIZE", [H, W]]
    mapper = PixelLabelMapper(make_cfg(*opts), is_train=True)
    # With a mask of another type first, because Detectron2 infers the type from the first one.
    instances = mapper(make_record(annotate(POLYGON), annotate(segmentation)))["instances"]
    masks = instances.gt_masks
    assert isinstance(masks, BitMasks) and masks.tensor.dtype == torch.bool
    np.testing.assert_array_equal(masks.tensor[1].numpy(), filled_box())
    assert instances.gt_boxes.tensor.tolist() == [[10, 20, 60, 50]] * 2
    assert instances.gt_classes.tolist() == [1, 1]


def test_constructed_with_arguments():
    mapper = PixelLabelMapper(True, augmentations=[T.HFlipTransform(W)], image_format="RGB")
    mask = mapper(make_record(annotate(POLYGON)))["instances"].gt_masks.tensor[0].numpy()
    np.testing.assert_array_equal(mask, filled_box()[:, ::-1])


def test_crops_have_the_objects_with_a_pixel_in_them():
    crop = T.RandomCrop("relative", [0.4, 0.3])
    mapper = PixelLabelMapper(True, augmentations=[crop], image_format="RGB", recompute_boxes=True)
    num_outside = 0
    for number, record in enumerate(load_shapes("val")[:20]):
        np.random.seed(number)
        cropped = mapper(record)
        np.random.seed(number)
        window = crop.get_transform(np.zeros((128, 128, 3)))
        masks = [mask_util.decode(a["segmentation"]) for a in record["annotations"]]
        masks = [window.apply_segmentation(mask).astype(bool) for mask in masks]
        expected = np.array([mask for mask in masks if mask.any()])
        found = cropped["instances"].gt_masks.tensor.numpy()
        np.testing.assert_array_equal(found, expected.reshape(found.shape))
        num_outside += len(masks) - len(expected)
    assert num_outside > 0


def test_boxes_are_tight_after_cropping():
    cfg = make_cfg("INPUT.CROP.ENABLED", True, "INPUT.CROP.SIZE", [0.5, 0.5])
    mapper = PixelLabelMapper(cfg, is_train=True)
    plain_cfg = make_cfg("MODEL.MASK_ON", True, "INPUT.MASK_FORMAT", "bitmask")
    num_changed = 0
    for record in load_shapes("val")[:20]:
        instances = mapper(record)["instances"]
        tight = instances.gt_masks.get_bounding_boxes()
        assert torch.equal(instances.gt_boxes.tensor, tight.tensor)
        num_changed += len(instances) != len(record["annotations"])
    assert num_changed > 0
    assert not PixelLabelMapper(plain_cfg, is_train=True).recompute_boxes
    assert not PixelLabelMapper(cfg, is_train=False).recompute_boxes


@pytest.mark.parametrize("crop", [False, True], ids=["whole", "crop"])
@pytest.mark.parametrize("crowd", [False, True], ids=["nothing", "only a crowd"])
def test_image_without_objects(crop, crowd):
    mapper = PixelLabelMapper(make_cfg("INPUT.CROP.ENABLED", crop), is_train=True)
    record = make_record(*[annotate(POLYGON, iscrowd=1)] * crowd)
    item = mapper(record)
    size = tuple(item["image"].shape[1:])
    instances = item["instances"]
    assert instances.image_size == size and len(instances) == 0
    assert instances.gt_masks.tensor.shape == (0, *size)
    assert instances.gt_masks.tensor.dtype == torch.bool
    assert instances.gt_boxes.tensor.shape == (0, 4)
    assert instances.gt_classes.shape == (0,) and instances.gt_classes.dtype == torch.int64
    assert ("ignore_mask" in item) == crowd
    assert "annotations" not in item


def test_image_without_objects_reaches_training():
    records = [make_record(), make_record(annotate(POLYGON))]
    loader = build_detection_train_loader(
        records, mapper=PixelLabelMapper(make_cfg(), True), total_batch_size=2, num_workers=0
    )
    batches = iter(loader)
    counts = {len(item["instances"]) for _ in range(4) for item in next(batches)}
    assert counts == {0, 1}


@pytest.mark.parametrize(
    "segmentation",
    [POLYGON, compressed_rle(filled_box()), uncompressed_rle(filled_box()), None],
    ids=["polygon", "compressed", "uncompressed", "box only"],
)
def test_crowd_flips_with_the_image(segmentation):
    crowd = annotate(segmentation, iscrowd=1)
    second = annotate([[100.0, 100, 120, 100, 120, 110, 100, 110]], iscrowd=1)
    expected = filled_box().astype(bool)
    expected[100:110, 100:120] = True
    record = make_record(annotate(POLYGON), crowd, second)
    for augmentations, expected_mask in (
        ([], expected),
        ([T.HFlipTransform(W)], expected[:, ::-1]),
        ([T.CropTransform(5, 15, 60, 90)], expected[15:105, 5:65]),
    ):
        mapper = PixelLabelMapper(True, augmentations=augmentations, image_format="RGB")
        item = mapper(record)
        assert item["ignore_mask"].dtype == torch.bool
        np.testing.assert_array_equal(item["ignore_mask"].numpy(), expected_mask)
        assert len(item["instances"]) == 1, "a crowd is no instance"


def test_no_ignore_mask_without_a_crowd():
    assert "ignore_mask" not in PixelLabelMapper(make_cfg(), True)(make_record(annotate(POLYGON)))


def test_same_as_detectron2():
    """With bitmasks, training is the same as with Detectron2's mapper. Testing always is."""
    cfg = make_cfg("MODEL.MASK_ON", True, "INPUT.MASK_FORMAT", "bitmask")
    for record in load_shapes("val")[:3]:
        ours, theirs = (m(cfg, is_train=True)(record) for m in (PixelLabelMapper, DatasetMapper))
        assert set(ours) == set(theirs)
        assert torch.equal(ours["image"], theirs["image"])
        ours, theirs = ours["instances"], theirs["instances"]
        assert torch.equal(ours.gt_masks.tensor.bool(), theirs.gt_masks.tensor.bool())
        assert torch.equal(ours.gt_boxes.tensor, theirs.gt_boxes.tensor)
        assert torch.equal(ours.gt_classes, theirs.gt_classes)

        crowd = dict(record, annotations=[annotate(POLYGON, iscrowd=1)])
        ours, theirs = (m(cfg, is_train=False)(crowd) for m in (PixelLabelMapper, DatasetMapper))
        assert set(ours) == set(theirs) and "annotations" not in ours and "instances" not in ours
        assert torch.equal(ours["image"], theirs["image"])


def test_record_is_not_changed():
    record = make_record(annotate(None), annotate(POLYGON, iscrowd=1))
    before = copy.deepcopy(record)
    PixelLabelMapper(make_cfg(), True)(record)
    assert record == before


def test_coco(real_data):
    root = real_data("tiny_coco")
    records = load_coco_json(
        str(root / "annotations/instances_train2017.json"),
        str(root / "train2017"),
        "tiny_coco_mapper",
    )
    cfg = make_cfg("INPUT.MIN_SIZE_TRAIN", (200,))
    mapper = PixelLabelMapper(cfg, is_train=True)
    num_crowds = num_empty = 0
    for record in records:
        item = mapper(record)
        size = tuple(item["image"].shape[1:])
        crowds = [a for a in record["annotations"] if a["iscrowd"]]
        assert item["instances"].gt_masks.tensor.shape[1:] == size
        assert ("ignore_mask" in item) == bool(crowds)
        if crowds:
            area = sum(mask_util.area(a["segmentation"]) for a in crowds)
            share = area / (record["height"] * record["width"])
            assert item["ignore_mask"].shape == size
            assert item["ignore_mask"].float().mean().item() == pytest.approx(share, rel=0.05)
        num_crowds += bool(crowds)
        num_empty += len(item["instances"]) == 0
    assert num_crowds == 4 and num_empty == 1


def test_nuclei(real_data):
    root = real_data("nuclei")
    record = load_coco_json(str(root / "val.json"), str(root), "nuclei_mapper")[0]
    cfg = make_cfg("INPUT.MIN_SIZE_TRAIN", (record["height"],), "INPUT.MAX_SIZE_TRAIN", 4000)
    masks = PixelLabelMapper(cfg, is_train=True)(record)["instances"].gt_masks.tensor
    rles = [a["segmentation"] for a in record["annotations"]]
    np.testing.assert_array_equal(masks.numpy(), mask_util.decode(rles).transpose(2, 0, 1))


def test_number_of_instances_is_added_for_oracles():
    record = make_record(annotate(), annotate(), annotate(iscrowd=1))
    mapped = CountInstances(DatasetMapper(make_cfg(), is_train=False))(record)
    assert mapped["num_instances"] == 2 and mapped["image"].shape[0] == 3


def test_an_rle_that_does_not_cover_the_image_is_refused(tmp_path):
    """Data sets that other code registers reach the mapper without a check of their file."""
    path = tmp_path / "a.png"
    Image.fromarray(np.zeros((16, 20, 3), np.uint8)).save(path)
    rle = {"size": [16, 20], "counts": [16, 3]}
    annotation = {"bbox": [0, 0, 9, 9], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    item = {"file_name": str(path), "height": 16, "width": 20}
    mapper = PixelLabelMapper(True, augmentations=[], image_format="RGB")
    for crowd in (0, 1):
        annotations = [{**annotation, "segmentation": rle, "iscrowd": crowd}]
        with pytest.raises(UnreadableImage, match="a.png: .* sum to 19 in 16 x 20 = 320 pixels"):
            mapper({**item, "annotations": annotations})


@pytest.mark.parametrize("kind", [ImageMapper, PixelLabelMapper])
def test_label_maps_of_any_data_set_are_indices(kind, tmp_path):
    """Detectron2 reads the brightness of a palette's colors, and cuts labels at 255."""
    rng = np.random.default_rng(0)
    palette = Image.fromarray(rng.integers(0, 200, (H, W), dtype=np.uint8))
    palette.putpalette(rng.integers(0, 256, 768).tolist())
    palette.save(tmp_path / "palette.png")
    deep = rng.integers(0, 60_000, (H, W)).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    np.save(tmp_path / "deep.npy", deep.astype(np.int32))
    cfg = make_cfg("INPUT.MIN_SIZE_TRAIN", (2 * H,))
    for name, expected in (
        ("palette.png", np.asarray(palette)),
        ("deep.png", deep),
        ("deep.npy", deep),
    ):
        record = {**make_record(), "sem_seg_file_name": str(tmp_path / name)}
        labels = kind(cfg, is_train=True)(record)["sem_seg"]
        assert labels.dtype == torch.int64
        np.testing.assert_array_equal(labels.numpy(), expected.repeat(2, axis=0).repeat(2, axis=1))


def test_a_label_map_of_another_size_is_named(tmp_path):
    Image.fromarray(np.zeros((H, W - 1), np.uint8)).save(tmp_path / "labels.png")
    record = {**make_record(), "sem_seg_file_name": str(tmp_path / "labels.png")}
    with pytest.raises(
        UnreadableImage, match="labels.png is 127 x 128 pixels; its image .* is 128 x 128"
    ):
        ImageMapper(make_cfg(), is_train=True)(record)


@pytest.mark.parametrize("is_train", [True, False])
def test_an_image_that_cannot_be_resized_is_named(is_train, tmp_path):
    Image.new("RGB", (3000, 1)).save(tmp_path / "thin.png")
    opts = ["INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.MAX_SIZE_TRAIN", 100, "INPUT.MAX_SIZE_TEST", 100]
    mapper = PixelLabelMapper(make_cfg(*opts), is_train=is_train)
    with pytest.raises(UnreadableImage, match="thin.png is 3000 x 1 pixels, which cannot be resi"):
        mapper({"file_name": str(tmp_path / "thin.png")})
