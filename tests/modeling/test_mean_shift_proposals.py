"""What the mean-shift proposal generator finds on known embeddings, and its limits."""

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import Boxes, BoxMode, ImageList, pairwise_iou

from rpe_d2.evaluation import MaskProposalEvaluator
from rpe_d2.modeling import EmbeddingHead, EmbeddingMaps, MeanShiftProposalGenerator
from rpe_d2.modeling.embedding.head import cell_centers
from rpe_d2.modeling.embedding.quality_head import best_match
from rpe_d2.modeling.masks import soft_nms
from rpe_d2.modeling.proposal_generator import mean_shift_proposal_generator
from tests.helpers.mean_shift_proposals import PROPOSALS_ONLY, SWAP, mask_rcnn_cfg
from tests.helpers.models import SQUARES, perfect_maps, square_instances, training_input


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
                for part in maps[:5]
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
