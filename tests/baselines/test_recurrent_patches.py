"""Networks on patches: on whole images they give the scores of the patch around every pixel."""

import pytest
import torch
from torch import nn

from rpe_d2.baselines.patch_network import PatchLayer, PatchNetwork
from rpe_d2.baselines.recurrent_patches import NETWORKS, RecurrentPatches, scales_of
from tests.helpers.semantic_heads import semantic_input, semantic_model
from tests.reference.patch_networks import RecurrentScores, atrous

EXACT = {"rtol": 0, "atol": 1e-12}
# Layers of every network in the papers, narrower.
LAYERS = {
    "CNN1": [PatchLayer(6, 3, 8), PatchLayer(3, 4, 2), PatchLayer(7, 2)],
    "CNN2": [PatchLayer(8, 3, 2), PatchLayer(8, 4, 2), PatchLayer(1, 2)],
    "CNN3": [PatchLayer(8, 3, 2), PatchLayer(8, 4), PatchLayer(1, 2)],
    "Farabet": [PatchLayer(7, 3, 2), PatchLayer(7, 4, 2), PatchLayer(7, 2)],
}


def network_of(layers, in_channels=3):
    torch.manual_seed(0)
    network = PatchNetwork(in_channels, layers).double()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network


@pytest.mark.parametrize("name", LAYERS)
def test_shift_and_stitch_equals_the_dense_form_with_holes(name):
    network = network_of(LAYERS[name])
    side = network.patch_size
    image = torch.randn(2, 3, side + 12, side + 17, dtype=torch.float64)
    dense = network.dense(image)
    assert dense.shape[-2:] == (13, 18)
    torch.testing.assert_close(dense, atrous(network, image), **EXACT)
    stride = network.stride
    torch.testing.assert_close(network(image), dense[..., ::stride, ::stride], **EXACT)
    patch = image[..., 5 : 5 + side, 3 : 3 + side]
    torch.testing.assert_close(network(patch)[..., 0, 0], dense[..., 5, 3], **EXACT)


def test_gradients_of_shift_and_stitch():
    network = network_of([PatchLayer(2, 2, 2), PatchLayer(2, 2)], in_channels=1)
    image = torch.randn(1, 1, 8, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(network.dense, image)


def test_patches_have_the_sizes_of_the_papers():
    assert PatchNetwork(3, LAYERS["Farabet"]).patch_size == 46
    seen = {}
    for name in NETWORKS:
        patches = RecurrentPatches(name, 8, 3)
        side, stride = patches.network.patch_size, patches.stride
        seen[name] = [1 + (side - 1) * sum(stride**n for n in range(p)) for p in (1, 2, 3)]
        assert patches.network.out_channels == 8
    assert seen["CNN1"][0] == 133
    assert seen["CNN2"][:2] == [25, 121]
    assert seen["CNN3"] == [23, 67, 155]
    assert scales_of("CNN2", 2) == [1.0, 0.25] and scales_of("CNN3", 3) == [1.0, 0.5, 0.25]


@pytest.mark.parametrize("pooling, num_passes", [(2, 1), (2, 2), (2, 3), (3, 2)])
def test_passes_equal_the_network_on_the_patch_of_each_pixel(pooling, num_passes):
    patches = RecurrentPatches("CNN3", 2, num_passes)
    layers = [PatchLayer(2, 3, pooling), PatchLayer(2, 2)]
    patches.network = network_of(layers, in_channels=3 + 2)
    torch.manual_seed(1)
    image = torch.randn(1, 3, 9, 11, dtype=torch.float64)
    reference = RecurrentScores(patches, image[0], 2)
    with torch.no_grad():
        passes = patches(image)
        assert len(passes) == num_passes
        for number, scores in enumerate(passes, start=1):
            assert scores.shape == (1, 2, 9, 11)
            for row, column in ((0, 0), (8, 10), (4, 5), (3, 10)):
                expected = reference.score(number, row, column)
                torch.testing.assert_close(scores[0, :, row, column], expected, **EXACT)
        # The sparse grids of training hold the same scores.
        for shift in ((0, 0), (1, 0), (pooling - 1, pooling - 1)):
            for sparse, dense in zip(patches(image, pooling, shift), passes):
                expected = dense[..., shift[0] :: pooling, shift[1] :: pooling]
                torch.testing.assert_close(sparse, expected, **EXACT)


# ---- In a head

RCNN = """
MODEL:
  PIXEL_STD: [60.0, 60.0, 60.0] # otherwise tanh is saturated
  BACKBONE: {NAME: build_image_backbone}
  SEM_SEG_HEAD:
    NAME: RecurrentConvSemSegHead
    IN_FEATURES: [image]
    RECURRENT_NETWORK: CNN3
    RECURRENT_SCALES: [1.0, 0.5, 0.25]
"""


def head_options(options):
    return f"MODEL: {{SEM_SEG_HEAD: {options}}}"


@pytest.mark.parametrize(
    "options, passes",
    [
        ("{RECURRENT_NETWORK: CNN1, RECURRENT_SCALES: [1.0]}", 1),
        ("{RECURRENT_NETWORK: CNN2, RECURRENT_SCALES: [1.0]}", 1),
        ("{RECURRENT_NETWORK: CNN2, RECURRENT_SCALES: [1.0, 0.25]}", 2),
        ("{}", 3),
    ],
)
def test_losses_of_all_passes_train_the_network(options, passes):
    model = semantic_model(RCNN, head_options(options))
    losses = model([semantic_input((40, 50)), semantic_input((33, 21), seed=2)])
    names = {"loss_sem_seg", *(f"loss_sem_seg_pass{n}" for n in range(1, passes))}
    assert set(losses) == names
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name
    model.eval()
    with torch.no_grad():
        assert model([semantic_input((33, 21))])[0]["sem_seg"].shape == (4, 33, 21)


def test_losses_are_those_of_the_dense_scores_at_the_pixels_of_the_grid():
    model = semantic_model(RCNN)
    head = model.sem_seg_head
    features = {"image": torch.randn(1, 3, 20, 26)}
    targets = torch.randint(0, 4, (1, 20, 26))
    torch.manual_seed(3)
    shift = [int(torch.randint(2, ())) for _ in range(2)]
    dense = head.patches(features["image"])
    torch.manual_seed(3)
    scores, losses = head.scores_and_losses(features, targets)
    assert scores.shape == (1, 4, 20, 26)
    chosen = (Ellipsis, slice(shift[0], None, 2), slice(shift[1], None, 2))
    for name, expected in zip(("_pass1", "_pass2", ""), dense):
        loss = nn.functional.cross_entropy(expected[chosen], targets[chosen])
        torch.testing.assert_close(losses[f"loss_sem_seg{name}"], loss, rtol=1e-4, atol=1e-5)


def test_spn_refines_the_scores_of_all_pixels():
    spn = """
MODEL:
  SEM_SEG_HEAD: {NAME: SPNSemSegHead}
  SPN: {SEM_SEG_HEAD: RecurrentConvSemSegHead, STRIDE: 1, IN_FEATURES: [image], CONV_DIM: 32}
"""
    model = semantic_model(RCNN, spn)
    losses = model([semantic_input((24, 30))])
    assert {"loss_sem_seg", "loss_sem_seg_pass1", "loss_sem_seg_refined"} <= set(losses)
    sum(losses.values()).backward()
    model.eval()
    with torch.no_grad():
        assert model([semantic_input((24, 30))])[0]["sem_seg"].shape == (4, 24, 30)


@pytest.mark.parametrize(
    "options, message",
    [
        (
            "{RECURRENT_SCALES: [0.25, 1.0]}",
            "RECURRENT_SCALES is .0.25, 1.0.; allowed with RECURRENT_NETWORK CNN3: the first ones "
            "of 1, 0.5, 0.25",
        ),
        ("{PAIR_LOSS_WEIGHT: 1.0}", "PAIR_LOSS_WEIGHT asks for a pair loss; .*allowed: 0"),
        ("{RECURRENT_NETWORK: CNN4}", "RECURRENT_NETWORK is 'CNN4'; allowed: '', 'CNN1'"),
    ],
)
def test_a_wrong_key_is_reported_in_one_line(options, message):
    with pytest.raises(ValueError, match=message) as error:
        semantic_model(RCNN, head_options(options))
    assert "\n" not in str(error.value)


def test_the_networks_of_the_authors_need_the_image():
    text = "MODEL: {BACKBONE: {NAME: build_resnet_backbone}, RESNETS: {OUT_FEATURES: [res3]}}"
    with pytest.raises(ValueError, match="IN_FEATURES is res3; allowed .* the image"):
        semantic_model(RCNN, text, head_options("{IN_FEATURES: [res3]}"))
