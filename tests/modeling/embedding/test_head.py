import pytest
import torch
from detectron2.modeling import build_backbone
from torch.nn import functional as F

from rpe_d2.modeling import EmbeddingHead
from rpe_d2.modeling.embedding.head import cell_centers
from rpe_d2.modeling.embedding.loss import sample_maps
from rpe_d2.modeling.layers import enlarge_maps
from tests.helpers.models import plain_backbone, small_cfg


@pytest.mark.parametrize("stride", [1, 2, 4, 8])
@pytest.mark.parametrize("overrides", [(), plain_backbone("res4"), plain_backbone("res2", "res5")])
def test_maps_have_the_stride_and_unit_vectors(stride, overrides):
    cfg = small_cfg("MODEL.RPE.STRIDE", stride, *overrides)
    backbone = build_backbone(cfg)
    head = EmbeddingHead(cfg, backbone.output_shape())
    maps = head(backbone(torch.randn(2, 3, 64, 96)))
    grid = (64 // stride, 96 // stride)
    assert maps.embeddings.shape == (2, 8, *grid)
    assert maps.logits.shape == (2, 4, *grid)
    assert maps.votes.shape == (2, 2, *grid)
    assert torch.allclose(maps.embeddings.norm(dim=1), torch.ones(2, *grid), atol=1e-5)


def test_every_parameter_gets_a_gradient():
    """Distributed training fails on parameters that take no part."""
    cfg = small_cfg("MODEL.RPE.STRIDE", 8, "MODEL.RPE.COORDINATES", True)
    backbone = build_backbone(cfg)
    head = EmbeddingHead(cfg, backbone.output_shape())
    maps = head(backbone(torch.randn(2, 3, 64, 64)))
    torch.stack([m.square().sum() for m in maps[:3]]).sum().backward()
    for module in (backbone, head):
        assert [name for name, p in module.named_parameters() if p.grad is None] == []


def test_without_votes_every_cell_votes_for_itself():
    cfg = small_cfg("MODEL.RPE.VOTES", False)
    backbone = build_backbone(cfg)
    maps = EmbeddingHead(cfg, backbone.output_shape())(backbone(torch.randn(2, 3, 32, 64)))
    assert torch.equal(maps.votes[1], cell_centers((8, 16), 4, torch.device("cpu")))
    assert maps.votes[0, :, 0, 0].tolist() == [2, 2]
    assert maps.votes[0, :, 7, 15].tolist() == [62, 30]


def test_maps_are_read_at_pixels_by_interpolation():
    cfg = small_cfg("MODEL.RPE.VOTES", False)
    backbone = build_backbone(cfg)
    maps = EmbeddingHead(cfg, backbone.output_shape())(backbone(torch.randn(2, 3, 32, 64)))
    pixels = torch.tensor([[[2.0, 2.0], [6.0, 2.0], [4.0, 2.0], [0.5, 31.5]]]).expand(2, -1, -1)
    x, votes, _ = sample_maps(maps, pixels)
    first, second = maps.embeddings[0, :, 0, 0], maps.embeddings[0, :, 0, 1]
    middle = torch.nn.functional.normalize(first + second, dim=0)
    assert torch.allclose(x[0, :3], torch.stack([first, second, middle]), atol=1e-5)
    # Without an offset a pixel votes for itself, at the border of the picture too.
    assert torch.allclose(votes, pixels, atol=1e-4)


@pytest.mark.parametrize(
    "key, value, allowed",
    [("STRIDE", 3, "1, 2, 4, 8"), ("IN_FEATURES", ["p2", "p9"], "p2, p3, p4, p5, p6")],
)
def test_errors_name_key_value_and_what_is_allowed(key, value, allowed):
    cfg = small_cfg(f"MODEL.RPE.{key}", value)
    with pytest.raises(ValueError) as error:
        EmbeddingHead(cfg, build_backbone(cfg).output_shape())
    message = str(error.value)
    assert f"MODEL.RPE.{key}" in message and allowed in message and "\n" not in message


def test_coarse_maps_stay_where_they_are_in_the_picture():
    """A picture of 7 x 3 cells of stride 32 has a map of 4 x 2 cells of stride 64, which ends beyond it."""
    cfg = small_cfg("MODEL.RPE.STRIDE", 8)
    head = EmbeddingHead(cfg, build_backbone(cfg).output_shape())
    assert head.ratios == {"p2": 1, "p3": 1, "p4": 2, "p5": 4, "p6": 8}
    columns = (torch.arange(4) + 0.5) * 64  # pixels
    aligned = enlarge_maps(columns.expand(1, 1, 2, 4), 8, [12, 28])
    expected = (torch.arange(28) + 0.5) * 8
    assert torch.allclose(
        aligned[0, 0, 5, 4:], expected[4:]
    )  # before the first centre the first value continues


def test_maps_that_end_before_the_picture_are_continued():
    maps = torch.arange(12.0).reshape(1, 1, 3, 4)
    found = enlarge_maps(maps, 2, [7, 9])
    same = F.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=False)
    assert torch.equal(found[..., :6, :8], same)
    assert torch.equal(found, F.pad(same, (0, 1, 0, 1), mode="replicate"))


def test_class_scores_alone_are_the_same():
    cfg = small_cfg()
    backbone = build_backbone(cfg).eval()
    head = EmbeddingHead(cfg, backbone.output_shape()).eval()
    with torch.no_grad():
        features = backbone(torch.rand(1, 3, 64, 96))
        torch.testing.assert_close(head.class_logits(features), head(features).logits)
