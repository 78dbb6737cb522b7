"""The baselines and the semantic heads in half precision."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from rpe_d2.engine.setup import read_config
from tests.conftest import ROOT
from tests.helpers.models import training_input

ON_CPU = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""]


def losses_in_half_precision(model, item):
    """Computes the losses and checks that only rounding distinguishes them from full precision."""
    losses = []
    for enabled in (False, True):
        torch.manual_seed(1)
        with EventStorage(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses.append(model([item]))
    full, half = losses
    for name, loss in half.items():
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(full[name].item(), rel=0.15, abs=0.02), name
    return half


@pytest.mark.parametrize(
    "name",
    [
        "mnc",
        "fcis",
        "sds",
        "hypercolumn",
        "instance_fcn",
        pytest.param("deepmask", marks=pytest.mark.slow),
        pytest.param("sharpmask", marks=pytest.mark.slow),
    ],
)
def test_autocast_changes_the_losses_by_rounding_only(name):
    config = str(ROOT / "configs" / "baselines" / f"{name}_shapes.yaml")
    torch.manual_seed(0)
    model = build_model(read_config(config, ON_CPU)).train()
    item = training_input((128, 128), ((4, 4, 40, 40), (64, 64, 124, 124)))
    proposals = []

    def keep_first_proposals(module, args, output):
        proposals.append(output[0])
        return proposals[0], output[1]

    # The proposals of an untrained network change with rounding, so both passes use the first ones.
    hook = model.proposal_generator.register_forward_hook(keep_first_proposals)
    losses_in_half_precision(model, item)
    hook.remove()
    model.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        (output,) = model([item])
    (instances,) = output.values()
    scores = instances.get("scores" if "instances" in output else "objectness_logits")
    assert len(scores) and scores.isfinite().all()


@pytest.mark.parametrize("name", ["embedding", "fcn_8s", "deconvnet", "multi_scale", "recurrent"])
def test_autocast_changes_semantic_losses_by_rounding_only(name):
    config = str(ROOT / "configs" / "semantic" / f"{name}_shapes.yaml")
    torch.manual_seed(0)
    model = build_model(
        read_config(config, [*ON_CPU, "MODEL.SEM_SEG_HEAD.PAIR_LOSS_WEIGHT", "1.0"])
    ).train()
    item = training_input((128, 128), ((4, 4, 40, 40), (64, 64, 124, 124)))
    item["sem_seg"] = torch.zeros(128, 128, dtype=torch.int64)
    item["sem_seg"][4:40, 4:40], item["sem_seg"][64:124, 64:124] = 1, 4
    losses = losses_in_half_precision(model, item)
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
