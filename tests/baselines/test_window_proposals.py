"""DeepMask, SharpMask and InstanceFCN: windows, samples, training and proposals."""

import pytest
import torch
from detectron2.structures import ImageList
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn import functional as F

from rpe_d2.baselines import DeepMask, InstanceFCN, SharpMask
from rpe_d2.baselines.sharp_mask import SharpLevel
from rpe_d2.baselines.window_proposals import WindowProposalGenerator, crop_object_masks
from rpe_d2.baselines.windows import IGNORED, NEGATIVE, Windows, WindowTolerances, window_grid
from tests.helpers.baseline_configs import FPN_SHAPES, seeded_model
from tests.helpers.configs import small_cfg_with
from tests.helpers.models import square_instances, training_input

COMMON = """
MODEL:
  META_ARCHITECTURE: ProposalNetwork
  MASK_ON: True
  BACKBONE: {NAME: build_guided_backbone}
  GUIDED_BACKBONE: {SCALES: [1.0, 0.5, 0.7071]}
  RPE: {PROPOSAL_MASK_SIZE: 14}
"""
DEEP_MASK = """
MODEL:
  PROPOSAL_GENERATOR: {NAME: DeepMask}
  DEEPMASK:
    IN_FEATURES: [p2@0.5, p2@0.7071, p2]
    WINDOW: 8
    CONV_DIM: 16
    CODE_DIM: 32
    SCORE_DIM: 32
    MASK_SIZE: 16
    PRE_NMS_TOPK: 40
    POST_NMS_TOPK_TRAIN: 20
    POST_NMS_TOPK_TEST: 10
"""
SHARP_MASK = """
MODEL:
  PROPOSAL_GENERATOR: {NAME: SharpMask}
  GUIDED_BACKBONE: {STEM: True, FREEZE: True}
  DEEPMASK: {SHARPMASK_FEATURES: [p2, stem]}
"""
INSTANCE_FCN = """
MODEL:
  PROPOSAL_GENERATOR: {NAME: InstanceFCN}
  INSTANCE_FCN:
    IN_FEATURES: [p2@0.5, p2@0.7071, p2]
    WINDOW: 9
    PARTS: 3
    CONV_DIM: 16
    PRE_NMS_TOPK: 40
    POST_NMS_TOPK_TRAIN: 20
    POST_NMS_TOPK_TEST: 10
"""
DEEP = (COMMON, DEEP_MASK)
SHARP = (COMMON, DEEP_MASK, SHARP_MASK)
INSTANCE = (COMMON, INSTANCE_FCN)
RCNN = """
MODEL:
  META_ARCHITECTURE: GeneralizedRCNN
  ROI_HEADS:
    NAME: StandardROIHeads
    IN_FEATURES: [p2, p3]
    NUM_CLASSES: 3
    BATCH_SIZE_PER_IMAGE: 16
    SCORE_THRESH_TEST: 0.0
  ROI_BOX_HEAD: {NAME: FastRCNNConvFCHead, NUM_FC: 1, FC_DIM: 16, POOLER_RESOLUTION: 7}
  ROI_MASK_HEAD: {NAME: MaskRCNNConvUpsampleHead, NUM_CONV: 1, CONV_DIM: 16}
"""
# The settings of the authors' SharpMask, with few proposals.
RESNET_50 = """
MODEL:
  GUIDED_BACKBONE: {NAME: build_resnet_backbone}
  RESNETS: {DEPTH: 50, RES2_OUT_CHANNELS: 256, OUT_FEATURES: [res2, res3, res4]}
  DEEPMASK:
    IN_FEATURES: [res4, res4@0.5]
    WINDOW: 10
    SHARPMASK_FEATURES: [res4, res3, res2, stem]
    PRE_NMS_TOPK: 3
"""
# The longer sides are canonical at the scales 1 / 2 and 1: windows of 8 cells have 64 and 32
# pixels.
SQUARES = ((12, 12, 48, 48), (56, 20, 74, 38))
each_generator = pytest.mark.parametrize(
    "texts", [DEEP, SHARP, INSTANCE], ids=["deep", "sharp", "fcn"]
)


def model_of(*texts):
    """Builds a model, with the little dropout that suits few training steps."""
    model = seeded_model(*texts)
    if isinstance(model.proposal_generator, DeepMask):
        model.proposal_generator.head.dropout = 0.1
    return model


def item_of(size=(64, 96), squares=SQUARES):
    return training_input(size, squares, (0,) * len(squares))


def images_of(model, *items):
    """Returns the padded batch that both networks of Detectron2 make."""
    mean, std = model.pixel_mean, model.pixel_std
    images = [(item["image"].to(mean) - mean) / std for item in items]
    return ImageList.from_tensors(images, model.backbone.size_divisibility)


def pyramid_of(model, *items):
    """Returns the generator, the windows, the pyramid and the padded batch."""
    images = images_of(model, *items)
    features = model.backbone(images.tensor)
    generator = model.proposal_generator
    maps = [features[name] for name in generator.in_features]
    grid = window_grid(maps, generator.strides, generator.window)
    return generator, grid, generator.pyramid(features), images


@each_generator
def test_dense_codes_equal_those_of_single_windows(texts):
    """Codes and masks of a window, also beyond the border, do not depend on other windows."""
    model = model_of(*texts).double().eval()
    generator, grid, pyramid, _ = pyramid_of(model, item_of(), item_of((96, 64), ()))
    index = torch.randperm(len(grid.level), generator=torch.Generator().manual_seed(1))[:50]
    index = torch.cat([index, torch.tensor([0, len(grid.level) - 1])])
    windows = grid.select(torch.arange(len(index)) % 2, index)
    dense = [generator.window_codes(level) for level in pyramid]
    codes = generator.sampled_codes(pyramid, windows)
    for number in range(len(index)):
        level, image, row, column = (int(part[number]) for part in windows)
        torch.testing.assert_close(dense[level][image, :, row, column], codes[number])
    masks = generator.masks(pyramid, codes, windows)
    one = Windows(*(part[7:8] for part in windows))
    torch.testing.assert_close(generator.masks(pyramid, codes[7:8], one)[0], masks[7])
    # The levels and the grid have the same windows.
    assert sum(part[0, 0].numel() for part in dense) == len(grid.level)


def test_a_window_is_a_patch_of_the_features():
    """A code is DeepMask's layer applied to a patch of the features, which is padded with zeros."""
    model = model_of(*DEEP).double().eval()
    images = images_of(model, item_of())
    features = model.backbone(images.tensor)
    generator = model.proposal_generator
    head, cells = generator.head, generator.window
    maps = F.relu(head.conv(features["p2"]))[0]
    dense = generator.window_codes(generator.pyramid(features)[2])[0]
    for row, column in ((0, 0), (9, 14), (dense.shape[1] - 1, dense.shape[2] - 1)):
        patch = maps.new_zeros(len(maps), cells, cells)
        for i in range(cells):
            for j in range(cells):
                y, x = row + i - cells // 2, column + j - cells // 2
                if 0 <= y < maps.shape[1] and 0 <= x < maps.shape[2]:
                    patch[:, i, j] = maps[:, y, x]
        code = head.code.weight.flatten(1) @ patch.flatten() + head.code.bias
        torch.testing.assert_close(dense[:, row, column], code)


def test_the_base_class_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        WindowProposalGenerator({}, in_features=[], window=1)


def test_windows_are_centered_on_their_cells():
    grid = window_grid([torch.zeros(1, 1, 4, 6), torch.zeros(1, 1, 2, 3)], [4, 8.0], 8)
    assert grid.boxes[0].tolist() == [-16, -16, 16, 16] and len(grid.boxes) == 5 * 7 + 3 * 4
    assert grid.boxes[-1].tolist() == [-8, -16, 56, 48]
    assert grid.level.bincount().tolist() == [35, 12]
    odd = window_grid([torch.zeros(1, 1, 4, 6)], [4], 5)
    assert odd.centers[0].tolist() == [2, 2] and odd.centers[-1].tolist() == [22, 14]
    assert odd.centered_in((14, 20)).sum() == 4 * 5


@each_generator
def test_equal_numbers_of_positive_and_negative_windows_are_sampled(texts):
    generator, grid, *_ = pyramid_of(model_of(*texts), item_of(), item_of())
    targetss = [item_of()["instances"], square_instances((64, 96), [], [])]
    labels = torch.stack([generator.label(grid, targets) for targets in targetss])
    assert set(labels[0].tolist()) == {NEGATIVE, IGNORED, 0, 1}
    image, index = generator._sample(labels)
    chosen = labels[image, index]
    assert (chosen >= 0).sum() == min((labels >= 0).sum(), generator.batch_size_per_image // 2)
    # The image without objects has half of the negative windows.
    negatives = image[chosen == NEGATIVE].bincount().tolist()
    assert negatives[0] == negatives[1] == -(-int((chosen >= 0).sum()) // 2)
    assert (chosen != IGNORED).all() and (image.diff() >= 0).all()
    generator.batch_size_per_image = 2
    image, index = generator._sample(labels)
    assert len(image) == 3 and (labels[image, index] >= 0).sum() == 1


def test_windows_outside_of_the_image_are_ignored():
    generator, grid, *_ = pyramid_of(model_of(*DEEP), item_of((96, 96)))
    label = generator.label(grid, item_of((64, 96))["instances"])
    assert (label[grid.centers[:, 1] > 64] == IGNORED).all() and (label == NEGATIVE).any()


def test_mask_targets_are_the_coverage_of_cells():
    targets = square_instances((40, 40), [(8, 8, 24, 24), (0, 0, 4, 4)], [0, 0])
    boxes = torch.tensor([[0.0, 0, 32, 32], [-4.0, -4, 4, 4], [2.0, 0, 34, 32]])
    masks = crop_object_masks(targets, torch.tensor([0, 1, 0]), boxes, 8)
    assert masks[0, 2:6, 2:6].min() == 1 and masks[0].sum() == 16
    # Outside of the image is background, except the adjacent pixel, where RoIAlign repeats the
    # border.
    assert masks[1, 4:, 4:].min() == 1
    assert masks[1, :3].max() == 0 and masks[1, :, :3].max() == 0
    assert masks[2, 3].tolist() == [0, 0.5, 1, 1, 1, 0.5, 0, 0]
    no_objects = torch.zeros(0, dtype=torch.long)
    assert crop_object_masks(targets[:0], no_objects, boxes[:0], 8).shape == (0, 8, 8)


@each_generator
@pytest.mark.parametrize("meta", [(), (RCNN,)], ids=["proposals", "rcnn"])
def test_in_the_networks_of_detectron2(texts, meta):
    """Trains with and without objects, and predicts in the original image size."""
    model = model_of(*texts, *meta)
    small, empty = item_of(), item_of((96, 64), ())
    with EventStorage():
        losses = model([small, empty])
        assert all(loss.isfinite() for loss in losses.values())
        sum(losses.values()).backward()
        trained = [p for p in model.proposal_generator.parameters() if p.requires_grad]
        assert trained and all(p.grad is not None and p.grad.isfinite().all() for p in trained)
        model.zero_grad()
        alone = model([empty])
        assert all(loss.isfinite() for loss in alone.values())
        sum(alone.values()).backward()
        assert all(p.grad is not None for p in trained)
    model.eval()
    found = model([{"image": small["image"], "height": 128, "width": 192}])[0]
    if meta:
        assert found["instances"].image_size == (128, 192)
        assert found["instances"].pred_masks.shape[1:] == (128, 192)
        return
    proposals = found["proposals"]
    assert set(proposals.get_fields()) == {"proposal_boxes", "objectness_logits", "proposal_masks"}
    assert 0 < len(proposals) <= 10 and proposals.image_size == (128, 192)
    assert proposals.proposal_masks.shape == (len(proposals), 14, 14)
    assert proposals.proposal_masks.dtype == torch.uint8
    assert (proposals.objectness_logits.diff() <= 0).all()
    boxes = proposals.proposal_boxes.tensor
    assert (boxes >= 0).all() and (boxes[:, 2] <= 192).all() and (boxes[:, 3] <= 128).all()


@each_generator
def test_proposals_in_training_are_boxes_and_can_be_omitted(texts):
    model = model_of(*texts)
    for topk in (20, 0):
        model.proposal_generator.post_nms_topk[True] = topk
        item = item_of()
        images = images_of(model, item)
        features = model.backbone(images.tensor)
        found, _ = model.proposal_generator(images, features, [item["instances"]])
        assert set(found[0].get_fields()) == {"proposal_boxes", "objectness_logits"}
        assert not found[0].proposal_boxes.tensor.requires_grad
        assert (len(found[0]) > 0) == (topk > 0)
    with pytest.raises(ValueError, match='no "instances" to train on'):
        model.proposal_generator(images, features, None)


@each_generator
def test_masks_in_training_for_heads_that_use_them(texts):
    sds = """
MODEL:
  ROI_HEADS: {NAME: SDSROIHeads}
  PROPOSAL_GENERATOR: {MASKS_IN_TRAINING: True}
"""
    model = model_of(*texts, RCNN, sds)
    with EventStorage():
        losses = model([item_of()])
    assert torch.isfinite(losses["loss_mask"])


def test_crowds_are_background():
    """Detectron2's mapper drops crowds, so the losses are those of an image without them."""
    item = item_of()
    model = model_of(*DEEP)
    model.proposal_generator.head.dropout = 0.0
    crowd = torch.zeros(64, 96, dtype=torch.bool)
    crowd[:, 60:] = True
    found = []
    for batch in ([item], [{**item, "ignore_mask": crowd}]):
        torch.manual_seed(2)
        with EventStorage():
            found.append({name: float(loss) for name, loss in model(batch).items()})
    assert found[0] == found[1]


@pytest.mark.parametrize("texts", [DEEP, INSTANCE], ids=["deep", "fcn"])
def test_training_learns(texts):
    model = model_of(*texts)
    model.proposal_generator.post_nms_topk[True] = 0
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    item, history = item_of(), []
    with EventStorage():
        for _ in range(30):
            losses = model([item])
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
            history.append([float(loss) for loss in losses.values()])
    history = torch.tensor(history)
    assert (history[-10:].mean(dim=0) < 0.8 * history[:2].mean(dim=0)).all(), history[[0, -1]]


def test_sharpmask_trains_only_the_refinement():
    deep, sharp = model_of(*DEEP), model_of(*SHARP)
    missing, unexpected = sharp.load_state_dict(deep.state_dict(), strict=False)
    assert missing and all(".refinement." in name for name in missing)
    # Frozen batch statistics have no count of batches.
    assert all(name.endswith("num_batches_tracked") for name in unexpected)
    before = {name: value.clone() for name, value in sharp.state_dict().items()}
    optimizer = torch.optim.AdamW(
        [p for p in sharp.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1
    )
    history = []
    with EventStorage():
        for _ in range(30):
            losses = sharp([item_of()])
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
            history.append(float(losses["loss_sharpmask"]))
    assert list(losses) == ["loss_sharpmask"] and history[-1] < 0.8 * history[0]
    for name, value in sharp.state_dict().items():
        assert torch.equal(value, before[name]) == (".refinement." not in name), name
    with torch.no_grad():  # the scores are DeepMask's
        images = images_of(deep, item_of())
        scores = [
            model.eval().proposal_generator(images, model.backbone(images.tensor))[0][0]
            for model in (deep, sharp)
        ]
    assert len(scores[0]) == len(scores[1]) == 10
    torch.testing.assert_close(scores[0].objectness_logits, scores[1].objectness_logits)


def test_sharpmask_passes_no_gradient_to_a_trained_backbone():
    model = model_of(*SHARP, "MODEL: {GUIDED_BACKBONE: {FREEZE: False}}")
    with EventStorage():
        sum(model([item_of()]).values()).backward()
    assert all(p.grad is None for p in model.backbone.parameters())
    assert all(p.grad is None for p in model.proposal_generator.head.parameters())


def test_the_sharpmask_of_the_authors():
    """Four refinements on a ResNet-50: 10 cells of stride 16 become masks of 160 pixels."""
    model = model_of(*SHARP, RESNET_50).eval()
    refinement = model.proposal_generator.refinement
    channels = [[conv.out_channels for conv in convs[::2]] for convs in refinement.horizontal]
    assert channels == [[64, 32, 16], [64, 16, 8], [64, 8, 4], [32, 4, 2]]
    generator, grid, pyramid, _ = pyramid_of(model, item_of((70, 90)))
    windows = grid.select(torch.zeros(2, dtype=torch.long), torch.tensor([0, len(grid.level) - 1]))
    codes = generator.sampled_codes(pyramid, windows)
    assert generator.masks(pyramid, codes, windows).shape == (2, 160, 160)


def test_windows_read_the_skip_maps_in_their_boxes():
    """The skip maps hold the positions of their cells, at both strides."""
    generator = model_of(*SHARP).proposal_generator
    refinement = generator.refinement
    refinement.horizontal = nn.ModuleList([nn.Identity(), nn.Identity()])
    refinement.forward = lambda codes, skips: skips

    def places(stride, height, width):
        y, x = ((torch.arange(side) + 0.5) * stride for side in (height, width))
        return torch.stack(torch.meshgrid(y, x, indexing="ij"))[None]

    # The finer map can end before the coarse one.
    features = [places(4, 6, 9), places(2, 12, 17)]
    pyramid = [SharpLevel(None, refinement.padded_skips(features))]
    grid = window_grid(features[:1], [4], 8)
    index = torch.arange(0, len(grid.level), 3)
    windows = grid.select(torch.zeros_like(index), index)
    for found, stride, width in zip(generator.masks(pyramid, None, windows), (4, 2), (36, 34)):
        steps = (torch.arange(32 // stride) + 0.5) * stride
        y = (grid.boxes[index, 1, None] + steps)[:, :, None].expand_as(found[:, 0])
        x = (grid.boxes[index, 0, None] + steps)[:, None, :].expand_as(found[:, 1])
        inside = (x > 0) & (y > 0) & (x < width) & (y < 24)
        assert inside.any() and not inside.all()
        assert torch.equal(found[:, 0], y * inside) and torch.equal(found[:, 1], x * inside)


@pytest.mark.parametrize(
    "base, node, setting, message",
    [
        (DEEP, "DEEPMASK", "WINDOW: 0", "MODEL.DEEPMASK.WINDOW is 0; allowed: 1 or more"),
        (DEEP, "DEEPMASK", "IN_FEATURES: []", "IN_FEATURES is .*; allowed: one or more maps"),
        (DEEP, "DEEPMASK", "IN_FEATURES: [p9]", "DEEPMASK.IN_FEATURES names p9; the backbone"),
        (DEEP, "DEEPMASK", "IN_FEATURES: [p2, image]", "image has 3 channels; allowed: maps with"),
        (DEEP, "DEEPMASK", "POSITIVE_SCALE: 1.0", "POSITIVE_SCALE is 1.0; allowed: less than 1.0"),
        (SHARP, "DEEPMASK", "SHARPMASK_FEATURES: [p3]", "is p3; allowed for windows on p2@0.5: p2"),
        (
            SHARP,
            "DEEPMASK",
            "SHARPMASK_FEATURES: [p2, p3]",
            "MODEL.DEEPMASK.SHARPMASK_FEATURES: p3@0.5 has stride 16; allowed: 4, half",
        ),
        (
            SHARP,
            "GUIDED_BACKBONE",
            "STEM: False",
            "MODEL.DEEPMASK.SHARPMASK_FEATURES needs stem@0.5; the backbone has",
        ),
        (INSTANCE, "INSTANCE_FCN", "WINDOW: 8", "INSTANCE_FCN.WINDOW is 8; allowed: odd numbers"),
    ],
)
def test_a_wrong_key_is_refused_in_one_line(base, node, setting, message):
    with pytest.raises(ValueError, match=message) as error:
        seeded_model(*base, f"MODEL: {{{node}: {{{setting}}}}}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "kind, arguments, message",
    [
        (DeepMask, {"window": 0}, "window is 0; allowed: 1 or more"),
        (DeepMask, {"in_features": []}, r"in_features is \[\]; allowed: one or more"),
        (DeepMask, {"in_features": ["p9"]}, "in_features names p9; the backbone has p2"),
        (DeepMask, {"dropout": 1.0}, "dropout is 1.0; allowed: 0 to"),
        (DeepMask, {"score_loss_weight": -1.0}, "score_loss_weight is -1.0; allowed: 0 or more"),
        (
            SharpMask,
            {"skip_features": ["p2"], "refinement_dim": 7},
            "dim is 7; allowed with 1 skip",
        ),
        (SharpMask, {"skip_features": ["p3"]}, "skip_features is p3; allowed for windows on p2"),
        (InstanceFCN, {"window": 8}, "window is 8; allowed: odd numbers, at least parts, 5"),
        (InstanceFCN, {"mask_threshold": 0.0}, "mask_threshold is 0.0; allowed: 0.01 to 0.99"),
    ],
)
def test_a_wrong_argument_is_refused_in_one_line(kind, arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        kind(FPN_SHAPES, **{"in_features": ["p2"], **arguments})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["shift", "scale"])
def test_positive_tolerances_are_less_than_negative_ones(kind):
    message = f"positive_{kind} is 1.5; allowed: 0 or more, and less than negative_{kind}"
    with pytest.raises(ValueError, match=message):
        WindowTolerances(**{f"positive_{kind}": 1.5})


def test_gaps_between_the_levels_are_reported(caplog):
    with caplog.at_level("WARNING", "rpe_d2"):
        model_of(*DEEP)
        assert not caplog.records
        model_of(*DEEP, "MODEL: {DEEPMASK: {IN_FEATURES: [p2, p3]}}")
    assert "of 18 and of 37 pixels" in caplog.text and "POSITIVE_SCALE to 0.50" in caplog.text


@pytest.mark.parametrize("kind", [DeepMask, SharpMask, InstanceFCN])
def test_generators_declare_their_dataset_mapper(kind):
    assert kind.dataset_mapper_name == "PixelLabelMapper"


def test_sharpmask_needs_weights():
    message = "MODEL.WEIGHTS is empty; SharpMask refines a trained DeepMask, name its checkpoint"
    cfg = small_cfg_with(*SHARP)
    with pytest.raises(ValueError, match=message):
        SharpMask.check_run(cfg, has_weights=False)
    SharpMask.check_run(cfg, has_weights=True)
