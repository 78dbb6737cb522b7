"""The semantic heads against slow references, their losses, their keys, and what takes them."""

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn import functional as F

from rpe_d2.baselines import DeconvNetHead, FCNHead, MultiScaleSemSegHead, RecurrentConvSemSegHead
from rpe_d2.modeling.embedding.pixel_losses import SemanticPairLoss, mean_cross_entropy
from tests.helpers.models import plain_backbone, small_cfg, training_input
from tests.reference import semantic_heads as slow
from tests.reference.pair_loss import dense_pair_loss

IGNORED = 255
SEMANTIC = (
    "MODEL.META_ARCHITECTURE", "SemanticSegmentor", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 4,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM", 32,
)  # fmt: skip
FPN = (*SEMANTIC, "MODEL.SEM_SEG_HEAD.NAME", "SemSegFPNHead")  # Detectron2's
EMBEDDING = (*SEMANTIC, "MODEL.SEM_SEG_HEAD.NAME", "EmbeddingSemSegHead")
FCN = (
    *SEMANTIC, *plain_backbone("res3", "res4", "res5"), "MODEL.SEM_SEG_HEAD.NAME", "FCNHead",
    "MODEL.SEM_SEG_HEAD.IN_FEATURES", ["res5", "res3", "res4"],
)  # fmt: skip
VGG = ["fc7", *[f"pool{number}_indices" for number in range(1, 6)]]
DECONVNET = (
    *SEMANTIC, "MODEL.BACKBONE.NAME", "build_vgg16_backbone", "MODEL.VGG.OUT_FEATURES", VGG,
    "MODEL.VGG.WIDTH", 0.125, "MODEL.VGG.FC_DIM", 32, "MODEL.VGG.NORM", "BN",
    "MODEL.SEM_SEG_HEAD.NAME", "DeconvNetHead", "MODEL.SEM_SEG_HEAD.IN_FEATURES", VGG,
    "MODEL.SEM_SEG_HEAD.NORM", "BN",
)  # fmt: skip
BANDS = ["res2", "res3", "res2@0.5", "res3@0.5", "res3@0.25"]
MULTI_SCALE = (
    *SEMANTIC, *plain_backbone("res2", "res3"), "MODEL.BACKBONE.NAME", "build_guided_backbone",
    "MODEL.GUIDED_BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.NORM", "GN",
    "MODEL.GUIDED_BACKBONE.SCALES", [1.0, 0.5, 0.25], "MODEL.GUIDED_BACKBONE.PYRAMID", "laplacian",
    "MODEL.SEM_SEG_HEAD.NAME", "MultiScaleSemSegHead", "MODEL.SEM_SEG_HEAD.IN_FEATURES", BANDS,
)  # fmt: skip
RECURRENT = (
    *SEMANTIC, *plain_backbone("res3"), "MODEL.BACKBONE.NAME", "build_guided_backbone",
    "MODEL.GUIDED_BACKBONE.NAME", "build_resnet_backbone",
    "MODEL.SEM_SEG_HEAD.NAME", "RecurrentConvSemSegHead",
    "MODEL.SEM_SEG_HEAD.IN_FEATURES", ["image", "res3"],
)  # fmt: skip
HEADS = {
    "embedding": EMBEDDING,
    "fcn": FCN,
    "deconvnet": DECONVNET,
    "multi_scale": MULTI_SCALE,
    "recurrent": RECURRENT,
}
each_head = pytest.mark.parametrize("overrides", HEADS.values(), ids=HEADS)


def weight(value):
    return "MODEL.SEM_SEG_HEAD.PAIR_LOSS_WEIGHT", value


def model_of(*overrides):
    torch.manual_seed(0)
    return build_model(small_cfg(*overrides))


def semantic_input(size=(70, 90), seed=1, num_classes=4):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, num_classes, size, generator=generator)
    labels[:5] = IGNORED
    image = torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)
    return {"image": image, "sem_seg": labels, "height": size[0], "width": size[1]}


# ---- What all heads have in common


@each_head
def test_losses_reach_every_parameter_and_scores_have_the_pictures_size(overrides):
    model = model_of(*overrides, *weight(0.7))
    losses = model([semantic_input(), semantic_input((64, 48), seed=2)])
    assert {"loss_sem_seg", "loss_sem_seg_pair"} <= set(losses)
    sum(losses.values()).backward()
    assert all(
        p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0
        for p in model.sem_seg_head.parameters()
    )
    model.eval()
    with torch.no_grad():
        found = model([{**semantic_input((61, 45)), "height": 122, "width": 90}])[0]["sem_seg"]
    assert found.shape == (4, 122, 90) and found.isfinite().all()


@each_head
def test_the_pair_loss_is_an_auxiliary(overrides):
    """The same parameters but for the embedding branch, the same scores, no such loss without it."""
    plain, learning = model_of(*overrides, *weight(0.0)), model_of(*overrides, *weight(2.0))
    missing, unexpected = learning.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert all(name.startswith("sem_seg_head.embedding.") for name in missing)
    assert bool(missing) == (overrides is not EMBEDDING)
    item = semantic_input()
    torch.manual_seed(1)
    without = plain([item])
    torch.manual_seed(1)
    with_pairs = learning([item])
    assert not any("pair" in name for name in without)
    added = {name for name in with_pairs if name not in without}
    assert added and all("pair" in name for name in added)
    for name in without:
        torch.testing.assert_close(without[name], with_pairs[name])
    sum(without.values()).backward()
    assert all(p.grad is not None for p in plain.sem_seg_head.parameters())
    plain.eval(), learning.eval()
    with torch.no_grad():
        torch.testing.assert_close(plain([item])[0]["sem_seg"], learning([item])[0]["sem_seg"])


@each_head
def test_ignored_pixels_have_no_say(overrides):
    model = model_of(*overrides, *weight(1.0)).eval()
    model.sem_seg_head.train()
    for module in model.sem_seg_head.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    features = model.backbone((torch.rand(1, 3, 64, 64) - 0.5) * 4)
    targets = semantic_input((64, 64))["sem_seg"][None]
    targets[:, 20:] = IGNORED
    head = model.sem_seg_head
    head.pair_loss.num_points = 64 * 64  # all: no chance involved
    _, losses = head(features, targets)
    changed = targets.clone()
    changed[:, 20:40] = 2
    _, others = head(features, changed)
    for name in losses:
        assert losses[name] != others[name]
    # Of one class nothing is to be told apart; of none nothing at all is learned.
    _, nothing = head(features, torch.full_like(targets, IGNORED))
    sum(nothing.values()).backward()
    assert all(loss == 0 for loss in nothing.values())
    assert all(p.grad is not None and p.grad.abs().sum() == 0 for p in head.parameters())


def with_propagation(overrides, *more):
    """The head of a configuration, refined."""
    name = overrides[overrides.index("MODEL.SEM_SEG_HEAD.NAME") + 1]
    stride = 1 if name == "DeconvNetHead" else 2
    fine = {
        "EmbeddingSemSegHead": ["p2"], "SemSegFPNHead": ["p2"], "FCNHead": ["res3"], "DeconvNetHead": ["fc7"]
    }.get(name, ["image"])  # fmt: skip
    model = model_of(
        *overrides, *weight(1.0), "MODEL.SEM_SEG_HEAD.NAME", "SPNSemSegHead",
        "MODEL.SPN.SEM_SEG_HEAD", name, "MODEL.SPN.STRIDE", stride, "MODEL.SPN.IN_FEATURES", fine,
        "MODEL.SPN.CONV_DIM", 32, "MODEL.SPN.CHANNELS", 4, *more,
    )  # fmt: skip
    nn.init.normal_(model.sem_seg_head.propagation.project.weight, std=0.1)
    return model


@each_head
@pytest.mark.parametrize("size", [(64, 64), (70, 90), (67, 85)])
def test_spn_takes_any_of_them(overrides, size):
    model = with_propagation(overrides)
    losses = model([semantic_input(size)])
    expected = {"loss_sem_seg", "loss_sem_seg_refined", "loss_sem_seg_pair"}
    if overrides is RECURRENT:  # of every pass
        expected |= {f"loss_sem_seg_pass{number}" for number in (1, 2, 3)}
    assert set(losses) == expected
    losses["loss_sem_seg_pair"].backward(retain_graph=True)
    for part in (model.sem_seg_head.embedding, model.sem_seg_head.propagation.hidden):
        assert all(p.grad.abs().sum() > 0 for p in part.parameters())
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.sem_seg_head.parameters())
    model.eval()
    with torch.no_grad():
        assert model([semantic_input(size)])[0]["sem_seg"].shape == (4, *size)


@pytest.mark.parametrize("overrides", [FCN, RECURRENT, FPN], ids=["fcn", "recurrent", "fpn"])
def test_spn_learns_nothing_where_all_is_ignored(overrides):
    model = with_propagation(overrides)
    item = semantic_input((64, 64))
    item["sem_seg"][:] = IGNORED
    losses = model([item, item])
    sum(losses.values()).backward()
    assert all(loss == 0 for loss in losses.values())
    assert all(
        p.grad is not None and p.grad.abs().sum() == 0 for p in model.sem_seg_head.parameters()
    )


def test_without_units_all_parameters_take_part():
    model = with_propagation(FCN, "MODEL.SPN.NUM_UNITS", 0)
    losses = model([semantic_input((64, 64))])
    sum(losses.values()).backward()
    head = model.sem_seg_head
    assert all(p.grad is not None for p in head.parameters())
    assert all(p.grad.abs().sum() == 0 for p in head.guidance.parameters())
    assert all(p.grad.abs().sum() > 0 for p in head.propagation.parameters())


def test_cross_entropy_is_the_slow_one():
    torch.manual_seed(0)
    scores = torch.randn(3, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 4, (3, 5, 6))
    targets[0, :2], targets[1] = IGNORED, IGNORED
    found = mean_cross_entropy(scores, targets, IGNORED)
    expected = slow.cross_entropy(scores.detach().numpy(), targets.numpy(), IGNORED)
    assert found.item() == pytest.approx(expected, abs=1e-12)
    assert torch.autograd.gradcheck(lambda x: mean_cross_entropy(x, targets, IGNORED), scores)


def test_the_pair_loss_is_the_slow_one_on_classes():
    torch.manual_seed(0)
    options = {"margin": 0.3, "form": "linear", "normalization": "per_term"}
    loss = SemanticPairLoss(
        embedding_dim=3, num_points=1000, ignore_value=IGNORED, loss_weight=2.0,
        positive_weight=1.0, negative_weight=3.0, **options,
    )  # fmt: skip
    embeddings = torch.randn(2, 3, 4, 6)
    targets = torch.randint(0, 3, (2, 4, 6))
    targets[0, 0], targets[1, :, :2] = IGNORED, IGNORED
    found = loss(embeddings, 1, targets)["loss_sem_seg_pair"]
    expected = 0.0
    for maps, labels in zip(embeddings, targets):
        expected += dense_pair_loss(
            maps.flatten(1).T,
            labels.flatten(),
            negative_weight=3.0,
            ignore_label=IGNORED,
            **options,
        )
    assert found.item() == pytest.approx(float(expected), rel=1e-5)


# ---- FCN


def small_head(kind, shapes, **options):
    torch.manual_seed(0)
    common = {"num_classes": 3, "ignore_value": IGNORED, "loss_weight": 1.0, "pair_loss": None}
    head = kind(shapes, **common, **options).double()
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.5)
    return head


def array(tensor):
    return tensor.detach().numpy()


@pytest.mark.parametrize("strides", [(32,), (16, 32), (8, 16, 32)], ids=["32s", "16s", "8s"])
def test_fcn_sums_scores_from_coarse_to_fine(strides):
    shapes = {f"m{stride}": ShapeSpec(channels=stride // 4, stride=stride) for stride in strides}
    head = small_head(FCNHead, shapes)
    features = {
        name: torch.randn(1, shape.channels, 64 // shape.stride, 96 // shape.stride).double()
        for name, shape in shapes.items()
    }
    total = None
    for stride in reversed(strides):
        layer = head.predictor.score[f"m{stride}"]
        score = slow.conv(array(features[f"m{stride}"])[0], array(layer.weight), array(layer.bias))
        total = score if total is None else slow.enlarge(total, 2) + score
    assert head.common_stride == strides[0]
    np.testing.assert_allclose(array(head.layers(features))[0], total, atol=1e-12)
    found, _ = head.eval()(features)
    np.testing.assert_allclose(array(found)[0], slow.enlarge(total, strides[0]), atol=1e-12)


def test_fcn_starts_from_its_coarsest_scores():
    model = model_of(*FCN).eval()
    head = model.sem_seg_head
    assert head.predictor.names == ["res5", "res4", "res3"]
    features = model.backbone(torch.randn(1, 3, 64, 64))
    coarse = head.predictor.score["res5"](features["res5"])
    for _ in range(2):
        coarse = F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(head.layers(features), coarse)


# ---- DeconvNet


def test_deconvnet_unpools_by_stored_indices():
    shapes = {
        "fc7": ShapeSpec(channels=5, stride=4),
        "pool1_indices": ShapeSpec(channels=2, stride=2),
        "pool2_indices": ShapeSpec(channels=3, stride=4),
    }
    head = small_head(
        DeconvNetHead, shapes, in_feature="fc7",
        poolings=["pool1_indices", "pool2_indices"], norm="",
    )  # fmt: skip
    rng = np.random.default_rng(0)
    _, first = slow.max_pool(rng.standard_normal((2, 8, 12)))
    _, second = slow.max_pool(rng.standard_normal((3, 4, 6)))
    start = rng.standard_normal((5, 2, 3))
    features = {
        "fc7": torch.from_numpy(start)[None],
        "pool1_indices": torch.from_numpy(first)[None],
        "pool2_indices": torch.from_numpy(second)[None],
    }

    def apply(module, maps):
        return slow.transposed_conv(maps, array(module[0].weight), array(module[0].bias))

    x = apply(head.first, start)
    for block, places in zip(head.blocks, (second, first)):
        x = slow.unpool(np.maximum(x, 0), places)
        for layer in block:  # the very last one's values stay as they are
            x = apply(layer, np.maximum(x, 0))
    assert x.min() < 0
    assert [len(block) for block in head.blocks] == [2, 2]
    np.testing.assert_allclose(array(head.pixel_features(features))[0], x, atol=1e-10)
    scores = slow.conv(x, array(head.predictor.weight), array(head.predictor.bias))
    np.testing.assert_allclose(array(head.eval()(features)[0])[0], scores, atol=1e-10)


def test_deconvnet_starts_as_large_as_its_input():
    shapes = {
        "fc7": ShapeSpec(channels=256, stride=2),
        "pool1_indices": ShapeSpec(channels=32, stride=2),
    }
    torch.manual_seed(0)
    head = DeconvNetHead(
        shapes, in_feature="fc7", poolings=["pool1_indices"], norm="", num_classes=3,
        ignore_value=IGNORED, loss_weight=1.0, pair_loss=None,
    )  # fmt: skip
    x = torch.randn(2, 256, 16, 16).relu()
    with torch.no_grad():
        found = head.first(x)[..., 3:-3, 3:-3]
        assert found.square().mean().item() == pytest.approx(x.square().mean().item(), rel=0.3)
        found = head.blocks[0][-1](torch.randn(2, 32, 16, 16))[..., 1:-1, 1:-1]
        assert found.square().mean().item() == pytest.approx(1, rel=0.3)


def test_deconvnet_mirrors_vgg():
    head = model_of(*DECONVNET, "MODEL.VGG.WIDTH", 0.25).sem_seg_head
    layers = [[(layer[0].in_channels, layer[0].out_channels) for layer in b] for b in head.blocks]
    assert layers == [
        [(128, 128), (128, 128), (128, 128)],
        [(128, 128), (128, 128), (128, 64)],
        [(64, 64), (64, 64), (64, 32)],
        [(32, 32), (32, 16)],
        [(16, 16), (16, 16)],
    ]
    assert head.first[0].kernel_size == (7, 7) and head.common_stride == 1


# ---- Scales


def test_scales_are_enlarged_and_stacked():
    shapes = {
        "a": ShapeSpec(channels=2, stride=4),
        "b@0.5": ShapeSpec(channels=3, stride=8),
        "b@0.25": ShapeSpec(channels=1, stride=16),
    }
    head = small_head(MultiScaleSemSegHead, shapes, hidden_dim=4, norm="")
    features = {
        name: torch.randn(1, s.channels, 32 // s.stride, 48 // s.stride).double()
        for name, s in shapes.items()
    }
    maps = [slow.enlarge(array(features[n])[0], s.stride // 4) for n, s in shapes.items()]
    stacked = np.concatenate(maps)
    hidden = np.maximum(slow.conv(stacked, array(head.hidden.weight), array(head.hidden.bias)), 0)
    expected = slow.conv(hidden, array(head.predictor.weight), array(head.predictor.bias))
    np.testing.assert_allclose(array(head.layers(features))[0], expected, atol=1e-12)
    assert head.common_stride == 4


# ---- Recurrence


def recurrent_head(scales):
    shapes = {"image": ShapeSpec(channels=3, stride=1), "m": ShapeSpec(channels=2, stride=4)}
    return small_head(
        RecurrentConvSemSegHead, shapes, scales=scales, conv_dim=4, num_convs=1, norm=""
    )


@pytest.mark.parametrize("size", [(16, 24), (13, 22)])
@pytest.mark.parametrize("scales", [(0.25, 0.5, 1.0), (1.0, 0.5), (0.5, 0.5)])
def test_passes_are_the_slow_ones(scales, size):
    head = recurrent_head(scales)
    rows, columns = (-(-side // 4) for side in size)
    features = {
        "image": torch.randn(1, 3, *size).double(),
        "m": torch.randn(1, 2, rows, columns).double(),
    }
    # Maps of 16 x 24 pixels: zeros lie around them.
    image = slow.padded(array(features["image"])[0], 16, 24)
    other = slow.padded(array(features["m"])[0], 4, 6)
    first, second = head.network
    scores, expected = None, []
    for scale in scales:
        height, width = round(16 * scale), round(24 * scale)
        seen = [slow.average(image, round(1 / scale)), fit(other, height)]
        seen.append(np.zeros((3, height, width)) if scores is None else fit(scores, height))
        x = np.concatenate(seen)
        x = np.maximum(slow.conv(x, array(first.weight), array(first.bias), stride=2), 0)
        x = np.maximum(slow.conv(x, array(second.weight), array(second.bias)), 0)
        scores = slow.conv(x, array(head.predictor.weight), array(head.predictor.bias))
        expected.append(scores)
    found = head.passes(features)
    assert [maps.stride for maps in found] == [round(2 / scale) for scale in scales]
    for maps, reference in zip(found, expected):
        rows, columns = (-(-side // maps.stride) for side in size)
        assert maps.scores.shape[-2:] == (rows, columns)
        inside = reference[:, :rows, :columns]
        np.testing.assert_allclose(array(maps.scores)[0], inside, atol=1e-10)
    expected = [array(maps.scores)[0] for maps in found]
    targets = torch.randint(0, 3, (1, *size))
    _, losses = head(features, targets)
    for number, (maps, reference) in enumerate(zip(found, expected), start=1):
        name = "loss_sem_seg" + ("" if number == len(found) else f"_pass{number}")
        full = slow.enlarge(reference, maps.stride)[:, : size[0], : size[1]]
        error = slow.cross_entropy(full[None], targets.numpy(), IGNORED)
        assert losses[name].item() == pytest.approx(error, rel=1e-6)
    assert len(losses) == len(scales)


def test_maps_of_a_pass_lie_where_the_picture_does():
    """Maps that hold their own positions, in a picture whose size is no multiple of any stride."""
    head = recurrent_head((0.25, 0.5, 1.0))
    seen = []
    head.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    features = {
        "image": (torch.arange(98) + 0.5).expand(1, 3, 70, 98).double(),
        "m": ((torch.arange(25) + 0.5) * 4).expand(1, 2, 18, 25).double(),
    }
    head.passes(features)
    for maps, factor in zip(seen, (4, 2, 1)):
        inside = slice(8 // factor, 92 // factor)  # beyond, zeros come in
        expected = (torch.arange(maps.shape[-1]) + 0.5).double() * factor
        for channel in (0, 3):
            row = maps[0, channel, 32 // factor]
            torch.testing.assert_close(row[inside], expected[inside])


def fit(maps, height):
    """To another height, and the width that goes with it."""
    if maps.shape[1] >= height:
        return slow.average(maps, maps.shape[1] // height)
    return slow.enlarge(maps, height // maps.shape[1])


# ---- In a panoptic FPN


def test_panoptic_fpn_with_mean_shift_proposals():
    overrides = (
        *EMBEDDING, "MODEL.META_ARCHITECTURE", "PanopticFPN", "MODEL.MASK_ON", True,
        "MODEL.PROPOSAL_GENERATOR.NAME", "MeanShiftProposalGenerator",
        "MODEL.ROI_HEADS.NAME", "StandardROIHeads", "MODEL.ROI_HEADS.NUM_CLASSES", 3,
        "MODEL.ROI_HEADS.IN_FEATURES", ["p2", "p3", "p4"],
        "MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead", "MODEL.ROI_BOX_HEAD.NUM_FC", 1,
        "MODEL.ROI_BOX_HEAD.FC_DIM", 32, "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 7,
        "MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead", "MODEL.ROI_MASK_HEAD.NUM_CONV", 1,
        "MODEL.ROI_MASK_HEAD.CONV_DIM", 32, "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", 14,
        "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH", 0.0,
        "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT", 1,
    )  # fmt: skip
    model = model_of(*overrides)
    item = training_input()
    item["sem_seg"] = torch.randint(0, 4, item["image"].shape[1:])
    with EventStorage():
        losses = model([item, item])
    assert {"loss_sem_seg", "loss_sem_seg_pair", "loss_rpe_pair", "loss_cls", "loss_mask"} <= set(
        losses
    )
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    model.eval()
    with torch.no_grad():
        found = model([training_input()])[0]
    assert found["sem_seg"].shape == (4, 64, 96)
    assert found["instances"].pred_masks.shape[1:] == (64, 96)
    segments, infos = found["panoptic_seg"]
    assert segments.shape == (64, 96) and set(segments.unique().tolist()) - {0} == {
        info["id"] for info in infos
    }


# ---- Keys

BROKEN = (
    *plain_backbone("res3"), "MODEL.BACKBONE.NAME", "build_guided_backbone",
    "MODEL.GUIDED_BACKBONE.NAME", "build_resnet_backbone", "MODEL.GUIDED_BACKBONE.SCALES", [1.0, 0.3],
)  # fmt: skip


@pytest.mark.parametrize(
    "overrides, message",
    [
        ((*EMBEDDING, *weight(-2.0)), "MODEL.SEM_SEG_HEAD.PAIR_LOSS_WEIGHT is -2.0; allowed: -1 or more"),
        ((*EMBEDDING, "MODEL.SEM_SEG_HEAD.COMMON_STRIDE", 3), "MODEL.SEM_SEG_HEAD.COMMON_STRIDE is 3; allowed: 1, 2"),
        ((*EMBEDDING, "MODEL.RPE.PAIR_LOSS_FORM", "cubic"), "MODEL.RPE.PAIR_LOSS_FORM is 'cubic'; allowed: linear"),
        ((*EMBEDDING, "MODEL.SEM_SEG_HEAD.IN_FEATURES", ["p9"]), "IN_FEATURES names p9; the backbone has"),
        ((*FCN, "MODEL.SEM_SEG_HEAD.IN_FEATURES", ["res3", "res5"]), "strides 8, 32; FCNHead allows whole pixels, each twice"),
        ((*FCN, *BROKEN, "MODEL.SEM_SEG_HEAD.IN_FEATURES", ["res3@0.3"]), "strides 26.6667; FCNHead allows whole"),
        ((*EMBEDDING, *BROKEN, "MODEL.SEM_SEG_HEAD.IN_FEATURES", ["res3", "res3@0.3"]),
         "res3, res3@0.3; res3@0.3 has the stride 26.6667, allowed are whole pixels"),
        ((*DECONVNET, "MODEL.SEM_SEG_HEAD.IN_FEATURES", ["fc7"]), "is fc7; DeconvNetHead allows one map"),
        ((*DECONVNET, "MODEL.SEM_SEG_HEAD.IN_FEATURES", VGG[:3]), "fc7 has the stride 32, pool2_indices 4"),
        ((*MULTI_SCALE, "MODEL.GUIDED_BACKBONE.SCALES", [1.0, 0.3], "MODEL.SEM_SEG_HEAD.IN_FEATURES",
          ["res2", "res2@0.3"]), "strides 4, 13.3333; MultiScaleSemSegHead allows multiples"),
        ((*RECURRENT, "MODEL.SEM_SEG_HEAD.RECURRENT_SCALES", [0.3]), "RECURRENT_SCALES is .0.3.; allowed"),
        ((*RECURRENT, "MODEL.GUIDED_BACKBONE.SCALES", [1.0, 0.3], "MODEL.SEM_SEG_HEAD.IN_FEATURES",
          ["image", "res3@0.3"]), "res3@0.3 has the stride 26.6667; RecurrentConvSemSegHead allows whole"),
        ((*RECURRENT, "MODEL.SEM_SEG_HEAD.NUM_CONVS", -1), "MODEL.SEM_SEG_HEAD.NUM_CONVS is -1; allowed: 0 or more"),
    ],
)  # fmt: skip
def test_a_wrong_key_is_one_line(overrides, message):
    with pytest.raises(ValueError, match=message) as error:
        model_of(*overrides)
    assert "\n" not in str(error.value)
