import pytest
import torch
from torch.nn import functional as F

from rpe_d2.ops.color import METHODS, embedding_to_rgb


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dim", [1, 2, 3, 4, 32])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_shape_and_full_range(method, dim, dtype):
    x = torch.randn(dim, 7, 9).to(dtype) + 3
    colors = embedding_to_rgb(x, method)
    assert colors.shape == (3, 7, 9) and colors.dtype == torch.float32
    assert colors.min() == 0 and colors.max() == 1
    assert torch.equal(colors, embedding_to_rgb(x, method))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dim", [1, 2, 3, 32])
def test_different_embeddings_differ_and_equal_ones_agree(method, dim):
    x = torch.randn(dim, 6, 6)
    x[:, 5] = x[:, 0]
    colors = embedding_to_rgb(x, method)
    assert torch.allclose(colors[:, 5], colors[:, 0], atol=1e-5)
    differences = torch.cdist(colors[:, 0].T, colors[:, 1].T)
    assert differences.min() > 1e-5


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dim", [1, 2, 3, 32])
def test_constant_is_mid_gray(method, dim):
    x = torch.randn(dim, 1, 1).expand(dim, 4, 5)
    assert (embedding_to_rgb(x, method) == 0.5).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(3, 0, 4), (0, 2, 2)])
def test_empty(method, shape):
    assert embedding_to_rgb(torch.zeros(shape), method).shape == (3, *shape[1:])


def test_random_depends_on_the_seed_alone():
    x = torch.randn(8, 5, 5)
    first = embedding_to_rgb(x, seed=1)
    torch.manual_seed(99)
    state = torch.random.get_rng_state()
    assert torch.equal(embedding_to_rgb(x, seed=1), first)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (embedding_to_rgb(x, seed=2) - first).abs().max() > 0.1


def test_random_uses_the_same_directions_for_every_image():
    """Images with equal extremes map equal embeddings to equal colors."""
    extremes = 50 * torch.randn(8, 1, 4)
    shared = torch.randn(8, 1, 3)
    first = embedding_to_rgb(torch.cat([extremes, shared, torch.randn(8, 1, 6)], dim=2))
    second = embedding_to_rgb(torch.cat([extremes, shared, torch.randn(8, 1, 6)], dim=2))
    assert torch.allclose(first[..., :7], second[..., :7], atol=1e-6)


def test_three_dimensions_keep_their_distances():
    x = F.normalize(torch.randn(3, 1, 40), dim=0)
    colors = embedding_to_rgb(x)[:, 0].T
    ratio = torch.pdist(colors) / torch.pdist(x[:, 0].T)
    assert ratio.std() / ratio.mean() < 1e-3


@pytest.mark.parametrize("mean", [0.0, 20.0])
@pytest.mark.parametrize("dim", [2, 3, 16])
def test_pca_orders_variance(mean, dim):
    scales = torch.linspace(5, 1, dim)
    rotation = torch.linalg.qr(torch.randn(dim, dim))[0]
    pixels = (torch.randn(900, dim) * scales) @ rotation + mean
    colors = embedding_to_rgb(pixels.T.reshape(dim, 30, 30), "pca").flatten(1)
    red, green, blue = colors.var(dim=1).tolist()
    assert red > green > blue
    assert (blue > 1e-4) == (dim > 2)
    correlation = torch.corrcoef(colors[: min(dim, 3)])
    assert (correlation - torch.eye(len(correlation))).abs().max() < 1e-3
    # The first direction is that of largest variance, and the mean has no effect on the range.
    true = pixels @ rotation[0]
    assert torch.corrcoef(torch.stack([colors[0], true]))[0, 1].abs() > 0.9
    assert colors[0].max() - colors[0].min() > 0.9


@pytest.mark.parametrize(
    "name, change",
    [
        ("x", dict(x=torch.ones(3, 4))),
        ("x", dict(x=torch.ones(3, 4, 4, dtype=torch.long))),
        ("method", dict(method="tsne")),
    ],
)
def test_errors_name_the_argument_in_one_line(name, change):
    with pytest.raises(ValueError, match=f"^{name} is .*; allowed: ") as error:
        embedding_to_rgb(**{**dict(x=torch.ones(3, 4, 4)), **change})
    assert "\n" not in str(error.value)
