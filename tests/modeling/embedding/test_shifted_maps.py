"""Training loops on whole maps, sampling of pixels, and weights of loops."""

import pytest
import torch
from torch.nn import functional as F

from rpe_d2.modeling import EmbeddingLoss, MeanShiftLayer, PixelEmbeddingNet
from rpe_d2.modeling.embedding.head import EmbeddingMaps, cell_centers
from rpe_d2.modeling.embedding.labels import PixelLabels, sample_pixels_uniformly
from rpe_d2.modeling.embedding.parts import fit_to_head
from rpe_d2.ops.pair_loss import spherical_pair_loss
from tests.helpers.configs import small_cfg_with
from tests.helpers.models import training_input
from tests.reference.mean_shift import dense_mean_shift


def random_maps(size=(6, 7), dim=4, batch=1):
    generator = torch.Generator().manual_seed(0)
    x = F.normalize(torch.randn(batch, dim, *size, generator=generator, dtype=torch.float64), dim=1)
    centers = cell_centers(size, 1, torch.device("cpu")).double()
    logits = torch.zeros(batch, 3, *size, dtype=torch.float64)
    sizes = torch.zeros(batch, 1, *size, dtype=torch.float64)
    return EmbeddingMaps(x.requires_grad_(), logits, centers.expand(batch, -1, -1, -1), sizes, x, 1)


def labels_of(instances):
    count = int(instances.max()) + 1
    zeros = torch.zeros(count)
    return PixelLabels(instances, zeros.long(), torch.zeros(count, 2), zeros + 1)


def layer(**options):
    options = {"bandwidth": 0.4, "spatial_bandwidth": 0.0, "shift_positions": False, **options}
    return MeanShiftLayer(**options)


def test_all_cells_as_keys_are_the_paper_s_recurrence():
    maps = random_maps()
    instances = torch.arange(42).view(6, 7) % 5 - 1
    loss = EmbeddingLoss(
        use_votes=False, background_is_group=True, num_points=42, normalization="joint"
    )
    value = loss(maps, [labels_of(instances)], layer(train_loops=3, train_keys=100))["loss_pair"]
    (gradient,) = torch.autograd.grad(value, maps.embeddings)

    x = maps.embeddings[0].flatten(1).T
    groups = instances.flatten().masked_fill(instances.flatten() < 0, 4)
    steps = dense_mean_shift(x, 0.4, 3)
    expected = sum(
        spherical_pair_loss(step, groups, normalization="joint") for step, _ in steps
    ) / len(steps)
    (expected_gradient,) = torch.autograd.grad(expected, maps.embeddings)
    torch.testing.assert_close(value, expected, atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-8, rtol=1e-5)


def test_cells_without_a_group_neither_move_nor_pull():
    maps = random_maps()
    instances = torch.full((6, 7), -2)
    instances[:3] = 0
    loss = EmbeddingLoss(use_votes=False, num_points=42)
    (*_, last) = loss._shifted_maps(
        maps, [labels_of(instances)], layer(train_loops=2, train_keys=9)
    )
    (alone,) = torch.autograd.grad(last.x.square().sum() + last.x.sum(), maps.embeddings)
    assert alone[:, :, :3].abs().sum() > 0
    assert alone[:, :, 3:].abs().sum() == 0


def test_a_small_object_is_absorbed_at_true_proportions_only():
    """10,000 pixels beside 100 at cosine .4: five loops with delta .3 (rpe.md, section 11)."""
    angle = torch.tensor(0.4).acos()
    large, small = torch.tensor([1.0, 0.0]), torch.stack([angle.cos(), angle.sin()])
    x = torch.cat([large.expand(10000, 2), small.expand(100, 2)]).double()
    positions, sizes = torch.zeros(len(x), 2).double(), torch.zeros(len(x)).double()
    shift = layer(bandwidth=0.3, train_loops=5, train_keys=len(x))
    moved = shift.cell_trajectory(x, positions, sizes)[-1][0]
    absorbed = (moved[-1] @ large.double() > 0.99).item()
    balanced = torch.cat([x[:924], x[-100:]])
    steps = shift.trajectory(
        balanced[None], positions[None, :1024], sizes[None, :1024], torch.ones(1, 1024).bool()
    )
    assert absorbed
    assert steps[-1][0][0, -1] @ small.double() > 0.9


def test_uniform_samples_have_true_proportions():
    torch.manual_seed(0)
    labels = torch.zeros(100, 100, dtype=torch.long)
    labels[:10] = 1
    labels[:, :20] = -1
    sample = sample_pixels_uniformly(labels, 2000)
    assert len(sample.unique()) == 2000
    chosen = labels.flatten()[sample]
    assert chosen.min() == 0
    # A tenth of 8,000 pixels; the hypergeometric standard deviation is 11.6.
    assert abs(int(chosen.sum()) - 200) < 60
    assert len(sample_pixels_uniformly(labels, 9000)) == 8000


@pytest.mark.parametrize("train_keys, samples", [(0, 1), (20, 4)])
def test_every_loss_on_shifted_maps_has_its_own_sample(train_keys, samples):
    torch.manual_seed(0)
    loss = EmbeddingLoss(
        use_votes=False, background_is_group=True, num_points=10, sampling="uniform"
    )
    shift, labels = layer(train_loops=3, train_keys=train_keys), [
        labels_of(torch.zeros(6, 7).long())
    ]
    steps = (loss._shifted_maps if train_keys else loss._shifted_samples)(
        random_maps(), labels, shift
    )
    assert len(steps) == 4
    assert len({tuple(step.sample.points[0].tolist()) for step in steps}) == samples


def test_loop_weights_by_hand():
    loss = EmbeddingLoss(loop_weights=(1, 0, 3))
    assert loss._over_loops([torch.tensor(v) for v in (4.0, 7.0, 8.0)]) == 7.0
    assert EmbeddingLoss()._over_loops([torch.tensor(v) for v in (4.0, 8.0)]) == 6.0


def test_loop_weights_must_fit_the_loops():
    cfg = small_cfg_with("MODEL: {RPE: {LOOP_WEIGHTS: [1.0, 2.0]}}")
    message = "^MODEL.RPE.LOOP_WEIGHTS is .1.0, 2.0.; allowed with MODEL.MEAN_SHIFT.TRAIN_LOOPS 2:"
    with pytest.raises(ValueError, match=message):
        EmbeddingLoss(cfg)
    head = PixelEmbeddingNet(small_cfg_with()).embedding_head
    with pytest.raises(ValueError, match="embedding_loss.loop_weights is .*: 3 numbers"):
        fit_to_head(head, EmbeddingLoss(loop_weights=(1, 2)), MeanShiftLayer(train_loops=2))
    with pytest.raises(ValueError, match="loop_weights is .*; allowed: at least one above 0"):
        EmbeddingLoss(loop_weights=(0, 0))


def test_ten_loops_in_training_and_sixteen_at_inference():
    """The largest numbers that Kong & Fowlkes use."""
    text = "MODEL: {MEAN_SHIFT: {TRAIN_LOOPS: 10, TEST_LOOPS: 16}}"
    model = PixelEmbeddingNet(small_cfg_with(text)).train()
    losses = model([training_input()])
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    (maps,) = model.eval().predict_maps([training_input()])
    assert len(model.embeddings_per_loop(maps.unpadded())) == 17
