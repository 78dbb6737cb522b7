import math

import pytest
import torch
from torch.nn import functional as F

from rpe_d2.ops.pair_loss import FORMS, NORMALIZATIONS, spherical_pair_loss
from tests.helpers.pair_loss import BLOCK, example
from tests.reference.memory import peak_bytes
from tests.reference.pair_loss import dense_pair_loss


def assert_like_reference(embeddings, labels, **options):
    loss = spherical_pair_loss(embeddings, labels, **options)
    (gradient,) = torch.autograd.grad(loss, embeddings)
    expected = dense_pair_loss(embeddings, labels, **options)
    (expected_gradient,) = torch.autograd.grad(expected, embeddings)
    assert expected > 0 and expected_gradient.abs().max() > 1e-6
    assert abs(loss.item() - expected.item()) < 1e-9
    assert (gradient - expected_gradient).abs().max() < 1e-9


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
class TestAgainstReference:
    @pytest.mark.parametrize("radius", [None, 10.0])
    def test_all_options(self, form, normalization, radius):
        embeddings, labels, positions = example(90, ignored=True)
        options = dict(form=form, normalization=normalization, negative_radius=radius)
        options.update(margin=0.3, positive_weight=0.7, negative_weight=5.0, positions=positions)
        assert_like_reference(embeddings, labels, **options)

    @pytest.mark.parametrize("radius", [None, 13.0])
    def test_several_blocks(self, form, normalization, radius):
        embeddings, labels, positions = example(2 * BLOCK + 77, ignored=True)
        options = dict(form=form, normalization=normalization, negative_radius=radius)
        assert_like_reference(embeddings, labels, positions=positions, margin=0.4, **options)

    @pytest.mark.parametrize("radius", [None, 9.0])
    def test_gradcheck(self, form, normalization, radius):
        embeddings, labels, positions = example(14, dim=3, num_groups=3, ignored=True)

        def loss(x):
            options = dict(form=form, normalization=normalization, negative_radius=radius)
            return spherical_pair_loss(x, labels, margin=0.31, positions=positions, **options)

        assert torch.autograd.gradcheck(loss, embeddings)


@pytest.mark.parametrize("num_points", [1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 3 * BLOCK])
def test_sizes_around_the_block(num_points):
    embeddings, labels, _ = example(num_points)
    labels[-1] = 17
    loss = spherical_pair_loss(embeddings, labels, margin=0.2)
    assert abs(loss.item() - dense_pair_loss(embeddings, labels, margin=0.2).item()) < 1e-9


@pytest.mark.parametrize("num_groups", [2, 1000])
def test_few_large_and_many_small_groups(num_groups):
    embeddings, _, positions = example(2 * BLOCK + 5)
    labels = torch.randint(0, num_groups, (len(embeddings),))
    assert_like_reference(embeddings, labels)
    assert_like_reference(embeddings, labels, positions=positions, negative_radius=6)


def test_joint_is_the_combination_aware_weighting():
    """W_ij = 1 / (Q^2 n_i n_j), pair by pair."""
    embeddings, _, _ = example(7)
    labels = [0, 0, 0, 0, 4, 4, 9]
    unit = F.normalize(embeddings, dim=1).tolist()
    expected = 0.0
    for i in range(7):
        for j in range(7):
            s = (1 + sum(a * b for a, b in zip(unit[i], unit[j]))) / 2
            term = 1 - s if labels[i] == labels[j] else max(s - 0.5, 0)
            expected += term / (9 * labels.count(labels[i]) * labels.count(labels[j]))
    assert spherical_pair_loss(embeddings, torch.tensor(labels)).item() == pytest.approx(expected)


@pytest.mark.parametrize(
    "form, positive", [("linear", 1), ("squared_hinge", 0.5), ("released", 0.5)]
)
def test_forms_at_known_similarities(form, positive):
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)  # s = 0
    options = dict(form=form, normalization="per_term", margin=0.25)
    loss = spherical_pair_loss(opposite, torch.tensor([3, 3]), **options)
    assert loss.item() == pytest.approx(positive / 2)  # half of the pairs are self-pairs
    alike = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)  # s = 1
    loss = spherical_pair_loss(alike, torch.tensor([3, 4]), **options)
    assert loss.item() == pytest.approx(0.75 if form == "linear" else 0.75**2 / 2)


def test_raw_inputs_are_normalized():
    embeddings, labels, _ = example(50)
    unit = F.normalize(embeddings, dim=1)
    lengths = torch.logspace(-6, 6, 50, dtype=torch.float64)[:, None]
    expected = spherical_pair_loss(unit, labels).item()
    assert spherical_pair_loss(unit * lengths, labels).item() == pytest.approx(expected, abs=1e-12)


def test_gradient_is_orthogonal_to_raw_embeddings():
    embeddings, labels, _ = example(60)
    (gradient,) = torch.autograd.grad(spherical_pair_loss(embeddings, labels), embeddings)
    assert gradient.norm(dim=1).min() > 1e-6
    assert (gradient * embeddings).sum(dim=1).abs().max() < 1e-14


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("radius", [None, 11.0])
def test_invariances(form, radius):
    embeddings, labels, positions = example(80, ignored=True)
    embeddings = embeddings.detach()

    def loss(x, y, p):
        options = dict(form=form, margin=0.4, positions=p, negative_radius=radius)
        return spherical_pair_loss(x, y, **options).item()

    expected = loss(embeddings, labels, positions)
    rotation = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))[0]
    assert loss(embeddings @ rotation, labels, positions) == pytest.approx(expected, abs=1e-12)
    order = torch.randperm(80)
    shuffled = loss(embeddings[order], labels[order], positions[order])
    assert shuffled == pytest.approx(expected, abs=1e-12)
    assert loss(embeddings, labels, positions + 123) == pytest.approx(expected, abs=1e-12)
    names = torch.tensor([-(2**40), 7, 2**40, 3, 0, -2, -1])  # the last value replaces -1
    renamed = loss(embeddings, names[labels], positions)
    assert renamed == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32, torch.int64])
def test_label_types(dtype):
    embeddings, labels, _ = example(40)
    expected = dense_pair_loss(embeddings, labels).item()
    assert spherical_pair_loss(embeddings, labels.to(dtype)).item() == pytest.approx(expected)


def test_largest_uint8_label_is_not_minus_one():
    embeddings, labels, _ = example(40)
    labels[labels == 0] = 255
    loss = spherical_pair_loss(embeddings, labels.to(torch.uint8))
    assert loss.item() == pytest.approx(dense_pair_loss(embeddings, labels).item())
    loss = spherical_pair_loss(embeddings, labels.to(torch.uint8), ignore_label=255)
    assert loss.item() == pytest.approx(
        dense_pair_loss(embeddings, labels, ignore_label=255).item()
    )


def test_ignored_pixels_take_no_part():
    embeddings, labels, positions = example(60)
    embeddings.data[::3] = math.nan  # their values are not used
    for ignore_label in (-1, 255, 2):
        labels[::3] = ignore_label
        kept = labels != ignore_label
        options = dict(ignore_label=ignore_label, negative_radius=15)
        loss = spherical_pair_loss(embeddings, labels, positions=positions, **options)
        (gradient,) = torch.autograd.grad(loss, embeddings)
        expected = spherical_pair_loss(
            embeddings[kept], labels[kept], positions=positions[kept], **options
        )
        assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
        assert (gradient[~kept] == 0).all() and gradient[kept].abs().min() > 0


@pytest.mark.parametrize("num_points", [0, 20])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("radius", [None, 5.0])
def test_no_pixel_gives_zero_that_backpropagates(num_points, form, normalization, radius):
    embeddings, labels, positions = example(num_points)
    options = dict(form=form, normalization=normalization, negative_radius=radius)
    loss = spherical_pair_loss(
        embeddings, torch.full_like(labels, -1), positions=positions, **options
    )
    loss.backward()
    assert loss.shape == () and loss.item() == 0
    assert embeddings.grad.shape == embeddings.shape and (embeddings.grad == 0).all()


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("radius", [None, 5.0])
def test_single_group_has_only_the_positive_term(normalization, radius):
    embeddings, labels, positions = example(30)
    options = dict(normalization=normalization, positions=positions, negative_radius=radius)
    assert_like_reference(embeddings, labels * 0 + 9, **options)
    same = embeddings[:1].detach().expand(30, 5).clone().requires_grad_()
    loss = spherical_pair_loss(same, labels * 0 + 9, **options)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-15)
    assert same.grad.isfinite().all()


def test_one_pixel():
    embeddings = torch.randn(1, 4, requires_grad=True)
    loss = spherical_pair_loss(embeddings, torch.tensor([0]))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6) and embeddings.grad.abs().max() < 1e-6


class TestNegativeRadius:
    @pytest.mark.parametrize("normalization", NORMALIZATIONS)
    def test_huge_radius_equals_none(self, normalization):
        embeddings, labels, positions = example(BLOCK + 100)
        results = []
        for radius in (None, 1e6):
            loss = spherical_pair_loss(
                embeddings,
                labels,
                normalization=normalization,
                positions=positions,
                negative_radius=radius,
            )
            results.append((loss.item(), torch.autograd.grad(loss, embeddings)[0]))
        assert results[0][0] == pytest.approx(results[1][0], abs=1e-12)
        assert (results[0][1] - results[1][1]).abs().max() < 1e-12

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_no_surviving_pair(self, dtype):
        embeddings = torch.ones(4, 3, dtype=dtype, requires_grad=True)
        labels = torch.tensor([0, 0, 1, 1])
        positions = torch.tensor([[0, 0], [0, 1], [50, 0], [50, 1]])
        options = dict(normalization="per_term", positions=positions, margin=0.2)
        loss = spherical_pair_loss(embeddings, labels, negative_radius=49, **options)
        loss.backward()
        assert loss.item() == pytest.approx(
            0, abs=1e-6
        )  # groups have equal embeddings, but are too far apart
        assert embeddings.grad.isfinite().all() and embeddings.grad.abs().max() < 1e-6
        loss = spherical_pair_loss(embeddings, labels, negative_radius=50, **options)
        assert loss.item() == pytest.approx(0.8)  # the radius is inclusive

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("offset", [0.0, 0.5, 2000.0])
    def test_exact_on_a_pixel_grid(self, dtype, offset):
        """Many pairs are exactly the radius apart (3-4-5), and must not depend on rounding."""
        rows = torch.arange(600) // 30
        positions = torch.stack([rows, torch.arange(600) % 30], dim=1).to(dtype) + offset
        labels = torch.randint(0, 7, (600,))
        for radius in (5, 10, 13):
            options = dict(positions=positions, negative_radius=radius, normalization="per_term")
            options.update(margin=0.0, positive_weight=0.0)
            # With two similarities, the loss is the weight of the pairs within the radius.
            embeddings = torch.eye(2, dtype=dtype)[torch.randint(0, 2, (600,))]
            expected = dense_pair_loss(embeddings, labels, **options).item()
            loss = spherical_pair_loss(embeddings, labels, **options).item()
            assert loss == pytest.approx(expected, rel=1e-6 if dtype == torch.float32 else 1e-12)


class TestPrecision:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_inputs_are_computed_in_float32(self, dtype):
        embeddings, labels, positions = example(BLOCK + 50)
        half = embeddings.detach().to(dtype).requires_grad_()
        loss = spherical_pair_loss(half, labels, positions=positions, negative_radius=10)
        loss.backward()
        expected = dense_pair_loss(half.detach(), labels, positions=positions, negative_radius=10)
        assert loss.dtype == torch.float32 and half.grad.dtype == dtype
        assert loss.item() == pytest.approx(expected.item(), rel=2e-6)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_autocast_changes_nothing(self, dtype):
        embeddings, labels, positions = example(100)
        single = embeddings.detach().float().requires_grad_()
        results = []
        for enabled in (False, True):
            with torch.autocast("cpu", dtype=dtype, enabled=enabled):
                loss = spherical_pair_loss(single, labels, positions=positions, negative_radius=9)
            results.append((loss, torch.autograd.grad(loss, single)[0]))
        assert results[1][0].dtype == torch.float32
        assert results[0][0] == results[1][0] and torch.equal(results[0][1], results[1][1])

    def test_float32_is_close_to_float64(self):
        embeddings, labels, _ = example(4 * BLOCK)
        loss = spherical_pair_loss(embeddings.float(), labels)
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(
            spherical_pair_loss(embeddings, labels).item(), rel=1e-5
        )


def test_memory_is_linear():
    peak = peak_bytes(
        setup="""
from rpe_d2.ops.pair_loss import spherical_pair_loss
torch.set_num_threads(1)
embeddings = torch.randn(16384, 32, requires_grad=True)
labels = torch.randint(0, 100, (16384,))
positions = torch.rand(16384, 2) * 128
""",
        measured="""
spherical_pair_loss(embeddings, labels).backward()
spherical_pair_loss(embeddings, labels, positions=positions, negative_radius=20.0).backward()
""",
    )
    # All pairs in float32 would be 1 GiB; the limit asked for is 1 GB.
    print(f"peak {peak / 1e6:.0f} MB")
    assert peak < 200e6


@pytest.mark.parametrize(
    "name, change",
    [
        ("embeddings", dict(embeddings=torch.ones(4))),
        ("embeddings", dict(embeddings=torch.ones(4, 3, dtype=torch.long))),
        ("labels", dict(labels=torch.zeros(5, dtype=torch.long))),
        ("labels", dict(labels=torch.zeros(4))),
        ("margin", dict(margin=-0.1)),
        ("margin", dict(margin=1.5)),
        ("form", dict(form="hinge")),
        ("normalization", dict(normalization="mean")),
        ("positive_weight", dict(positive_weight=-1.0)),
        ("negative_weight", dict(negative_weight=float("nan"))),
        ("negative_radius", dict(negative_radius=0.0, positions=torch.ones(4, 2))),
        ("positions", dict(negative_radius=3.0)),
        ("positions", dict(negative_radius=3.0, positions=torch.ones(4, 3))),
    ],
)
def test_errors_name_the_argument_in_one_line(name, change):
    arguments = dict(embeddings=torch.ones(4, 3), labels=torch.zeros(4, dtype=torch.long))
    with pytest.raises(ValueError, match=f"^{name} (is|are) ") as error:
        spherical_pair_loss(**{**arguments, **change})
    assert "\n" not in str(error.value)
