"""Guidance, mask head, semantic head, refiner: identity at first, then sharper."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn import functional as F

from rpe_d2.modeling.embedding.labels import pixel_labels
from rpe_d2.modeling.spn import (
    GuidanceNetwork,
    MaskPropagation,
    ProbabilityPropagation,
    PropagationHead,
    PropagationOptions,
    propagation_loss,
)
from tests.helpers.models import small_cfg, square_instances, training_input

MASK_RCNN = (
    "MODEL.META_ARCHITECTURE",
    "GeneralizedRCNN",
    "MODEL.MASK_ON",
    True,
    "MODEL.RPN.IN_FEATURES",
    ["p2", "p3", "p4", "p5", "p6"],
    "MODEL.ANCHOR_GENERATOR.SIZES",
    [[16], [32], [64], [96], [128]],
    "MODEL.ROI_HEADS.NAME",
    "StandardROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES",
    ["p2", "p3", "p4", "p5"],
    "MODEL.ROI_HEADS.NUM_CLASSES",
    3,
    "MODEL.ROI_BOX_HEAD.NAME",
    "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_FC",
    1,
    "MODEL.ROI_BOX_HEAD.FC_DIM",
    32,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION",
    7,
    "MODEL.ROI_MASK_HEAD.NAME",
    "MaskRCNNConvUpsampleHead",
    "MODEL.ROI_MASK_HEAD.NUM_CONV",
    2,
    "MODEL.ROI_MASK_HEAD.CONV_DIM",
    32,
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION",
    14,
    "MODEL.SPN.CONV_DIM",
    32,
)
SPN = ("MODEL.ROI_MASK_HEAD.NAME", "SPNMaskHead")
WHOLE = (
    *SPN,
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE",
    "",
    "MODEL.SPN.RESOLUTION",
    56,
)
GUIDED = (
    *WHOLE,
    "MODEL.BACKBONE.NAME",
    "build_guided_backbone",
    "MODEL.ROI_HEADS.NAME",
    "GuidedROIHeads",
    "MODEL.ROI_MASK_HEAD.IN_FEATURES",
    ["image", "p2", "p3", "p4", "p5"],
)
CASCADE = (
    *GUIDED,
    "MODEL.ROI_HEADS.NAME",
    "GuidedCascadeROIHeads",
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG",
    True,
)
REFINER = ("MODEL.META_ARCHITECTURE", "SPNRefiner", "MODEL.BACKBONE.NAME", "build_guided_backbone")
SEM_SEG = (
    "MODEL.META_ARCHITECTURE",
    "SemanticSegmentor",
    "MODEL.SEM_SEG_HEAD.NAME",
    "SPNSemSegHead",
    "MODEL.SEM_SEG_HEAD.IN_FEATURES",
    ["p2", "p3", "p4", "p5"],
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES",
    4,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM",
    32,
    "MODEL.BACKBONE.NAME",
    "build_guided_backbone",
)
OPTIONS = PropagationOptions(2, "softmax", 3)


def shapes(**strides):
    return {name: ShapeSpec(channels=3, stride=stride) for name, stride in strides.items()}


def maps_of(input_shape, size):
    return {
        name: torch.randn(2, shape.channels, *(-(-side // shape.stride) for side in size))
        for name, shape in input_shape.items()
    }


@pytest.mark.parametrize("stride", [1, 2, 4, 8])
@pytest.mark.parametrize("size", [(64, 96), (72, 40)])
def test_guidance_has_the_stride_that_is_asked_for(stride, size):
    input_shape = shapes(image=1, p2=4, p3=8, p5=32)
    network = GuidanceNetwork(input_shape, out_channels=12, stride=stride, conv_dim=32, norm="GN")
    found = network(maps_of(input_shape, size))
    assert found.shape == (2, 12, size[0] // stride, size[1] // stride)
    found.sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in network.parameters())


def test_guidance_cells_stay_where_they_are():
    """A bright place in a coarse map comes out at the same place, also where the coarse map ends outside."""
    input_shape = {"p2": ShapeSpec(channels=1, stride=4), "p5": ShapeSpec(channels=1, stride=32)}
    network = GuidanceNetwork(input_shape, out_channels=1, stride=4, conv_dim=1, norm="")
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias) if module.bias is not None else None
            middle = module.kernel_size[0] // 2
            module.weight.data[:, :, middle, middle] = 1
    p5 = torch.zeros(1, 1, 3, 3)  # 96 x 96 pixels, of which 72 x 72 are there
    p5[0, 0, 1, 2] = 1
    found = network({"p2": torch.zeros(1, 1, 18, 18), "p5": p5})[0, 0]
    expected = F.interpolate(p5, scale_factor=8, mode="bilinear", align_corners=False)[0, 0]
    assert torch.allclose(found, expected[:18, :18])


def test_a_new_head_is_the_identity():
    head = PropagationHead(3, 4, OPTIONS)
    maps = torch.randn(2, 3, 9, 7)
    assert torch.equal(head(maps, torch.randn(2, head.num_gates, 9, 7)), maps)


@pytest.mark.parametrize("connections, mode", [(3, "softmax"), (1, "softmax"), (3, "abs_sum")])
def test_masks_that_sum_to_one_still_do(connections, mode):
    options = PropagationOptions(2, mode, connections)
    network = GuidanceNetwork(
        shapes(image=1), out_channels=4 * connections, stride=1, conv_dim=4, norm=""
    )
    nn.init.normal_(network.predictor.weight, std=1.0)
    propagation = MaskPropagation(network, options)
    with torch.no_grad():
        gates = propagation.gates(maps_of(shapes(image=1), (20, 31)))[0]
        masks = torch.randn(5, 20, 31).softmax(dim=0)
        found = propagation(masks, gates)
    assert torch.allclose(found.sum(dim=0), torch.ones(20, 31), atol=1e-5)
    if mode == "softmax":
        assert found.min() >= 0 and found.max() <= 1
    assert (found - masks).abs().max() > 0.05
    assert propagation(masks[:0], gates).shape == (0, 20, 31)


def test_many_masks_are_propagated_in_parts(monkeypatch):
    network = GuidanceNetwork(shapes(image=1), out_channels=12, stride=1, conv_dim=4, norm="")
    propagation = MaskPropagation(network, OPTIONS)
    with torch.no_grad():
        gates = propagation.gates(maps_of(shapes(image=1), (8, 9)))[1]
        masks = torch.rand(7, 8, 9)
        expected = propagation(masks, gates)
        monkeypatch.setattr("rpe_d2.modeling.spn._PROPAGATED_VALUES", 200)
        assert torch.equal(propagation(masks, gates), expected)


def test_loss_of_propagation_by_hand():
    found, wanted = torch.tensor([[[0.5, 0.9]]]), torch.tensor([[[1.0, 1.0]]])
    expected = -(torch.tensor(0.5).log() + torch.tensor(0.9).log()) / 2
    assert torch.allclose(propagation_loss(found, wanted), expected)
    assert propagation_loss(torch.zeros(1, 1, 2), wanted).isfinite()
    assert propagation_loss(found[:0], wanted[:0]) == 0
    first = torch.tensor([[True, False]])
    assert torch.allclose(propagation_loss(found, wanted, first), -torch.tensor(0.5).log() / 2)


# ---- The mask head


def mask_rcnn(*overrides):
    torch.manual_seed(0)
    return build_model(small_cfg(*MASK_RCNN, *overrides))


def found_masks(model, image):
    """Masks of given boxes, without what the box head finds."""
    boxes = Boxes(torch.tensor([[4.0, 6.0, 40.0, 50.0], [30.0, 8.0, 70.0, 60.0]]))
    found = Instances((80, 80), pred_boxes=boxes, pred_classes=torch.tensor([2, 0]))
    with torch.no_grad():
        images = ImageList.from_tensors([image], 32)
        features = model.backbone(images.tensor)
        return model.roi_heads.forward_with_given_boxes(features, [found])[0].pred_masks


@pytest.mark.parametrize("overrides", [SPN, WHOLE, GUIDED], ids=["pooled", "whole", "guided"])
def test_weights_of_mask_rcnn_load_and_give_its_masks(overrides):
    plain, refining = mask_rcnn().eval(), mask_rcnn(*overrides).eval()
    missing, unexpected = refining.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert all(
        name.startswith(("roi_heads.mask_head.guidance.", "roi_heads.mask_head.propagation."))
        for name in missing
    )
    image = torch.randn(3, 80, 80)
    expected, found = found_masks(plain, image), found_masks(refining, image)
    side = found.shape[-1]
    assert side == (28 if overrides is SPN else 56)
    expected = F.interpolate(
        expected.logit(), size=(side, side), mode="bilinear", align_corners=False
    ).sigmoid()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "overrides", [SPN, WHOLE, GUIDED, CASCADE], ids=["pooled", "whole", "guided", "cascade"]
)
def test_both_losses_reach_what_they_should(overrides):
    model = mask_rcnn(*overrides)
    nn.init.normal_(model.roi_heads.mask_head.propagation.project.weight, std=0.1)
    with EventStorage() as storage:
        losses = model([training_input(), training_input()])
    assert losses["loss_mask"].isfinite() and losses["loss_mask_refined"].isfinite()
    # The log tells the masks apart.
    for name in ("mask_rcnn/accuracy", "coarse/mask_rcnn/accuracy"):
        assert len(storage.history(name).values()) == 1
    head = model.roi_heads.mask_head
    losses["loss_mask_refined"].backward()
    for part in (head.propagation, head.guidance, head.predictor, head.mask_fcn1):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())


@pytest.mark.parametrize("overrides", [SPN, GUIDED], ids=["pooled", "guided"])
def test_pictures_without_objects(overrides):
    model = mask_rcnn(*overrides)
    item = training_input()
    item["instances"] = item["instances"][:0]
    with EventStorage():
        losses = model([item])
        sum(losses.values()).backward()
    head = model.roi_heads.mask_head
    assert all(p.grad is not None for p in head.parameters())
    model.eval()
    found = model([{"image": torch.zeros(3, 64, 64, dtype=torch.uint8)}])[0]["instances"]
    assert found.pred_masks.shape[1:] == (64, 64)


def test_one_map_for_all_classes():
    model = mask_rcnn(*SPN, "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", True)
    with EventStorage():
        assert model([training_input()])["loss_mask_refined"].isfinite()


@pytest.mark.parametrize(
    "overrides, message",
    [
        (
            (*SPN, "MODEL.SPN.RESOLUTION", 40),
            "MODEL.SPN.RESOLUTION is 40; allowed: multiples of 28",
        ),
        ((*SPN, "MODEL.SPN.GATE_MODE", "tanh"), "MODEL.SPN.GATE_MODE is 'tanh'; allowed: softmax"),
        ((*SPN, "MODEL.SPN.CONNECTIONS", 2), "MODEL.SPN.CONNECTIONS is 2; allowed: 1 or 3"),
        ((*SPN, "MODEL.SPN.CHANNELS", 0), "MODEL.SPN.CHANNELS is 0; allowed for masks: 1 or"),
        ((*SPN, "MODEL.SPN.RESOLUTION", -28), "MODEL.SPN.RESOLUTION is -28; allowed: 0 or more"),
        ((*SPN, "MODEL.SPN.LOSS_WEIGHT", -1.0), "MODEL.SPN.LOSS_WEIGHT is -1.0; allowed: 0 or"),
        ((*SEM_SEG, "MODEL.SPN.CONV_DIM", 0), "MODEL.SPN.CONV_DIM is 0; allowed: 1 or more"),
        ((*REFINER, "MODEL.SPN.NUM_MASKS", 0), "MODEL.SPN.NUM_MASKS is 0; allowed: 1 or more"),
        ((*REFINER, "MODEL.SPN.JITTER", -1), "MODEL.SPN.JITTER is -1; allowed: 0 or more"),
        (
            (*REFINER, "MODEL.SPN.COARSE_FACTORS", []),
            r"MODEL.SPN.COARSE_FACTORS is \[\]; allowed: one or more whole numbers",
        ),
        (
            (*REFINER, "MODEL.SPN.COARSE_FACTORS", [4, 0]),
            r"MODEL.SPN.COARSE_FACTORS is \[4, 0\]; allowed: one or more whole numbers",
        ),
        ((*SPN, "MODEL.SPN.NUM_UNITS", -1), "MODEL.SPN.NUM_UNITS is -1; allowed: 0 or more"),
        (
            (*GUIDED, "MODEL.ROI_MASK_HEAD.POOLER_TYPE", "ROIAlignV2"),
            "MODEL.ROI_MASK_HEAD.POOLER_TYPE is 'ROIAlignV2'; allowed",
        ),
        (
            (*GUIDED, "MODEL.ROI_MASK_HEAD.IN_FEATURES", ["stem", "p2"]),
            "MODEL.ROI_MASK_HEAD.IN_FEATURES names stem; the backbone has",
        ),
        ((*GUIDED, "MODEL.ROI_MASK_HEAD.IN_FEATURES", ["image"]), "a map beside the picture"),
        (
            (*REFINER, "MODEL.SPN.GATE_MODE", "abs_sum"),
            "MODEL.SPN.GATE_MODE is 'abs_sum'; allowed where masks are propagated",
        ),
        (
            (
                "MODEL.META_ARCHITECTURE",
                "PixelEmbeddingNet",
                "MODEL.RPE.REFINE",
                "spn",
                "MODEL.SPN.GATE_MODE",
                "clipped",
            ),
            "MODEL.SPN.GATE_MODE is 'clipped'; allowed where masks are propagated",
        ),
        ((*REFINER, "MODEL.SPN.STRIDE", 3), "MODEL.SPN.STRIDE is 3; allowed: 1, 2, 4"),
        (
            (*REFINER, "MODEL.SPN.IN_FEATURES", ["p9"]),
            "MODEL.SPN.IN_FEATURES names p9; the backbone has",
        ),
        (
            (*SEM_SEG, "MODEL.SPN.SEM_SEG_HEAD", "SPNSemSegHead"),
            "MODEL.SPN.SEM_SEG_HEAD is 'SPNSemSegHead'; allowed",
        ),
        (
            (*SEM_SEG, "MODEL.SPN.CHANNELS", 0, "MODEL.SPN.GATE_MODE", "clipped"),
            "MODEL.SPN.GATE_MODE is 'clipped'; allowed with MODEL.SPN.CHANNELS 0: softmax",
        ),
        (
            (*SEM_SEG, "MODEL.SPN.FREEZE_HEAD", True),
            "MODEL.SPN.FREEZE_HEAD is True, and the backbone below that head is trained; allowed",
        ),
        ((*SEM_SEG, "MODEL.SPN.STRIDE", 8), "MODEL.SPN.STRIDE is 8; allowed: at most 4"),
    ],
)
def test_a_wrong_key_is_one_line(overrides, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")) as error:
        mask_rcnn(*overrides)
    assert "\n" not in str(error.value)


# ---- The semantic head


def sem_seg_input():
    torch.manual_seed(1)
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    labels = torch.randint(0, 4, (64, 96))
    labels[:5] = 255
    return {"image": image, "sem_seg": labels}


def test_the_semantic_head_starts_as_the_one_it_refines():
    torch.manual_seed(0)
    same_grid = (*SEM_SEG, "MODEL.SPN.STRIDE", 4)
    plain = build_model(small_cfg(*same_grid, "MODEL.SEM_SEG_HEAD.NAME", "SemSegFPNHead")).eval()
    refining = build_model(small_cfg(*same_grid)).eval()
    missing, unexpected = refining.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected and all(
        name.startswith(("sem_seg_head.guidance.", "sem_seg_head.propagation.")) for name in missing
    )
    assert not any(module.training for module in refining.sem_seg_head._wrapped[0].modules())
    item = sem_seg_input()
    with torch.no_grad():
        expected, found = plain([item])[0]["sem_seg"], refining([item])[0]["sem_seg"]
    present = torch.bincount(expected.argmax(dim=0).flatten(), minlength=4) > 0
    assert torch.equal(found[present], expected[present])


def test_semantic_losses_before_and_after():
    model = build_model(small_cfg(*SEM_SEG))
    nn.init.normal_(model.sem_seg_head.propagation.project.weight, std=0.1)
    losses = model([sem_seg_input()])
    assert set(losses) == {"loss_sem_seg", "loss_sem_seg_refined"}
    losses["loss_sem_seg_refined"].backward()
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for p in model.sem_seg_head.parameters()
    )


def test_propagated_probabilities():
    torch.manual_seed(0)
    propagation = ProbabilityPropagation(4, OPTIONS)
    scores = torch.randn(2, 4, 9, 7, dtype=torch.float64)
    closed = torch.full((2, propagation.num_gates, 9, 7), -40.0, dtype=torch.float64)
    unchanged = propagation.refined(scores, propagation.features(scores, closed))
    assert torch.allclose(unchanged.exp(), scores.softmax(dim=1), atol=1e-5)
    found = propagation.features(scores, torch.randn_like(closed))
    probabilities = scores.softmax(dim=1)
    assert torch.allclose(found.exp().sum(dim=1), torch.ones(2, 9, 7, dtype=torch.float64))
    assert (found.exp() >= probabilities.amin(dim=(2, 3), keepdim=True) - 1e-5).all()
    assert (found.exp() - probabilities).abs().max() > 0.1
    # What is hopelessly wrong has a finite score, and a gradient to its gates.
    certain = torch.zeros(1, 2, 4, 5, dtype=torch.float64)
    certain[:, 0] = 50.0
    gates = torch.zeros(1, propagation.num_gates, 4, 5, dtype=torch.float64, requires_grad=True)
    certain[:, 1, 1, 1] = 100.0
    score = propagation.features(certain, gates)[:, 1, 3, 3]
    score.sum().backward()
    assert score.isfinite().all() and gates.grad.abs().sum() > 0
    # The same classes in another order.
    order = torch.tensor([2, 0, 3, 1])
    gates = torch.randn_like(closed)
    assert torch.allclose(
        propagation.features(scores[:, order], gates),
        propagation.features(scores, gates)[:, order],
    )


def test_the_semantic_head_with_propagated_probabilities():
    torch.manual_seed(0)
    keys = (*SEM_SEG, "MODEL.SPN.CHANNELS", 0, "MODEL.SEM_SEG_HEAD.PAIR_LOSS_WEIGHT", 1.0)
    model = build_model(small_cfg(*keys))
    losses = model([sem_seg_input()])
    assert set(losses) == {"loss_sem_seg", "loss_sem_seg_refined", "loss_sem_seg_pair"}
    losses["loss_sem_seg_refined"].backward(retain_graph=True)
    gates = model.sem_seg_head.guidance.parameters()
    assert all(p.grad.abs().sum() > 0 for p in gates)
    losses["loss_sem_seg_pair"].backward()
    assert model.sem_seg_head.embedding.weight.grad.abs().sum() > 0
    with torch.no_grad():  # close to the scores before refinement, which are at twice the stride
        found = model.eval()([sem_seg_input()])[0]["sem_seg"].softmax(dim=0)
        image = (sem_seg_input()["image"] - model.pixel_mean) / model.pixel_std
        features = model.backbone(image[None])
        before = model.sem_seg_head._wrapped[0].layers(features)
        before = F.interpolate(before, scale_factor=4, mode="bilinear")[0].softmax(dim=0)
    assert (found - before).abs().mean() < 0.05


def test_a_frozen_head_stays_as_it_is():
    frozen = ("MODEL.SPN.FREEZE_HEAD", True, "MODEL.SEM_SEG_HEAD.NORM", "BN")
    model = build_model(small_cfg(*SEM_SEG, *frozen, "MODEL.GUIDED_BACKBONE.FREEZE", True))
    refinement = ("sem_seg_head.guidance.", "sem_seg_head.propagation.")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(filter(lambda p: p.requires_grad, model.parameters()), lr=0.1)
    nn.init.normal_(model.sem_seg_head.propagation.project.weight, std=0.1)
    for _ in range(2):
        losses = model.train()([sem_seg_input()])
        assert set(losses) == {"loss_sem_seg_refined"}
        losses["loss_sem_seg_refined"].backward()
        optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not value.equal(before[name])}
    assert changed and all(name.startswith(refinement) for name in changed)
    assert changed == {name for name in before if name.startswith(refinement)}


def test_only_classes_of_the_coarse_map_win():
    model = build_model(small_cfg(*SEM_SEG)).eval()
    with torch.no_grad():
        model.sem_seg_head.predictor.weight.zero_()
        model.sem_seg_head.predictor.bias.copy_(torch.tensor([0.0, 1.0, 0.0, 0.0]))
        model.sem_seg_head.propagation.project.bias.copy_(torch.tensor([0.0, 0.0, 5.0, 0.0]))
        found = model([sem_seg_input()])[0]["sem_seg"]
    assert found.isfinite().all() and (found.argmax(dim=0) == 1).all()


# ---- The refiner


def test_the_refiner_learns_to_follow_the_picture():
    """One picture: masks cut at a quarter of their resolution gain most of what they lost."""
    torch.manual_seed(0)
    squares = [(8, 10, 50, 43), (40, 45, 75, 77)]
    instances = square_instances((80, 80), squares, [0, 1])
    image = torch.full((3, 80, 80), 60, dtype=torch.uint8)
    for (x0, y0, x1, y1), color in zip(squares, (120, 200)):
        image[:, y0:y1, x0:x1] = color
    model = build_model(
        small_cfg(*REFINER, "MODEL.SPN.IN_FEATURES", ["image", "p2"], "MODEL.SPN.STRIDE", 1)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(80):
        optimizer.zero_grad()
        model([{"image": image, "instances": instances}])["loss_propagation"].backward()
        optimizer.step()
    model.eval()
    true = instances.gt_masks.tensor
    coarse = torch.stack([mask.roll((2, -2), (0, 1)) for mask in true])
    item = {"image": image, "instances": Instances((80, 80), pred_masks=coarse, scores=[0.5, 0.2])}
    found = model([item])[0]["instances"]
    wrong_before = (coarse ^ true).sum()
    wrong_after = (found.pred_masks ^ true).sum()
    assert wrong_after < 0.5 * wrong_before, (wrong_before, wrong_after)
    assert found.scores == [0.5, 0.2]
    x0, y0, x1, y1 = found.pred_boxes.tensor[0].tolist()
    assert found.pred_masks[0, int(y0) : int(y1), int(x0) : int(x1)].sum() == (
        found.pred_masks[0].sum()
    )


def test_a_refiner_without_units_is_not_trained():
    """As a control it runs; training would learn nothing."""
    model = build_model(small_cfg(*REFINER, "MODEL.SPN.NUM_UNITS", 0))
    with pytest.raises(ValueError, match="MODEL.SPN.NUM_UNITS is 0; allowed in training"):
        model([training_input()])
    mask = torch.zeros(1, 64, 96, dtype=torch.bool)
    mask[0, 16:48, 16:48] = True
    item = {**training_input(), "instances": Instances((64, 96), pred_masks=mask)}
    found = model.eval()([item])[0]["instances"].pred_masks
    assert (found & mask).sum() > 0.95 * (found | mask).sum()


def test_the_refiner_takes_any_resolution_and_nothing():
    model = build_model(small_cfg(*REFINER)).eval()
    image = torch.randint(0, 256, (3, 70, 90), dtype=torch.uint8)
    masks = torch.zeros(2, 35, 45, dtype=torch.bool)
    masks[0, 5:, 8:] = True
    item = {
        "image": image,
        "height": 140,
        "width": 180,
        "instances": Instances((35, 45), pred_masks=masks),
        "sem_seg": torch.rand(3, 140, 180).softmax(dim=0),
    }
    found = model([item])[0]
    assert found["instances"].pred_masks.shape == (2, 140, 180)
    assert found["instances"].image_size == (140, 180)
    assert not found["instances"].pred_masks[1].any()
    expected = F.interpolate(masks[None].float(), scale_factor=4)[0].bool()
    wrong = (found["instances"].pred_masks[0] ^ expected[0]).sum()
    assert wrong < 0.06 * expected[0].sum()
    assert torch.allclose(found["sem_seg"].sum(dim=0), torch.ones(140, 180), atol=1e-4)
    nothing = {"image": image, "instances": Instances((70, 90), pred_masks=masks[:0])}
    assert len(model([nothing])[0]["instances"]) == 0
    assert model([{"image": image}])[0] == {}


@pytest.mark.parametrize("num_units", [0, 2])
def test_pixel_embeddings_with_refined_masks(num_units):
    cfg = small_cfg(
        "MODEL.RPE.REFINE", "spn", "MODEL.SPN.STRIDE", 2, "MODEL.SPN.NUM_UNITS", num_units
    )
    model = build_model(cfg)
    with EventStorage():
        losses = model([training_input()])
        assert losses["loss_propagation"].isfinite()
        sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.mask_propagation.parameters())
    model.eval()
    found = model([{"image": torch.zeros(3, 70, 60, dtype=torch.uint8)}])[0]["instances"]
    assert found.pred_masks.shape[1:] == (70, 60)
    with pytest.raises(ValueError, match="MODEL.RPE.REFINE is 'crf'; allowed: '', 'spn'"):
        build_model(small_cfg("MODEL.RPE.REFINE", "crf"))


def test_crowds_have_no_say_in_refined_masks():
    # Without propagation nothing reaches other cells.
    model = build_model(
        small_cfg("MODEL.RPE.REFINE", "spn", "MODEL.SPN.STRIDE", 2, "MODEL.SPN.NUM_UNITS", 0)
    )
    crowd = torch.zeros(64, 96, dtype=torch.bool)
    crowd[:, 61:] = True
    labels = pixel_labels(training_input()["instances"], (64, 96), crowd)

    def loss_of(soft_masks):
        gates = torch.zeros(1, 12, 32, 48)
        return model._propagation_loss(soft_masks, torch.tensor([1]), labels, gates, (64, 96))

    soft_masks = torch.full((1, 32, 48), 0.5)
    plain = loss_of(soft_masks)
    for column, same in ((28, False), (30, True), (40, True)):
        changed = soft_masks.clone()
        changed[..., column] = 0.9
        assert (loss_of(changed) == plain) == same
