"""The refiner of class maps as its authors draw it (slides 20 to 22 and 33 of the SPN)."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from torch.nn import functional as F

from rpe_d2 import add_rpe_config
from rpe_d2.engine.host_models import check_run, inference_inputs
from rpe_d2.engine.setup import read_config
from rpe_d2.modeling.class_propagation import ClassPropagation
from rpe_d2.modeling.spn import suppress_absent_classes
from tests.conftest import ROOT
from tests.helpers.configs import small_cfg_with
from tests.reference.propagation import propagate

CLASSES = """
MODEL:
  META_ARCHITECTURE: SPNRefiner
  BACKBONE: {NAME: build_guided_backbone}
  SEM_SEG_HEAD: {NUM_CLASSES: 4}
  SPN: {NETWORK: classes, CHANNELS: 6, GATE_MODE: abs_sum, IN_FEATURES: [image, p2]}
"""
FEATURES = {"image": ShapeSpec(channels=3, stride=1), "p2": ShapeSpec(channels=8, stride=4)}


def small(**options) -> ClassPropagation:
    torch.manual_seed(0)
    sizes = {"num_classes": 5, "channels": 4, "conv_dim": 8, "norm": ""}
    return ClassPropagation(FEATURES, **{**sizes, **options})


def inputs(height: int = 16, width: int = 24):
    generator = torch.Generator().manual_seed(1)
    maps = torch.rand(2, 5, height, width, generator=generator).softmax(dim=1)
    image = torch.randn(2, 3, height, width, generator=generator)
    coarse = torch.randn(2, 8, height // 4, width // 4, generator=generator)
    return maps, {"image": image, "p2": coarse}


def test_shapes_of_the_layers_are_those_of_the_release():
    """spn.md, section 2: 4 x 4 of stride 2 to 32 channels, 384 gates, 3 x 3 to 64, 3 x 3 to 21."""
    network = ClassPropagation(FEATURES, num_classes=21)
    assert network.embed.weight.shape == (32, 21, 4, 4) and network.embed.stride == (2, 2)
    assert network.guidance.predictor.weight.shape == (384, 64, 3, 3)
    assert network.hidden.weight.shape == (64, 32, 3, 3)
    assert network.predictor.weight.shape == (21, 64, 3, 3)
    assert network.units.num_units == 2 and network.units.gate_mode == "abs_sum"
    assert network.merge == "max" and network.inputs == "probabilities" and network.stride == 2
    sizes = {}
    for name, layer in (
        ("embed", network.embed),
        ("gates", network.guidance),
        ("hidden", network.hidden),
        ("logits", network.predictor),
    ):
        layer.register_forward_hook(lambda _, __, out, name=name: sizes.update({name: out.shape}))
    image = torch.randn(1, 3, 128, 128)
    network(
        torch.full((1, 21, 128, 128), 1 / 21), {"image": image, "p2": torch.randn(1, 8, 32, 32)}
    )
    assert sizes == {
        "embed": (1, 32, 64, 64),
        "gates": (1, 384, 64, 64),
        "hidden": (1, 64, 128, 128),
        "logits": (1, 21, 128, 128),
    }


def test_shapes_of_the_network_for_voc():
    """slides 20 to 22: VGG-16 with a symmetric decoder, whose steps double the resolution."""
    opts = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""]
    model = build_model(read_config(str(ROOT / "configs/paper/spn_voc.yaml"), opts))
    network = model.class_propagation
    sizes = {}

    def note(name):
        return lambda _, __, out: sizes.update({name: tuple(out.shape[1:])})

    for name, layer in network.guidance.merge.items():
        layer.register_forward_hook(note(name))
    network.guidance.register_forward_hook(note("gates"))
    network.embed.register_forward_hook(note("embed"))
    network.hidden.register_forward_hook(note("hidden"))
    maps = torch.full((21, 128, 128), 1 / 21)
    item = {"image": torch.zeros(3, 128, 128, dtype=torch.uint8), "coarse_sem_seg": maps}
    (output,) = model.eval()([item])
    assert sizes == {
        "pool5": (256, 4, 4),
        "conv5_3": (256, 8, 8),
        "conv4_3": (256, 16, 16),
        "conv3_3": (256, 32, 32),
        "gates": (384, 64, 64),
        "embed": (32, 64, 64),
        "hidden": (64, 128, 128),
    }
    assert output["sem_seg"].shape == (21, 128, 128)
    assert list(network.guidance.merge) == ["pool5", "conv5_3", "conv4_3", "conv3_3"]


@pytest.mark.parametrize("channels, gates", [(16, 192), (32, 384)])
def test_every_channel_has_its_own_gates(channels, gates):
    assert small(channels=channels).guidance.predictor.out_channels == gates


def test_two_units_share_the_gates_of_each_channel():
    """Equal to two propagations by the slow reference, merged by the maximum."""
    network, (maps, features) = small().double(), inputs()
    maps, features = maps.double(), {name: f.double() for name, f in features.items()}
    gates = network.units.normalize(network.guidance(features))
    expected = network.embed(maps)
    for _ in range(2):
        expected = propagate(expected, gates).amax(dim=0)
    expected = F.interpolate(expected, scale_factor=2.0, mode="bilinear")
    expected = network.predictor(F.relu(network.hidden(expected)))
    torch.testing.assert_close(network(maps, features), expected)


def test_adding_a_constant_to_all_scores_changes_nothing():
    """Probabilities enter, so that the scores of the base matter up to a constant only."""
    network, (_, features) = small(), inputs()
    scores = torch.randn(2, 5, 16, 24)
    one, other = (network((scores + c).softmax(dim=1), features) for c in (0.0, 3.0))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("merge", ["max", "mean", "learned"])
@pytest.mark.parametrize("units", [0, 1, 2])
def test_every_parameter_learns(merge, units):
    network, (maps, features) = small(merge=merge, num_units=units), inputs()
    network(maps, features).square().sum().backward()
    assert all(p.grad is not None for p in network.parameters())
    if merge == "learned" and units:
        assert network.blend.grad.abs().max() > 0


def test_equal_weights_of_the_directions_are_their_mean():
    maps, features = inputs()
    learned, mean = small(merge="learned"), small(merge="mean")
    mean.load_state_dict({k: v for k, v in learned.state_dict().items() if k != "blend"})
    torch.testing.assert_close(learned(maps, features), mean(maps, features))


def test_one_connection_has_a_third_of_the_gates():
    network = small(connections=1, gate_mode="clipped")
    assert network.guidance.predictor.out_channels == 4 * 4
    message = "GATE_MODE is 'abs_sum', with which gates of MODEL.SPN.CONNECTIONS 1 are 1 or -1"
    with pytest.raises(ValueError, match=message):
        small(connections=1)


def test_logits_and_probabilities_are_different_inputs():
    maps, features = inputs()
    a, b = small(), small(inputs="logits")
    b.load_state_dict(a.state_dict())
    assert not torch.allclose(a(maps, features), b(maps, features))


def test_only_classes_that_were_predicted_can_win():
    given = torch.tensor([[0.6, 0.2], [0.3, 0.7], [0.1, 0.1]]).view(1, 3, 1, 2)
    logits = torch.tensor([[0.0, 1.0], [1.0, 0.0], [9.0, 9.0]]).view(1, 3, 1, 2)
    refined = suppress_absent_classes(logits, given)
    assert torch.equal(refined[:, :2], logits[:, :2])
    assert refined[:, 2].max() < refined[:, :2].min()
    assert refined.argmax(dim=1).tolist() == [[[1, 0]]]


MASKS = "MODEL: {SPN: {NETWORK: masks, GATE_MODE: softmax}}"


@pytest.mark.parametrize("texts, steps", [([], 60), ([MASKS], 25)], ids=["classes", "masks"])
def test_the_model_learns_one_image(texts, steps):
    torch.manual_seed(0)
    model = build_model(small_cfg_with(CLASSES, *texts))
    image = torch.full((3, 50, 70), 60, dtype=torch.uint8)
    image[:, 10:40, 20:50] = 200
    truth = torch.zeros(50, 70, dtype=torch.int64)
    truth[10:40, 20:50] = 2
    coarse = F.one_hot(truth.roll((3, -3), (0, 1)), 4).permute(2, 0, 1).float() * 0.8 + 0.05
    truth[:, 65:] = 255
    item = {"image": image, "sem_seg": truth, "coarse_sem_seg": coarse}
    other = {"image": image[:, :40], "sem_seg": truth[:40], "coarse_sem_seg": coarse[:, :40]}
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        model([item, other])["loss_sem_seg"].backward()
        optimizer.step()
    patches = model([{"patches": [item, other]}, {"patches": [other]}])["loss_sem_seg"]
    torch.testing.assert_close(patches, model([item, other, other])["loss_sem_seg"])
    model.eval()
    refined = model([item, other])
    assert [output["sem_seg"].shape for output in refined] == [(4, 50, 70), (4, 40, 70)]
    known = truth != 255
    wrong = [(maps.argmax(dim=0) != truth)[known].sum() for maps in (coarse, refined[0]["sem_seg"])]
    assert wrong[1] < 0.5 * wrong[0]
    scores = refined[0]["sem_seg"]
    torch.testing.assert_close(scores.sum(dim=0), torch.ones(50, 70))
    assert (scores[[1, 3]].amax(dim=0) < scores[[0, 2]].amin(dim=0)).all()
    larger = model([{**item, "height": 100, "width": 140}])[0]["sem_seg"]
    assert larger.shape == (4, 100, 140)


def test_masks_are_the_input_unless_there_are_class_maps():
    assert inference_inputs(small_cfg_with(CLASSES)) == ("coarse_sem_seg",)
    assert inference_inputs(small_cfg_with(CLASSES, MASKS)) == ("coarse_masks",)
    with_maps = small_cfg_with(CLASSES, MASKS, "DATASETS: {COARSE_DIRS: [a=b]}")
    assert inference_inputs(with_maps) == ("coarse_sem_seg",)


def test_a_network_that_starts_near_the_identity_keeps_class_maps():
    """The gates of the network "masks" start nearly closed."""
    torch.manual_seed(0)
    model = build_model(small_cfg_with(CLASSES, MASKS)).eval()
    maps = torch.rand(4, 6, 8).repeat_interleave(8, 1).repeat_interleave(8, 2).softmax(dim=0)
    item = {"image": torch.zeros(3, 48, 64, dtype=torch.uint8), "coarse_sem_seg": maps}
    refined = model([item])[0]["sem_seg"]
    assert (refined - maps)[:, 4::8, 4::8].abs().max() < 0.05
    assert refined.shape == maps.shape


def test_a_run_without_class_maps_is_refused():
    cfg = get_cfg()
    add_rpe_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "SPNRefiner"
    cfg.MODEL.SPN.NETWORK = "classes"
    with pytest.raises(ValueError, match="DATASETS.COARSE_DIRS is"):
        check_run(cfg, False)
