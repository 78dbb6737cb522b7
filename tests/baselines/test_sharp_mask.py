"""SharpMask: what is trained, its skip maps and the settings of its authors."""

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from rpe_d2.baselines import SharpMask
from rpe_d2.baselines.sharp_mask import SharpLevel
from rpe_d2.baselines.windows import window_grid
from tests.helpers.configs import small_cfg_with
from tests.helpers.window_models import DEEP, SHARP, images_of, item_of, model_of, pyramid_of

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


def test_sharpmask_needs_weights():
    message = "MODEL.WEIGHTS is empty; SharpMask refines a trained DeepMask, name its checkpoint"
    cfg = small_cfg_with(*SHARP)
    with pytest.raises(ValueError, match=message):
        SharpMask.check_run(cfg, has_weights=False)
    SharpMask.check_run(cfg, has_weights=True)
