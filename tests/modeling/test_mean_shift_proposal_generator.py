"""Mean-shift proposals under Detectron2's own meta-architectures and ROI heads."""

import math

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import Boxes, BoxMode, ImageList, pairwise_iou
from detectron2.utils.events import EventStorage

from rpe_d2.evaluation import MaskProposalEvaluator
from rpe_d2.modeling import EmbeddingHead, EmbeddingMaps, MeanShiftProposalGenerator
from rpe_d2.modeling.embedding.head import cell_centers
from rpe_d2.modeling.embedding.quality_head import best_match
from rpe_d2.modeling.masks import soft_nms
from rpe_d2.modeling.proposal_generator import mean_shift_proposal_generator
from tests.helpers.models import SQUARES, perfect_maps, small_cfg, square_instances, training_input

SWAP = ("MODEL.PROPOSAL_GENERATOR.NAME", "MeanShiftProposalGenerator")


def mask_rcnn_cfg(*overrides):
    """Detectron2's Mask R-CNN, small: ResNet-18-FPN with 32 channels, 3 classes."""
    cfg = small_cfg("MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "MODEL.MASK_ON", True)
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[8], [16], [32], [64], [128]]
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 32
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 64
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
    cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 1
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 32
    cfg.merge_from_list(list(overrides))
    return cfg


CASCADE = (
    "MODEL.ROI_HEADS.NAME", "CascadeROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True,
)  # fmt: skip
C4 = (
    "MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.OUT_FEATURES", ["res4"],
    "MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.WIDTH_PER_GROUP", 16,
    "MODEL.ROI_HEADS.NAME", "Res5ROIHeads", "MODEL.ROI_HEADS.IN_FEATURES", ["res4"],
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 14, "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", 14,
)  # fmt: skip
PROPOSALS_ONLY = ("MODEL.META_ARCHITECTURE", "ProposalNetwork")

BATCH_SQUARES = ((10, 10, 60, 60), (60, 20, 110, 80))


def batch():
    return [
        training_input((96, 128), BATCH_SQUARES, (0, 2)),
        training_input((96, 112), ((20, 30, 80, 90),), (1,)),
    ]


def train(model, steps, items, lr=1e-3):
    """Losses before each of some steps."""
    optimizer = torch.optim.AdamW(model.train().parameters(), lr)
    history = []
    for step in range(steps):
        with EventStorage(step):
            losses = model(items)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append({name: float(loss) for name, loss in losses.items()})
    return history


@pytest.mark.parametrize(
    "overrides",
    [(), ("MODEL.MASK_ON", False), CASCADE, (*CASCADE, "MODEL.MASK_ON", False), C4, PROPOSALS_ONLY],
    ids=["mask", "box", "cascade", "cascade box", "C4", "proposals"],
)
def test_the_swapped_name_trains_and_infers(overrides):
    torch.manual_seed(0)
    model = build_model(mask_rcnn_cfg(*SWAP, *overrides))
    items = batch()
    history = train(model, 20, items)
    totals = [sum(losses.values()) for losses in history]
    # The median, because single steps of such short trainings depend on rounding.
    assert sorted(totals[-5:])[2] < 0.8 * totals[0]
    names = {"loss_rpe_sem_seg", "loss_rpe_pair", "loss_rpe_vote", "loss_rpe_quality"}
    assert names <= set(history[0])
    if overrides == PROPOSALS_ONLY:
        assert names == set(history[0])
    unreached = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None and parameter.requires_grad
    ]
    assert unreached == []
    with torch.no_grad():
        outputs = model.eval()(items)
    if overrides == PROPOSALS_ONLY:
        proposals = outputs[0]["proposals"]
        fields = {"proposal_boxes", "objectness_logits", "proposal_masks"}
        assert set(proposals.get_fields()) == fields
        assert proposals.image_size == (96, 128)
    else:
        assert outputs[0]["instances"].has("pred_masks") == model.roi_heads.mask_on


@pytest.mark.parametrize("masks", [False, True])
def test_training_proposals_have_the_fields_that_roi_heads_expect(masks):
    wanted = (
        "MODEL.PROPOSAL_GENERATOR.MASKS_IN_TRAINING",
        masks,
        "MODEL.RPE.PROPOSAL_MASK_SIZE",
        9,
    )
    model = build_model(mask_rcnn_cfg(*SWAP, *wanted)).train()
    items = batch()
    images = model.preprocess_image(items)
    truth = [item["instances"] for item in items]
    with EventStorage():
        proposals, _ = model.proposal_generator(images, model.backbone(images.tensor), truth)
    assert len(proposals) == len(items)
    fields = {"proposal_boxes", "objectness_logits"}
    for each, item in zip(proposals, items):
        assert set(each.get_fields()) == (fields | {"proposal_masks"} if masks else fields)
        if masks:
            assert each.proposal_masks.shape == (len(each), 9, 9)
            assert each.proposal_masks.dtype == torch.uint8
        assert each.image_size == tuple(item["image"].shape[1:])
        assert not each.proposal_boxes.tensor.requires_grad
        assert not each.objectness_logits.requires_grad


def test_checkpoints_load_both_ways(tmp_path):
    """Between the meta-architectures, and everything but the generator between it and the RPN."""
    torch.manual_seed(0)
    whole, alone = (build_model(mask_rcnn_cfg(*SWAP, *more)) for more in ((), PROPOSALS_ONLY))
    rpn = build_model(mask_rcnn_cfg())

    def missing(source, target):
        """Parts of the target that the source's checkpoint left as they were."""
        DetectionCheckpointer(source, str(tmp_path)).save("weights")
        before = {name: value.clone() for name, value in target.named_parameters()}
        DetectionCheckpointer(target).load(str(tmp_path / "weights.pth"))
        same = [
            name for name, value in target.named_parameters() if torch.equal(value, before[name])
        ]
        target.load_state_dict(before, strict=False)
        random = [name for name in same if before[name].dim() > 1]  # others start alike
        return {name.split(".")[0] for name in random}

    assert missing(whole, alone) == set()
    assert missing(alone, whole) == {"roi_heads"}
    assert missing(rpn, whole) == {"proposal_generator"}
    assert missing(whole, rpn) == {"proposal_generator"}


def generator_and_maps(*overrides, **options):
    """Returns a random generator, perfect maps of SQUARES at two levels, and their labels."""
    overrides = ("MODEL.RPE.PROPOSALS.STRIDE", 2, *overrides)
    cfg = mask_rcnn_cfg(*SWAP, *overrides)
    shape = build_model(mask_rcnn_cfg()).backbone.output_shape()
    torch.manual_seed(0)
    generator = MeanShiftProposalGenerator(cfg, shape).eval()
    fine, grid, size = perfect_maps(2, num_classes=1, **options)
    coarse, _, _ = perfect_maps(4, num_classes=1, **options)
    levels = [
        maps._replace(features=torch.rand(1, 32, *maps.logits.shape[-2:]))
        for maps in (fine, coarse)
    ]
    return generator, levels, grid, size


@pytest.fixture
def squares_dataset(tmp_path):
    """SQUARES as a data set of one picture."""
    name = f"squares_{tmp_path.name}"
    masks = square_instances((80, 96), SQUARES, [0] * len(SQUARES)).gt_masks.tensor
    annotations = [
        {
            "bbox": list(square),
            "bbox_mode": BoxMode.XYXY_ABS,
            "category_id": 0,
            "segmentation": mask_util.encode(np.asfortranarray(mask.numpy().astype(np.uint8))),
        }
        for square, mask in zip(SQUARES, masks)
    ]
    item = {
        "file_name": "0.png",
        "image_id": 0,
        "height": 80,
        "width": 96,
        "annotations": annotations,
    }
    DatasetCatalog.register(name, lambda: [item])
    MetadataCatalog.get(name).set(thing_classes=["square"])
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


@pytest.mark.parametrize("nms_type", ["mask", "box"])
def test_a_perfect_embedding_finds_every_object_with_the_first_proposals(nms_type, squares_dataset):
    """AR@n of the n objects, up to what masks on cells of 2 pixels can be."""
    generator, levels, _, size = generator_and_maps(noise=0.0)
    generator.nms_type = nms_type
    proposals = generator._proposals(generator.rank_groups(levels, [size]), 2, [size])
    assert len(proposals[0]) == len(SQUARES)
    evaluator = MaskProposalEvaluator(squares_dataset, distributed=False)
    evaluator.process([{"image_id": 0}], [{"proposals": proposals[0]}])
    results = evaluator.evaluate()
    # There is no AR@4; with no more than 4 proposals AR@10 is that.
    assert results["proposals_bbox"]["AR@10"] == pytest.approx(100)
    assert results["proposals_segm"]["AR@10"] == pytest.approx(100)


@pytest.mark.parametrize(
    "overrides, found",
    [
        (("MODEL.RPE.PROPOSALS.MAX_GROUPS", 3), 3),
        (("MODEL.RPE.MIN_AREA", 100), 3),
        (
            ("MODEL.RPE.PROPOSALS.MAX_KEYS", 30),
            4,
        ),  # about one for 40 cells; the smallest object has 16
        (("MODEL.RPE.PROPOSALS.MAX_KEYS", 100), 4),
    ],
)
def test_boxes_do_not_grow_over_objects_that_are_left_out(overrides, found):
    generator, levels, _, size = generator_and_maps(*overrides, "MODEL.RPE.PROPOSALS.SCALES", [1.0])
    (proposals,) = generator._proposals(generator.rank_groups(levels[:1], [size]), 2, [size])
    assert len(proposals) == found
    truth = Boxes(torch.tensor(SQUARES, dtype=torch.float32))
    assert pairwise_iou(truth, proposals.proposal_boxes).amax(dim=0).min() > 0.9


def test_several_bandwidths_find_what_one_misses():
    """Two objects of almost the same embedding: a wide kernel joins them, a narrow one does not."""
    generator, levels, grid, size = generator_and_maps(
        "MODEL.RPE.VOTES", False, "MODEL.MEAN_SHIFT.SPATIAL_BANDWIDTH", 0.0,
        "MODEL.RPE.PROPOSALS.SCALES", [0.6, 2.5], "MODEL.RPE.MERGE_COSINE", 0.95, noise=0.0,
    )  # fmt: skip
    close = torch.nn.functional.normalize(torch.eye(8)[0] + 0.7 * torch.eye(8)[1], dim=0)
    changed = levels[0].embeddings.clone()
    changed[0, :, grid == 1] = close[:, None]
    levels = [levels[0]._replace(embeddings=changed)]
    (ranked,) = generator.rank_groups(levels, [size])
    both = grid.masked_fill(grid == 1, 0)
    assert best_match(ranked.soft_masks, both, 0.5)[0].sort().values[-1] > 0.95
    for scales, joined in (([0.6], False), ([2.5], True)):
        generator.grouping.scales = tuple(scales)
        masks = generator.rank_groups(levels, [size])[0].soft_masks
        whole = best_match(masks, grid.masked_fill(grid > 1, -1), 0.5)[0].amax()
        assert (whole < 0.9) == joined


def test_levels_are_the_same_predictors_on_pooled_features():
    cfg = mask_rcnn_cfg("MODEL.RPE.STRIDE", 8)
    torch.manual_seed(0)
    head = EmbeddingHead(cfg, build_model(cfg).backbone.output_shape()).eval()
    features = {f"p{i}": torch.rand(1, 32, -(-72 // 2**i), -(-104 // 2**i)) for i in range(2, 7)}
    with torch.no_grad():
        fine, middle, coarse = head.levels(features, 3)
        assert torch.equal(fine.embeddings, head(features).embeddings)
        pooled = torch.nn.functional.avg_pool2d(fine.features, 2, ceil_mode=True)
        assert torch.equal(middle.features, pooled)
        scores = head.classifier(pooled)
    assert torch.allclose(middle.logits, scores)
    assert [maps.stride for maps in (fine, middle, coarse)] == [8, 16, 32]
    assert [tuple(m.logits.shape[-2:]) for m in (fine, middle, coarse)] == [(9, 13), (5, 7), (3, 4)]


def background_everywhere(model):
    """Biases that leave no foreground at all."""
    with torch.no_grad():
        last = model.proposal_generator.embedding_head.classifier[-1]
        last.weight.zero_()
        last.bias.copy_(torch.tensor([-20.0, 20.0]))


def test_no_cluster_at_all_leaves_the_roi_heads_something_to_learn():
    torch.manual_seed(0)
    model = build_model(mask_rcnn_cfg(*SWAP)).train()
    background_everywhere(model)
    items = batch()
    with EventStorage():
        losses = model(items)
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert losses["loss_cls"] > 0 and losses["loss_mask"] > 0  # from the ground-truth boxes
    sum(losses.values()).backward()
    quality = model.proposal_generator.quality_head
    assert all(parameter.grad is not None for parameter in quality.parameters())
    with torch.no_grad():
        outputs = model.eval()(items)
    assert all(len(output["instances"]) == 0 for output in outputs)


def test_images_without_objects_train():
    torch.manual_seed(0)
    model = build_model(mask_rcnn_cfg(*SWAP)).train()
    empty = training_input((96, 128), (), ())
    for items in ([empty, batch()[0]], [empty]):
        model.zero_grad()
        with EventStorage():
            losses = model(items)
        assert all(torch.isfinite(loss) for loss in losses.values())
        sum(losses.values()).backward()
        # All take part, as distributed training demands.
        generator = model.proposal_generator
        assert all(parameter.grad is not None for parameter in generator.parameters())
    background_everywhere(model)
    with EventStorage():
        losses = model([empty])
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_a_crowd_is_background_and_alone_in_a_picture_it_trains():
    """No R-CNN gets the mapper's crowds: losses equal those of an image without the crowd."""
    torch.manual_seed(0)
    model = build_model(mask_rcnn_cfg(*SWAP, *PROPOSALS_ONLY)).train()
    crowd = torch.zeros(96, 128, dtype=torch.bool)
    crowd[:, 100:] = True
    for item in (batch()[0], training_input((96, 128), (), ())):
        found = []
        for items in ([item], [{**item, "ignore_mask": crowd}]):
            torch.manual_seed(1)
            with EventStorage():
                found.append({name: float(loss) for name, loss in model(items).items()})
        assert found[0] == found[1] and all(math.isfinite(loss) for loss in found[0].values())


def test_boxes_stand_in_for_missing_masks():
    items = batch()
    for item in items:
        item["instances"].remove("gt_masks")
    model = build_model(mask_rcnn_cfg(*SWAP, "MODEL.MASK_ON", False))
    history = train(model, 1, items)
    assert all(torch.isfinite(torch.tensor(list(history[0].values()))))


def test_limits_bound_what_is_suppressed_and_what_remains(monkeypatch):
    limits = {"PRE_NMS_TOPK": 7, "POST_NMS_TOPK_TRAIN": 2, "POST_NMS_TOPK_TEST": 3}
    overrides = [
        item for name, value in limits.items() for item in (f"MODEL.RPE.PROPOSALS.{name}", value)
    ]
    generator, levels, _, size = generator_and_maps(
        *overrides, "MODEL.RPE.PROPOSALS.NMS_THRESH", 1.0
    )
    (ranked,) = generator.rank_groups(levels, [size])
    looked_at = []

    def ranked_again(overlaps, *more):
        looked_at.append(len(overlaps))
        return soft_nms(overlaps, *more)

    monkeypatch.setattr(mean_shift_proposal_generator, "soft_nms", ranked_again)
    for training, expected in ((True, 2), (False, 3)):
        generator.train(training)
        (proposals,) = generator._proposals([ranked], 2, [size])
        assert len(proposals) == expected
        best = ranked.scores.topk(expected).values
        assert torch.allclose(proposals.objectness_logits.sigmoid(), best, atol=1e-5)
    assert looked_at == [7, 7]
    # ROI heads may train on the ground truth alone.
    generator, levels, _, size = generator_and_maps("MODEL.RPE.PROPOSALS.POST_NMS_TOPK_TRAIN", 0)
    generator.train()
    ranked = generator.rank_groups(levels, [size])
    assert len(generator._proposals(ranked, 2, [size])[0]) == 0


def test_thousands_of_pixels_of_many_objects():
    """A picture of 1,024 px with 1,024 objects of noise-free embeddings and votes."""
    generator, _, _, _ = generator_and_maps(
        "MODEL.RPE.PROPOSALS.STRIDE",
        8,
        "MODEL.RPE.PROPOSALS.MAX_GROUPS",
        1500,
        "MODEL.RPE.PROPOSALS.MAX_KEYS",
        2048,
        "MODEL.RPE.PROPOSALS.POST_NMS_TOPK_TEST",
        300,
    )
    cells = torch.arange(128) // 4
    number = cells[:, None] * 32 + cells  # (128, 128)
    torch.manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(1024, 8), dim=1)
    centers = cell_centers((32, 32), 32, torch.device("cpu")).flatten(1).T
    logits = torch.stack([torch.full((128, 128), 5.0), torch.full((128, 128), -5.0)])[None]
    maps = EmbeddingMaps(
        directions[number].permute(2, 0, 1)[None],
        logits,
        centers[number].permute(2, 0, 1)[None],
        torch.full((1, 1, 128, 128), 32.0),
        torch.rand(1, 32, 128, 128),
        8,
    )
    with torch.no_grad():
        ranked = generator.rank_groups([maps], [(1024, 1024)])
        (proposals,) = generator._proposals(ranked, 8, [(1024, 1024)])
    assert len(proposals) == 300
    sides = proposals.proposal_boxes.tensor[:, 2:] - proposals.proposal_boxes.tensor[:, :2]
    assert (sides - 32).abs().median() < 4


def test_padding_of_a_batch_brings_no_proposals():
    torch.manual_seed(0)
    model = build_model(mask_rcnn_cfg(*SWAP, *PROPOSALS_ONLY)).eval()
    small, large = training_input((64, 96)), training_input((128, 160), ((5, 5, 90, 90),), (0,))
    with torch.no_grad():
        proposals = model([small, large])[0]["proposals"]
    boxes = proposals.proposal_boxes.tensor
    assert len(boxes) and boxes[:, 2].max() <= 96 and boxes[:, 3].max() <= 64


@pytest.mark.parametrize("size", [(48, 64), (51, 69), (80, 57)])
def test_boxes_do_not_depend_on_what_the_padding_holds(size):
    """The image's border cuts squares, and the maps continue them in the padding of the batch."""
    generator, levels, _, _ = generator_and_maps()
    levels = [maps._replace(logits=0.1 * maps.logits) for maps in levels]  # soft masks of about .7
    cells = [-(-side // 4) for side in size]
    alone = [
        EmbeddingMaps(
            *(
                part[..., : cells[0] * 4 // maps.stride, : cells[1] * 4 // maps.stride]
                for part in maps[:-1]
            ),
            maps.stride,
        )
        for maps in levels
    ]
    boxes = []
    for maps in (alone, levels):
        with torch.no_grad():
            ranked = generator.rank_groups(maps, [size])
            found = generator._proposals(ranked, 2, [size])[0].proposal_boxes.tensor
        boxes.append(found)
    assert torch.equal(*boxes)
    reaches = boxes[0][:, 2:] == torch.tensor([size[1], size[0]])
    assert reaches.any(dim=0).all()


def test_without_instances_training_says_so():
    generator, levels, _, size = generator_and_maps()
    images = ImageList(torch.zeros(1, 3, *size), [size])
    features = {f"p{i}": torch.rand(1, 32, -(-80 // 2**i), -(-96 // 2**i)) for i in range(2, 7)}
    with pytest.raises(ValueError, match='no "instances" to train on'):
        generator.train()(images, features)


@pytest.mark.parametrize(
    "key, value, allowed",
    [
        ("STRIDE", 3, "1, 2, 4, 8"),
        ("NMS_THRESH", 1.5, "0 to 1"),
        ("NUM_LEVELS", 0, "1 or more"),
        ("MAX_KEYS", 0, "1 or more"),
        ("SCALES", [], "factors above 0"),
        ("POST_NMS_TOPK_TEST", 0, "1 or more"),
    ],
)
def test_values_out_of_range_are_named(key, value, allowed):
    with pytest.raises(ValueError) as error:
        build_model(mask_rcnn_cfg(*SWAP, f"MODEL.RPE.PROPOSALS.{key}", value))
    message = str(error.value)
    assert f"MODEL.RPE.PROPOSALS.{key} is {value!r}" in message
    assert allowed in message and "\n" not in message


@pytest.mark.parametrize(
    "argument, value, allowed",
    [("nms_type", "soft", "mask, box"), ("tip_threshold", 0.0, "1e-06 to 1")],
)
def test_arguments_out_of_range_are_named(argument, value, allowed):
    shape = build_model(mask_rcnn_cfg()).backbone.output_shape()
    with pytest.raises(ValueError, match=f"{argument} is .*; allowed: {allowed}"):
        MeanShiftProposalGenerator(input_shape=shape, **{argument: value})


def test_kmeans_is_refused():
    with pytest.raises(ValueError, match="MODEL.RPE.GROUPING is 'kmeans'"):
        build_model(mask_rcnn_cfg(*SWAP, "MODEL.RPE.GROUPING", "kmeans"))


def test_autocast_changes_the_losses_by_rounding_only():
    torch.manual_seed(0)
    model = build_model(mask_rcnn_cfg(*SWAP, *PROPOSALS_ONLY)).train()
    items = batch()
    found = []
    for enabled in (False, True):
        torch.manual_seed(1)
        with EventStorage(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found.append(model(items))
    for name, loss in found[0].items():
        assert found[1][name].dtype == torch.float32
        assert float(found[1][name]) == pytest.approx(float(loss), rel=0.15, abs=0.02), name
