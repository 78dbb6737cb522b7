"""Maps of the embedding head, and their interpolation."""

import pytest
import torch
from detectron2.modeling import build_backbone
from torch.nn import functional as F

from rpe_d2.modeling import EmbeddingHead
from rpe_d2.modeling.embedding.head import cell_centers
from rpe_d2.modeling.embedding.loss import sample_maps
from rpe_d2.modeling.layers import enlarge_maps
from tests.helpers.configs import small_cfg_with

RESNET = "MODEL: {BACKBONE: {NAME: build_resnet_backbone}, RESNETS: {OUT_FEATURES: [%s]}}"
NO_VOTES = "MODEL: {RPE: {VOTES: False}}"
STRIDE = "MODEL: {RPE: {STRIDE: %d}}"


def backbone_and_head(*texts):
    """Builds the backbone and the head of the small configuration with YAML texts."""
    cfg = small_cfg_with(*texts)
    backbone = build_backbone(cfg)
    return backbone, EmbeddingHead(cfg, backbone.output_shape())


@pytest.mark.parametrize("stride", [1, 2, 4, 8])
@pytest.mark.parametrize("text", ["{}", RESNET % "res4", RESNET % "res2, res5"])
def test_maps_have_the_stride_and_unit_vectors(stride, text):
    backbone, head = backbone_and_head(STRIDE % stride, text)
    maps = head(backbone(torch.randn(2, 3, 64, 96)))
    grid = (64 // stride, 96 // stride)
    assert maps.embeddings.shape == (2, 8, *grid)
    assert maps.logits.shape == (2, 4, *grid)
    assert maps.votes.shape == (2, 2, *grid)
    assert torch.allclose(maps.embeddings.norm(dim=1), torch.ones(2, *grid), atol=1e-5)


def test_every_parameter_gets_a_gradient():
    """Distributed training fails on parameters without one."""
    backbone, head = backbone_and_head("MODEL: {RPE: {STRIDE: 8, COORDINATES: True}}")
    maps = head(backbone(torch.randn(2, 3, 64, 64)))
    torch.stack([m.square().sum() for m in maps[:3]]).sum().backward()
    for module in (backbone, head):
        assert [name for name, p in module.named_parameters() if p.grad is None] == []


def test_without_votes_every_cell_votes_for_its_own_center():
    backbone, head = backbone_and_head(NO_VOTES)
    maps = head(backbone(torch.randn(2, 3, 32, 64)))
    assert torch.equal(maps.votes[1], cell_centers((8, 16), 4, torch.device("cpu")))
    assert maps.votes[0, :, 0, 0].tolist() == [2, 2]
    assert maps.votes[0, :, 7, 15].tolist() == [62, 30]


def test_maps_are_read_at_pixels_by_interpolation():
    backbone, head = backbone_and_head(NO_VOTES)
    maps = head(backbone(torch.randn(2, 3, 32, 64)))
    pixels = torch.tensor([[[2.0, 2.0], [6.0, 2.0], [4.0, 2.0], [0.5, 31.5]]]).expand(2, -1, -1)
    x, votes, _ = sample_maps(maps, pixels)
    first, second = maps.embeddings[0, :, 0, 0], maps.embeddings[0, :, 0, 1]
    middle = F.normalize(first + second, dim=0)
    assert torch.allclose(x[0, :3], torch.stack([first, second, middle]), atol=1e-5)
    # Without offsets every pixel votes for its own position, even at the border of the image.
    assert torch.allclose(votes, pixels, atol=1e-4)


@pytest.mark.parametrize(
    "key, value, allowed",
    [("STRIDE", "3", "1, 2, 4, 8"), ("IN_FEATURES", "[p2, p9]", "p2, p3, p4, p5, p6")],
)
def test_errors_name_the_key_and_the_allowed_values(key, value, allowed):
    with pytest.raises(ValueError) as error:
        backbone_and_head(f"MODEL: {{RPE: {{{key}: {value}}}}}")
    message = str(error.value)
    assert f"MODEL.RPE.{key}" in message and allowed in message and "\n" not in message


def test_enlarged_maps_are_aligned_with_the_image():
    """A map of 4 x 2 cells of stride 64 extends beyond an image of 7 x 3 cells of stride 32."""
    _, head = backbone_and_head(STRIDE % 8)
    assert head.ratios == {"p2": 1, "p3": 1, "p4": 2, "p5": 4, "p6": 8}
    columns = (torch.arange(4) + 0.5) * 64  # pixels
    aligned = enlarge_maps(columns.expand(1, 1, 2, 4), 8, [12, 28])
    expected = (torch.arange(28) + 0.5) * 8
    # The first value is repeated before the center of the first cell.
    assert torch.allclose(aligned[0, 0, 5, 4:], expected[4:])


def test_enlarged_maps_are_continued_to_the_border_of_the_image():
    maps = torch.arange(12.0).reshape(1, 1, 3, 4)
    enlarged = enlarge_maps(maps, 2, [7, 9])
    interpolated = F.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=False)
    assert torch.equal(enlarged[..., :6, :8], interpolated)
    assert torch.equal(enlarged, F.pad(interpolated, (0, 1, 0, 1), mode="replicate"))


def test_class_logits_alone_equal_those_of_the_maps():
    backbone, head = (module.eval() for module in backbone_and_head())
    with torch.no_grad():
        features = backbone(torch.rand(1, 3, 64, 96))
        torch.testing.assert_close(head.class_logits(features), head(features).logits)
