"""Averaged weights, validation loss, best model, signals, and logging to Weights & Biases."""

import os
import pickle
import signal
import sys
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.utils.events import EventStorage, get_event_storage
from torch import nn

from rpe_d2 import add_rpe_config
from rpe_d2.engine.checkpoint import ModelCheckpointer
from rpe_d2.engine.hooks import BestModel, StopOnSignal, TrainingStopped, averaged_copy, mean_losses
from rpe_d2.engine.wandb_writer import WandbWriter


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def test_averaged_weights_follow_their_recurrence():
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
        get_event_storage().put_scalar("accuracy_in_training", 1.0)
        return {"loss_a": (y**2).mean(), "loss_b": self.dropout(y).abs().mean()}


def test_validation_does_not_change_the_model_and_is_repeatable():
    model = Losses().train()
    model.net[0].eval()
    loader = [[{"x": torch.randn(3)} for _ in range(count)] for count in (2, 1, 3)]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    with EventStorage() as storage:
        first, second = mean_losses(model, loader), mean_losses(model, loader)
        assert storage.latest() == {}
    assert first == second and set(first) == {"total_loss", "loss_a", "loss_b"}
    assert first["total_loss"] == pytest.approx(first["loss_a"] + first["loss_b"])
    assert [module.training for module in model.modules()] == modes
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    model.net.eval()  # the mean over images, by hand
    values = [float((model.net(item["x"][None]) ** 2).mean()) for batch in loader for item in batch]
    assert first["loss_a"] == pytest.approx(sum(values) / len(values), rel=1e-5)


class Run:
    """Stands in for a trainer with the attributes that the hooks read."""

    def __init__(self, start_iter=0):
        self.start_iter = start_iter
        self.max_iter = 100
        self.iter = start_iter
        self.storage = EventStorage(start_iter)


def best_model(folder, metric="segm/AP", start_iter=0):
    hook = BestModel(1, ModelCheckpointer(network(), str(folder), complete=True), metric, 0)
    hook.trainer = Run(start_iter)
    hook.before_train()
    return hook


def evaluated(hook, score, metric="segm/AP"):
    """Whether the hook takes a model with this score for the best so far."""
    run = hook.trainer
    run.storage.put_scalar(metric, score, smoothing_hint=False)
    hook.after_step()
    is_best = hook.best_iteration == run.iter
    run.iter = run.storage.iter = run.iter + 1
    return is_best


def test_the_best_score_is_kept_over_a_resume(tmp_path):
    hook = best_model(tmp_path)
    assert [evaluated(hook, score) for score in (7.0, 10.0, 9.0)] == [True, True, False]
    resumed = best_model(tmp_path, start_iter=3)
    assert [evaluated(resumed, score) for score in (9.5, 11.0)] == [False, True]
    content = torch.load(tmp_path / "model_best.pth", weights_only=True)
    assert content["best"] == 11.0 and content["iteration"] == 4
    assert not (
        tmp_path / "last_checkpoint"
    ).exists()  # a resumed run continues from the last model


@pytest.mark.parametrize(
    "metric", ["validation/total_loss", "validation/loss_pair", "validation/loss_sem_seg"]
)
def test_of_losses_the_smallest_is_the_best(metric, tmp_path):
    hook = best_model(tmp_path, metric)
    found = [evaluated(hook, score, metric) for score in (3.0, 4.0, 2.0)]
    assert found == [True, False, True]


@pytest.mark.parametrize("content", [b"", b"hello", pickle.dumps({"best": 1})])
def test_a_damaged_best_model_is_named_and_replaced(content, tmp_path, caplog):
    (tmp_path / "model_best.pth").write_bytes(content)
    hook = best_model(tmp_path, start_iter=3)
    assert "model_best.pth cannot be read" in caplog.text
    assert evaluated(hook, 1.0)


def test_one_signal_that_arrives_twice_counts_once(capfd):
    stop = StopOnSignal()
    with stop.installed():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(TrainingStopped, match="SIGTERM"):
            stop.after_step()
    assert capfd.readouterr().err.count("SIGTERM: ending after this iteration") == 1
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


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
    """With the real library, which writes to disk instead of its server."""
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
    assert identities[0] == identities[1] == (tmp_path / "wandb_run").read_text()
    written = list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert len(written) == 2 and all(b"total_loss" in path.read_bytes() for path in written)
