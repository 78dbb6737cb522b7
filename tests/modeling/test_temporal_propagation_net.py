"""TemporalPropagationNet: training in both directions, inference, and a run of train_net."""

import json

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from rpe_d2.data import FramePairMapper, render_shapes
from rpe_d2.engine.host_models import check_run
from rpe_d2.inference.predictor import check_needs_only_pictures
from rpe_d2.modeling.meta_arch import TemporalPropagationNet, temporal_propagation_net
from rpe_d2.utils.label_maps import read_label_map
from tests.helpers.keys import new_cfg
from tests.helpers.training import train


def configuration(*overrides):
    cfg = new_cfg()
    cfg.MODEL.META_ARCHITECTURE = "TemporalPropagationNet"
    cfg.MODEL.DEVICE = "cpu"
    cfg.merge_from_list(list(overrides))
    return cfg


def build(*overrides) -> TemporalPropagationNet:
    torch.manual_seed(0)
    return build_model(configuration(*overrides))


def item(height=30, width=44, channels=2, guidance=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    maps = torch.rand(2, channels, height, width, generator=generator) * 0.4
    guidances = torch.rand(2, guidance, height, width, generator=generator)
    return {
        "key_property": maps[0],
        "target_property": maps[1],
        "key_guidance": guidances[0],
        "target_guidance": guidances[1],
    }


def exchanged(one):
    other = {"key": "target", "target": "key"}
    return {f"{other[n.split('_')[0]]}_{n.split('_')[1]}": value for n, value in one.items()}


def losses_of(model, batch, iteration=1):
    with EventStorage(iteration) as storage:
        return model.train()(batch), storage.latest()


def disturb(model):
    """Makes an untrained network one that changes what it gets."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize(
    "kind, channels, guidance", [("ab", 2, 1), ("rgb", 3, 3), ("masks", 1, 3), ("masks", 5, 3)]
)
def test_an_untrained_model_copies_properties_of_any_size(kind, channels, guidance):
    model = build("MODEL.TPN.PROPERTY", kind).eval()
    for height, width in ((1, 1), (16, 32), (37, 50)):
        one = item(height, width, channels, guidance)
        del one["target_property"]
        output = model([one])[0]
        assert set(output) == {"property"}
        torch.testing.assert_close(output["property"], one["key_property"])


def test_propagate_takes_one_frame_or_several():
    model = disturb(build("MODEL.TPN.PROPERTY", "masks")).eval()
    items = [item(24, 40, 3, 3, seed) for seed in (0, 1)]
    names = ("key_property", "key_guidance", "target_guidance")
    together = model.propagate(*(torch.stack([i[name] for i in items]) for name in names))
    assert together.shape == (2, 3, 24, 40)
    for one, expected in zip(items, together):
        torch.testing.assert_close(model.propagate(*(one[name] for name in names)), expected)
        torch.testing.assert_close(model([one])[0]["property"], expected)
        # Each mask has the result that it has alone.
        alone = model.propagate(one["key_property"][1:2], one["key_guidance"], one[names[2]])
        torch.testing.assert_close(alone[0], expected[1])
    assert together.min() >= 0 and together.max() <= 1
    empty = model.propagate(items[0]["key_property"][:0], *(items[0][n] for n in names[1:]))
    assert empty.shape == (0, 24, 40)


def test_the_gates_of_few_masks_are_in_memory_at_once(monkeypatch):
    model = disturb(build("MODEL.TPN.PROPERTY", "masks")).eval()
    one = item(24, 40, 5, 3)
    inputs = [one[name] for name in ("key_property", "key_guidance", "target_guidance")]
    expected = model.propagate(*inputs)
    sizes, carry = [], model.network.carry
    monkeypatch.setattr(
        model.network,
        "carry",
        lambda maps, guide: sizes.append(len(guide.gates)) or carry(maps, guide),
    )
    gates = model.network.guide(*(torch.zeros(1, 3, 32, 48) for _ in range(2))).gates
    monkeypatch.setattr(temporal_propagation_net, "_MOST_GATES", 2 * gates.numel())
    torch.testing.assert_close(model.propagate(*inputs), expected)
    assert sizes == [2, 2, 1]


def test_gradients_flow_only_in_training():
    model = build()
    one = item()
    names = ("key_property", "key_guidance", "target_guidance")
    assert not model.propagate(*(one[name] for name in names)).requires_grad
    losses, _ = losses_of(model, [one])
    sum(losses.values()).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None]
    assert not without


def test_exchanging_the_frames_exchanges_the_losses():
    model = disturb(build())
    batch = [item(seed=0), item(seed=1)]
    losses, _ = losses_of(model, batch)
    swapped, _ = losses_of(model, [exchanged(one) for one in batch])
    assert abs(float(losses["loss_forward"] - losses["loss_backward"])) > 1e-5
    torch.testing.assert_close(losses["loss_forward"], swapped["loss_backward"])
    torch.testing.assert_close(losses["loss_backward"], swapped["loss_forward"])
    torch.testing.assert_close(losses["loss_style"], swapped["loss_style"])


def test_a_pair_has_the_loss_of_its_own_pixels():
    """A smaller pair is padded to the size of the batch, which does not count."""
    model = build()  # an untrained model copies, so that the loss has a closed form
    small, large = item(20, 30, seed=0), item(32, 48, seed=1)
    losses, _ = losses_of(model, [small, large])
    differences = torch.cat(
        [(i["key_property"] - i["target_property"]).flatten() for i in (small, large)]
    )
    expected = ((differences**2 + 0.002**2).sqrt() - 0.002).mean()
    torch.testing.assert_close(losses["loss_forward"], expected)
    torch.testing.assert_close(losses["loss_backward"], expected)
    assert float(losses["loss_style"]) == pytest.approx(0, abs=1e-9)


def test_measures_are_logged():
    _, logged = losses_of(build(), [item()], iteration=20)
    directions = ("left_to_right", "right_to_left", "top_down", "bottom_up", "merged")
    for direction in directions:  # closed gates are the identity
        assert logged[f"propagation/deviation_{direction}"][0] == pytest.approx(0, abs=1e-6)
        assert logged[f"propagation/energy_{direction}"][0] == pytest.approx(1, abs=1e-6)
    assert logged["propagation/style_energy"][0] == pytest.approx(0, abs=1e-9)
    _, logged = losses_of(disturb(build()), [item()], iteration=40)
    assert logged["propagation/deviation_merged"][0] > 1e-3
    assert logged["propagation/style_energy"][0] > 0
    _, logged = losses_of(build(), [item()], iteration=41)
    assert set(logged) == {"propagation/style_energy"}


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"key_property": torch.zeros(3, 30, 44)},
            r"key_property has shape \(3, 30, 44\); allowed",
        ),
        ({"key_guidance": torch.zeros(3, 30, 44)}, r"key_guidance has shape \(3, 30, 44\); allo"),
        ({"target_guidance": torch.zeros(1, 30, 45)}, r"target_guidance has shape \(1, 30, 45\); "),
    ],
)
def test_wrong_shapes_are_one_line(change, message):
    model = build()
    with pytest.raises(ValueError, match=message) as error:
        model.eval()([{**item(), **change}])
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=message):
        losses_of(model, [{**item(), **change}])
    with pytest.raises(ValueError, match=r"target_property has shape \(2, 30, 40\); allowed: \(2"):
        losses_of(model, [{**item(), "target_property": torch.zeros(2, 30, 40)}])


@pytest.mark.parametrize(
    "key, value, allowed",
    [
        ("PROPERTY", "depth", "ab, rgb, masks"),
        ("STRIDE", 4, "1 or 2 pixels"),
        ("MERGE", "max", "mean, learned"),
        ("GATE_MODE", "tanh", "softmax, abs_sum, clipped"),
        ("STYLE_LOSS_WEIGHT", -1.0, "0 or more"),
    ],
)
def test_wrong_keys_are_one_line(key, value, allowed):
    message = f"MODEL.TPN.{key} is {value!r}; allowed: {allowed}"
    with pytest.raises(ValueError, match=message):
        build(f"MODEL.TPN.{key}", value)


def test_it_needs_pairs_of_frames():
    cfg = configuration("DATASETS.TRAIN", "('shapes_train',)")
    with pytest.raises(ValueError, match="DATASETS.TRAIN names 'shapes_train'; allowed with Tempo"):
        check_run(cfg, False)
    with pytest.raises(ValueError, match="which needs a key frame; rpe-d2 propagate-video carries"):
        check_needs_only_pictures(cfg)


@pytest.fixture
def pictures(tmp_path):
    """Data sets "frame_pairs_train" and "frame_pairs_val" of two pictures."""
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for index, record in enumerate(DatasetCatalog.get("shapes_train_sem_seg")[:2]):
        labels = read_label_map(record["sem_seg_file_name"], np.uint8)
        cv2.imwrite(str(tmp_path / "labels" / f"{index}.png"), labels)
        picture = render_shapes("train", index)[:, :, ::-1]
        cv2.imwrite(str(tmp_path / "images" / f"{index}.png"), picture)
    yield tmp_path
    for name in ("frame_pairs_train", "frame_pairs_val"):
        DatasetCatalog.pop(name, None)
        MetadataCatalog.pop(name, None)


@pytest.mark.parametrize("kind", ["ab", "masks"])
def test_it_trains_and_is_evaluated_through_train_net(pictures, kind):
    folders = f"{pictures}/images:{pictures}/labels"
    entries = [f"frame_pairs_{split}={folders}" for split in ("train", "val")]
    text = f"""
MODEL: {{TPN: {{PROPERTY: {kind}}}}}
DATASETS: {{FRAME_PAIRS: {json.dumps(entries)}}}
INPUT: {{CROP: {{SIZE: [48, 64]}}}}
TEST: {{BEST_METRIC: frame_pairs/psnr, VALIDATION_LOSS: True}}
"""
    output = pictures / "out"
    assert train(output, "spn/tpn.yaml", text) == 0
    metrics = json.loads((output / "result.json").read_text())["metrics"]["frame_pairs"]
    expected = {"psnr", "psnr_copy", "psnr_occluded", "psnr_occluded_copy", "pairs"}
    assert set(metrics) == expected | ({"J", "J_copy"} if kind == "masks" else set())
    assert metrics["pairs"] == 2 and metrics["psnr"] > 10
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    logged = set().union(*lines)
    assert {"loss_forward", "loss_backward", "loss_style"} <= logged
    assert {"propagation/energy_merged", "propagation/deviation_merged"} <= logged
    assert "validation/loss_forward" in logged


@pytest.mark.slow
def test_it_beats_the_copy_after_a_minute(pictures):
    """Two pictures are learned, with other motions than those that are evaluated."""
    cfg = configuration("INPUT.CROP.ENABLED", "True", "INPUT.CROP.TYPE", "absolute")
    cfg.INPUT.CROP.SIZE, cfg.INPUT.SCALE = [64, 64], 1.0
    mapper = FramePairMapper(cfg, is_train=True)
    records = [
        {
            "file_name": str(pictures / "images" / f"{index}.png"),
            "sem_seg_file_name": str(pictures / "labels" / f"{index}.png"),
            "image_id": str(index),
        }
        for index in range(2)
    ]
    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    np.random.seed(0)
    for step in range(150):
        losses, _ = losses_of(model, [mapper(records[step % 2]) for _ in range(2)], step)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    model.eval()
    errors = torch.zeros(2)
    for step in range(20):
        one = mapper(records[step % 2])
        for place, prediction in enumerate((model([one])[0]["property"], one["key_property"])):
            errors[place] += (prediction - one["target_property"]).square().mean()
    assert errors[0] < 0.8 * errors[1]
