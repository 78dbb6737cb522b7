"""The semantic head that refines logits by spatial propagation."""

import pytest
import torch
from detectron2.modeling import build_backbone, build_model
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from torch import nn
from torch.nn import functional as F

from rpe_d2.modeling import SPNSemSegHead
from tests.helpers.configs import small_cfg_with
from tests.helpers.modules import assert_same_state_dict

SEM_SEG = """
MODEL:
  META_ARCHITECTURE: SemanticSegmentor
  BACKBONE:
    NAME: build_guided_backbone
  SEM_SEG_HEAD:
    NAME: SPNSemSegHead
    IN_FEATURES: [p2, p3, p4, p5]
    NUM_CLASSES: 4
    CONVS_DIM: 32
"""


def small_backbone():
    """A guided ResNet-18-FPN, as in the small configuration."""
    return build_backbone(small_cfg_with("MODEL: {BACKBONE: {NAME: build_guided_backbone}}"))


def semantic_input():
    torch.manual_seed(1)
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    labels = torch.randint(0, 4, (64, 96))
    labels[:5] = 255
    return {"image": image, "sem_seg": labels}


def test_the_untrained_semantic_head_predicts_as_the_refined_one():
    torch.manual_seed(0)
    cfg = small_cfg_with(SEM_SEG, "MODEL: {SPN: {STRIDE: 4}}")
    refining = build_model(cfg).eval()
    cfg.MODEL.SEM_SEG_HEAD.NAME = "SemSegFPNHead"
    plain = build_model(cfg).eval()
    missing, unexpected = refining.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected and all(
        name.startswith(("sem_seg_head.guidance.", "sem_seg_head.propagation.")) for name in missing
    )
    assert not any(module.training for module in refining.sem_seg_head._wrapped[0].modules())
    item = semantic_input()
    with torch.no_grad():
        expected, scores = plain([item])[0]["sem_seg"], refining([item])[0]["sem_seg"]
    present = torch.bincount(expected.argmax(dim=0).flatten(), minlength=4) > 0
    assert torch.equal(scores[present], expected[present])


def test_semantic_losses_before_and_after_refinement():
    model = build_model(small_cfg_with(SEM_SEG))
    nn.init.normal_(model.sem_seg_head.propagation.project.weight, std=0.1)
    losses = model([semantic_input()])
    assert set(losses) == {"loss_sem_seg", "loss_sem_seg_refined"}
    losses["loss_sem_seg_refined"].backward()
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for p in model.sem_seg_head.parameters()
    )


def test_the_weight_of_the_semantic_losses_applies_before_and_after_refinement():
    def losses(weight):
        torch.manual_seed(0)
        text = f"MODEL: {{SEM_SEG_HEAD: {{LOSS_WEIGHT: {weight}}}}}"
        return build_model(small_cfg_with(SEM_SEG, text))([semantic_input()])

    once, half = losses(1.0), losses(0.5)
    for name in ("loss_sem_seg", "loss_sem_seg_refined"):
        assert half[name].item() == pytest.approx(0.5 * once[name].item(), rel=1e-4)


def test_the_semantic_head_with_propagated_probabilities():
    torch.manual_seed(0)
    text = "MODEL: {SPN: {CHANNELS: 0}, SEM_SEG_HEAD: {PAIR_LOSS_WEIGHT: 1.0}}"
    model = build_model(small_cfg_with(SEM_SEG, text))
    losses = model([semantic_input()])
    assert set(losses) == {"loss_sem_seg", "loss_sem_seg_refined", "loss_sem_seg_pair"}
    losses["loss_sem_seg_refined"].backward(retain_graph=True)
    gates = model.sem_seg_head.guidance.parameters()
    assert all(p.grad.abs().sum() > 0 for p in gates)
    losses["loss_sem_seg_pair"].backward()
    assert model.sem_seg_head.embedding.weight.grad.abs().sum() > 0
    with torch.no_grad():  # close to the scores before refinement, which are at twice the stride
        refined = model.eval()([semantic_input()])[0]["sem_seg"].softmax(dim=0)
        image = (semantic_input()["image"] - model.pixel_mean) / model.pixel_std
        features = model.backbone(image[None])
        before = model.sem_seg_head._wrapped[0].layers(features)
        before = F.interpolate(before, scale_factor=4, mode="bilinear")[0].softmax(dim=0)
    assert (refined - before).abs().mean() < 0.05


def test_a_frozen_head_does_not_change():
    text = """
MODEL:
  GUIDED_BACKBONE: {FREEZE: True}
  SEM_SEG_HEAD: {NORM: BN}
  SPN: {FREEZE_HEAD: True}
"""
    model = build_model(small_cfg_with(SEM_SEG, text))
    refinement = ("sem_seg_head.guidance.", "sem_seg_head.propagation.")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(filter(lambda p: p.requires_grad, model.parameters()), lr=0.1)
    nn.init.normal_(model.sem_seg_head.propagation.project.weight, std=0.1)
    for _ in range(2):
        losses = model.train()([semantic_input()])
        assert set(losses) == {"loss_sem_seg_refined"}
        losses["loss_sem_seg_refined"].backward()
        optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not value.equal(before[name])}
    assert changed and all(name.startswith(refinement) for name in changed)
    assert changed == {name for name in before if name.startswith(refinement)}


def test_only_classes_of_the_coarse_prediction_are_predicted():
    model = build_model(small_cfg_with(SEM_SEG)).eval()
    with torch.no_grad():
        model.sem_seg_head.predictor.weight.zero_()
        model.sem_seg_head.predictor.bias.copy_(torch.tensor([0.0, 1.0, 0.0, 0.0]))
        model.sem_seg_head.propagation.project.bias.copy_(torch.tensor([0.0, 0.0, 5.0, 0.0]))
        scores = model([semantic_input()])[0]["sem_seg"]
    assert scores.isfinite().all() and (scores.argmax(dim=0) == 1).all()


def test_a_directly_constructed_semantic_head_equals_the_configured_one():
    configured = build_model(small_cfg_with(SEM_SEG)).sem_seg_head
    input_shape = small_backbone().output_shape()
    pyramid = {name: input_shape[name] for name in ("p2", "p3", "p4", "p5")}
    refined = SemSegFPNHead(pyramid, num_classes=4, conv_dims=32, common_stride=4, norm="GN")
    direct = SPNSemSegHead(input_shape, head=refined, num_classes=4)
    assert_same_state_dict(direct, configured)
    for name in ("ignore_value", "refined_loss_weight", "pair_loss", "freeze_head"):
        assert getattr(direct, name) == getattr(configured, name)
    assert direct.propagation.units == configured.propagation.units
    assert direct.guidance.in_features == configured.guidance.in_features


def test_a_frozen_head_needs_weights():
    frozen = small_cfg_with(SEM_SEG, "MODEL: {SPN: {FREEZE_HEAD: True}}")
    SPNSemSegHead.check_run(frozen, has_weights=True)
    SPNSemSegHead.check_run(small_cfg_with(SEM_SEG), has_weights=False)
    with pytest.raises(ValueError, match="MODEL.WEIGHTS is empty; MODEL.SPN.FREEZE_HEAD keeps"):
        SPNSemSegHead.check_run(frozen, has_weights=False)


@pytest.mark.parametrize(
    "texts, message",
    [
        (
            [SEM_SEG, "MODEL: {SPN: {CONV_DIM: 0}}"],
            "MODEL.SPN.CONV_DIM is 0; allowed: 1 to 65536",
        ),
        (
            [SEM_SEG, "MODEL: {SPN: {SEM_SEG_HEAD: SPNSemSegHead}}"],
            "MODEL.SPN.SEM_SEG_HEAD is 'SPNSemSegHead'; allowed",
        ),
        (
            [SEM_SEG, "MODEL: {SPN: {CHANNELS: 0, GATE_MODE: clipped}}"],
            "MODEL.SPN.GATE_MODE is 'clipped'; allowed with MODEL.SPN.CHANNELS 0: softmax",
        ),
        (
            [SEM_SEG, "MODEL: {SPN: {FREEZE_HEAD: True}}"],
            "MODEL.SPN.FREEZE_HEAD is True, and the backbone of that head is trained; allowed",
        ),
        ([SEM_SEG, "MODEL: {SPN: {STRIDE: 8}}"], "MODEL.SPN.STRIDE is 8; allowed: at most 4"),
    ],
)
def test_a_wrong_key_is_reported_in_one_line(texts, message):
    with pytest.raises(ValueError, match=message) as error:
        build_model(small_cfg_with(*texts))
    assert "\n" not in str(error.value)
