import torch
from torch import nn
from torch.nn import functional as F

from rpe_d2.baselines import FilterBank
from tests.helpers.semantic_heads import semantic_input, semantic_model

MULTI_SCALE = """
MODEL:
  BACKBONE: {NAME: build_guided_backbone}
  GUIDED_BACKBONE:
    NAME: build_filter_bank_backbone
    SCALES: [1.0, 0.5, 0.25]
    PYRAMID: laplacian
  SEM_SEG_HEAD:
    NAME: MultiScaleSemSegHead
    IN_FEATURES: [bank, bank@0.5, bank@0.25]
    NORM: ""
    ACTIVATION: tanh
"""


def test_a_cell_sees_46_pixels_around_its_center():
    torch.manual_seed(0)
    bank = FilterBank(3, channels=(4, 5, 6)).double()
    image = torch.randn(1, 3, 64, 96, dtype=torch.float64, requires_grad=True)
    maps = bank(image)["bank"]
    shape = bank.output_shape()["bank"]
    assert maps.shape == (1, 6, 16, 24) and shape.channels == 6 and shape.stride == 4
    maps[0, :, 8, 10].sum().backward()
    rows, columns = (image.grad[0].abs().sum(dim=0) > 0).nonzero(as_tuple=True)
    # The center of the cell is at 4 * 8 + 1.5 and 4 * 10 + 1.5.
    assert (rows.min(), rows.max()) == (33.5 - 22.5, 33.5 + 22.5)
    assert (columns.min(), columns.max()) == (41.5 - 22.5, 41.5 + 22.5)


def test_banks_are_convolutions_with_tanh_and_pooling():
    torch.manual_seed(0)
    bank = FilterBank(1, channels=(2, 3, 4), kernel_size=3)
    image = torch.randn(1, 1, 8, 8)
    first, second, third = bank.network.convs
    x = F.pad(image, (bank.margins[0], bank.margins[1]) * 2)
    x = F.max_pool2d(F.conv2d(x, first.weight, first.bias).tanh(), 2)
    x = F.max_pool2d(F.conv2d(x, second.weight, second.bias).tanh(), 2)
    x = F.conv2d(x, third.weight, third.bias)
    torch.testing.assert_close(bank(image)["bank"], x)


def test_one_network_serves_all_scales():
    model = semantic_model(MULTI_SCALE)
    convs = [m for m in model.backbone.modules() if isinstance(m, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels, c.kernel_size[0]) for c in convs] == [
        (3, 16, 7),
        (16, 64, 7),
        (64, 256, 7),
    ]
    assert model.sem_seg_head.hidden.in_channels == 3 * 256
    losses = model([semantic_input((40, 50)), semantic_input((33, 21), seed=2)])
    assert set(losses) == {"loss_sem_seg"}
    losses["loss_sem_seg"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name


def test_the_hidden_layer_has_tanh():
    head = semantic_model(MULTI_SCALE).sem_seg_head.eval()
    features = {
        name: torch.randn(1, 256, side, side)
        for name, side in (("bank", 8), ("bank@0.5", 4), ("bank@0.25", 2))
    }
    stacked = head.stacked(features)
    hidden = F.conv2d(stacked, head.hidden.weight, head.hidden.bias).tanh()
    torch.testing.assert_close(head.layers(features), head.predictor(hidden))
