"""Averaged weights, validation loss and the writer for Weights & Biases."""

import sys
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.utils.events import EventStorage
from torch import nn

from rpe_d2 import add_rpe_config
from rpe_d2.engine.hooks import averaged_copy, mean_losses
from rpe_d2.engine.wandb_writer import WandbWriter


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def test_average_is_the_recurrence():
    model = network()
    averaged = averaged_copy(model, 0.95)
    expected = None
    for step in range(30):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        model(torch.randn(8, 3))
        averaged.update_parameters(model)
        state = {name: value.clone() for name, value in model.state_dict().items()}
        decay = min(0.95, (1 + step) / (10 + step))
        if expected is None:
            expected = state
        for name, value in state.items():
            if value.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * value
    for name, value in averaged.module.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, expected[name])


class Losses(nn.Module):
    """A network whose losses show which statistics and which random numbers it used."""

    def __init__(self):
        super().__init__()
        self.net = network()
        self.dropout = nn.Dropout(0.5)

    def forward(self, batch):
        assert self.training
        y = self.net(torch.stack([item["x"] for item in batch]))
        return {"loss_a": (y**2).mean(), "loss_b": self.dropout(y).abs().mean()}


def test_validation_leaves_the_model_alone_and_repeats_itself():
    model = Losses().train()
    model.net[0].eval()
    loader = [[{"x": torch.randn(3)} for _ in range(count)] for count in (2, 1, 3)]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    first, second = mean_losses(model, loader), mean_losses(model, loader)
    assert first == second and set(first) == {"total_loss", "loss_a", "loss_b"}
    assert first["total_loss"] == pytest.approx(first["loss_a"] + first["loss_b"])
    assert [module.training for module in model.modules()] == modes
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    model.net.eval()  # the mean over images, by hand
    values = [float((model.net(item["x"][None]) ** 2).mean()) for batch in loader for item in batch]
    assert first["loss_a"] == pytest.approx(sum(values) / len(values), rel=1e-5)


def wandb_cfg(folder: Path):
    cfg = get_cfg()
    add_rpe_config(cfg)
    cfg.OUTPUT_DIR = str(folder)
    cfg.WANDB_PROJECT = "rpe_d2 tests"
    return cfg


def test_wandb_missing_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="WANDB_PROJECT is 'rpe_d2 tests', which needs wandb"):
        WandbWriter(wandb_cfg(tmp_path))


def test_wandb_continues_its_run(tmp_path, monkeypatch):
    """The real library, writing to disk instead of its server."""
    pytest.importorskip("wandb", reason="wandb is optional and not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    identities = []
    for start in (0, 4):
        with EventStorage(start) as storage:
            writer = WandbWriter(wandb_cfg(tmp_path))
            for _ in range(4):
                storage.put_scalars(total_loss=1.0 / (storage.iter + 1), smoothing_hint=False)
                writer.write()
                storage.step()
            identities.append(writer._run.id)
            writer.close()
            assert writer._run.summary["total_loss"] == pytest.approx(1.0 / storage.iter)
    assert identities[0] == identities[1] == (tmp_path / "wandb_run").read_text()
    assert list((tmp_path / "wandb").glob("offline-run-*"))
