"""Labels and colors that are known at a few pixels, spread to all others."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from torch.nn import functional as F

from rpe_d2.engine.host_models import check_run, inference_inputs
from rpe_d2.modeling.sparse_propagation import SparsePropagation
from tests.helpers.configs import small_cfg_with
from tests.reference.propagation import propagate

FEATURES = {"image": ShapeSpec(channels=3, stride=1), "p2": ShapeSpec(channels=8, stride=4)}
SPARSE = """
MODEL:
  META_ARCHITECTURE: SPNRefiner
  BACKBONE: {NAME: build_guided_backbone}
  SEM_SEG_HEAD: {NUM_CLASSES: 3}
  SPN: {NETWORK: sparse_labels, IN_FEATURES: [image, p2], CONV_DIM: 32}
INPUT: {DATASET_MAPPER_NAME: SparsePixelMapper}
"""
COLOR = "MODEL: {SPN: {NETWORK: sparse_color}}"


def small(**options) -> SparsePropagation:
    torch.manual_seed(0)
    network = SparsePropagation(FEATURES, **{"conv_dim": 8, "norm": "", **options})
    torch.nn.init.normal_(network.guidance.predictor.weight, std=0.3)
    return network


def inputs(height: int = 16, width: int = 24, share: float = 0.05):
    generator = torch.Generator().manual_seed(1)
    known = torch.rand(2, height, width, generator=generator) < share
    values = torch.rand(2, 3, height, width, generator=generator) * known[:, None]
    image = torch.randn(2, 3, height, width, generator=generator)
    coarse = torch.randn(2, 8, height // 4, width // 4, generator=generator)
    return values, known, {"image": image, "p2": coarse}


@pytest.mark.parametrize("stride", [1, 2])
def test_values_and_their_mask_are_propagated_with_gates_closed_at_known_cells(stride):
    network, (values, known, features) = small(stride=stride), inputs()
    gates = network.units.normalize(network.guidance(features)).double()
    weights = F.avg_pool2d(known[:, None].double(), stride)
    cells = F.avg_pool2d(values.double(), stride) / weights.clamp(min=1e-9)
    is_known = weights > 0
    maps = torch.cat([cells, is_known.double()], dim=1)
    for _ in range(2):
        maps = propagate(maps, gates * ~is_known[:, None]).mean(dim=0)
    expected = maps[:, :3] / maps[:, 3:]
    torch.testing.assert_close(expected * is_known, cells * is_known)
    if stride == 2:
        expected = F.interpolate(expected, scale_factor=2.0, mode="bilinear")
    spread = network(values, known, features)
    torch.testing.assert_close(spread, expected.float(), rtol=1e-4, atol=1e-5)
    assert spread.min() >= 0 and spread.max() <= values.max() + 1e-6


def test_labels_still_sum_to_1_and_constants_remain():
    network, (_, known, features) = small(), inputs()
    labels = torch.randint(0, 4, known.shape)
    maps = F.one_hot(labels, 4).permute(0, 3, 1, 2) * known[:, None]
    spread = network(maps.float(), known, features)
    torch.testing.assert_close(spread.sum(dim=1), torch.ones(known.shape))
    constant = network(0.3 * known[:, None].float(), known, features)
    torch.testing.assert_close(constant, torch.full_like(constant, 0.3))


def test_cells_that_nothing_reaches_get_the_nearest_value_and_no_image_needs_one():
    network, (_, _, features) = small(stride=1), inputs()
    torch.nn.init.zeros_(network.guidance.predictor.weight)
    torch.nn.init.constant_(network.guidance.predictor.bias, -1e4)
    known = torch.zeros(2, 16, 24, dtype=torch.bool)
    known[0, 3, 4] = known[0, 10, 20] = True
    values = torch.zeros(2, 1, 16, 24)
    values[0, 0, 3, 4], values[0, 0, 10, 20] = 1.0, 2.0
    spread = network(values, known, features)
    y, x = torch.meshgrid(torch.arange(16), torch.arange(24), indexing="ij")
    first = (y - 3) ** 2 + (x - 4) ** 2 < (y - 10) ** 2 + (x - 20) ** 2
    tie = (y - 3) ** 2 + (x - 4) ** 2 == (y - 10) ** 2 + (x - 20) ** 2
    expected = torch.where(first, 1.0, 2.0)
    assert torch.equal(spread[0, 0][~tie], expected[~tie])
    assert not spread[1].any()


def test_many_values_are_spread_in_parts(monkeypatch):
    network, (values, known, features) = small(), inputs()
    whole = network(values, known, features)
    monkeypatch.setattr("rpe_d2.modeling.sparse_propagation._VALUES_PER_CHUNK", 200)
    torch.testing.assert_close(network(values, known, features), whole)


def test_every_parameter_learns():
    network, (values, known, features) = small(), inputs()
    network(values, known, features).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    assert network.guidance.predictor.weight.grad.abs().max() > 0


def regions():
    """An image of three stripes, their labels, and one known pixel in each."""
    labels = torch.zeros(32, 48, dtype=torch.int64)
    labels[:, 10:] = 1
    labels[:, 38:] = 2
    image = (60 + 70 * labels)[None].repeat(3, 1, 1).to(torch.uint8)
    known = torch.zeros(32, 48, dtype=torch.bool)
    known[20, 3] = known[10, 14] = known[30, 44] = True
    return image, labels, known


def trained(model, item, name, steps=25):
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model([item])[name]
        loss.backward()
        optimizer.step()
    return loss


def test_a_network_learns_where_labels_end():
    torch.manual_seed(0)
    model = build_model(small_cfg_with(SPARSE))
    image, labels, known = regions()
    maps = (F.one_hot(labels, 3).permute(2, 0, 1) * known).float()
    item = {"image": image, "sparse_labels": maps, "sem_seg": labels}
    trained(model, item, "loss_sem_seg")
    output = model.eval()([{**item, "height": 64, "width": 96}])[0]
    assert output["sem_seg"].shape == (3, 64, 96)
    assert output["sem_seg"] is output["sparse_labels"]
    (output,) = model([item])
    assert (output["sem_seg"].argmax(dim=0) != labels).float().mean() < 0.03
    # Labels of another resolution, and images of different sizes.
    large = F.interpolate(maps[None], scale_factor=2.0)[0]
    assert model([{**item, "sparse_labels": large}])[0]["sem_seg"].shape == (3, 32, 48)
    part = {"image": image[:, :24], "sparse_labels": maps[:, :24], "sem_seg": labels[:24]}
    assert [o["sem_seg"].shape[1] for o in model([item, part])] == [32, 24]
    assert model.train()([item, part])["loss_sem_seg"].isfinite()


def test_a_network_learns_where_colors_end():
    torch.manual_seed(0)
    model = build_model(small_cfg_with(SPARSE, COLOR))
    image, labels, known = regions()
    values = torch.stack([0.2 + 0.3 * labels, 0.9 - 0.2 * labels])
    item = {"image": image, "values": values, "known": known, "sparse_values": values * known}
    first = model([item])["loss_values"].item()
    assert trained(model, item, "loss_values") < 0.4 * first
    spread = model.eval()([item])[0]["sparse_values"]
    assert spread.shape == (2, 32, 48)
    assert (spread - values).abs().mean() < 0.03
    padded = model.train()([item, {**item, **{k: item[k][..., :24, :40] for k in item}}])
    assert padded["loss_values"].isfinite()


def test_what_a_run_needs():
    cfg = small_cfg_with(SPARSE)
    assert inference_inputs(cfg) == ("sparse_labels",)
    assert inference_inputs(small_cfg_with(SPARSE, COLOR)) == ("sparse_color",)
    check_run(cfg, False)
    with pytest.raises(ValueError, match="INPUT.DATASET_MAPPER_NAME is ''; allowed with MODEL.SPN"):
        check_run(small_cfg_with(SPARSE, "INPUT: {DATASET_MAPPER_NAME: ''}"), False)
    for text, message in (
        ("MODEL: {SPN: {GATE_MODE: abs_sum}}", "GATE_MODE is 'abs_sum'; allowed where sparse"),
        ("MODEL: {SPN: {NUM_UNITS: 0}}", "NUM_UNITS is 0; allowed to spread sparse values"),
        ("MODEL: {SPN: {NETWORK: dense}}", "MODEL.SPN.NETWORK is 'dense'; allowed: masks"),
    ):
        with pytest.raises(ValueError, match=message):
            build_model(small_cfg_with(SPARSE, text))
