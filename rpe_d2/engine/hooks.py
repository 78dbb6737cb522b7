"""Additional hooks: averaged weights, validation loss, best model, stopping on a signal."""

import logging
import math
import os
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Optional, Sequence

import torch
from detectron2.engine import HookBase, hooks
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from rpe_d2.data import seed_all
from rpe_d2.utils.second_signal import SAME_SIGNAL_SECONDS

from .checkpoint import ModelCheckpointer, one_line_reason

logger = logging.getLogger(__name__)

_MINIMIZED = ("loss", "delta_E")  # parts of the names of metrics


class TrainingStopped(BaseException):
    """Ends the training loop on purpose. It is not an ``Exception``, because nothing went wrong.

    Attributes:
        signal_number: the signal that stopped the training, or 0 if it was not a signal.
    """

    def __init__(self, reason: str, signal_number: int = 0):
        super().__init__(reason)
        self.signal_number = signal_number


class AverageWeights(HookBase):
    """Maintains an exponential moving average of the weights, ``SOLVER.EMA``."""

    def __init__(self, averaged: AveragedModel, model: nn.Module):
        """
        Args:
            averaged: the averaged model, created by :func:`averaged_copy`.
            model: the model in training.
        """
        self._averaged = averaged
        self._model = model

    def after_step(self) -> None:
        self._averaged.update_parameters(self._model)


def averaged_copy(model: nn.Module, decay: float) -> AveragedModel:
    """Creates a copy of a model that keeps an exponential moving average of its weights.

    In each step it becomes ``decay * average + (1 - decay) * weights``. At step n the decay is at
    most (1 + n) / (10 + n), so that the random initial weights are soon forgotten. Buffers, such as
    running statistics, are averaged as well.

    Args:
        model: the model in training.
        decay: the decay per step, above 0 and below 1.
    """

    def update(averages, weights, steps):
        steps = int(steps)
        get_ema_multi_avg_fn(min(decay, (1 + steps) / (10 + steps)))(averages, weights, steps)

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)


class ValidationLoss(HookBase):
    """Stores the losses on validation data, ``validation/loss_…`` and ``validation/total_loss``."""

    def __init__(self, period: int, losses: Callable[[], Dict[str, float]]):
        """
        Args:
            period: the number of iterations between evaluations. 0: only after the last iteration.
            losses: computes the losses, ``total_loss`` among them.
        """
        self._period = period
        self._losses = losses

    def after_step(self) -> None:
        if is_evaluated(self.trainer, self._period):
            self._put()

    def after_train(self) -> None:
        if self.trainer.iter + 1 >= self.trainer.max_iter:
            self._put()

    def _put(self) -> None:
        losses = {f"validation/{name}": value for name, value in self._losses().items()}
        self.trainer.storage.put_scalars(smoothing_hint=False, **losses)
        total = losses["validation/total_loss"]
        logger.info("after iteration %d: validation loss %.4g", last_iteration(self.trainer), total)


def is_evaluated(trainer: Any, period: int) -> bool:
    """Returns whether Detectron2's ``EvalHook`` evaluates after this step.

    The last step is excluded, because it is evaluated after training.
    """
    done = trainer.iter + 1
    return period > 0 and done % period == 0 and done != trainer.max_iter


def last_iteration(trainer: Any) -> int:
    """Returns the last complete iteration. After training, Detectron2's counter is one higher."""
    return min(trainer.iter, trainer.max_iter - 1)


def mean_losses(model: nn.Module, loader: Any) -> Dict[str, float]:
    """Averages the losses of a model over all images of a loader and all processes.

    The model does not change: no gradients are computed, and batch normalization uses its running
    statistics.

    Args:
        model: returns a dict of losses for a batch.
        loader: yields batches, lists of dicts.

    Returns:
        The mean losses by name, and their sum as ``total_loss``.
    """
    was_training = {module: module.training for module in model.modules()}
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.eval()
    sums: Dict[str, float] = {}
    count = 0
    try:
        with torch.no_grad():
            for number, batch in enumerate(loader):
                seed_all(number)  # so that the same pixels are sampled each time
                with EventStorage(1):  # discards the training metrics that the model logs
                    losses = model(batch)
                for name, loss in losses.items():
                    sums[name] = sums.get(name, 0.0) + float(loss) * len(batch)
                count += len(batch)
    finally:
        for module, training in was_training.items():
            module.training = training
    parts = [part for part in comm.all_gather((sums, count)) if part[1]]
    images = sum(count for _, count in parts)
    means = {name: sum(sums[name] for sums, _ in parts) / images for name in parts[0][0]}
    return {"total_loss": sum(means.values()), **means}


class BestModel(HookBase):
    """Saves the model with the best score as ``model_best.pth``, and ends a run that stagnates.

    The file also holds its score, which a resumed run reads.
    """

    FILE = "model_best"

    def __init__(self, period: int, checkpointer: ModelCheckpointer, metric: str, patience: int):
        """
        Args:
            period: the number of iterations between evaluations.
            checkpointer: writes the file.
            metric: the name of a scalar in the storage, such as "segm/AP". A metric with "loss" or
                "delta_E" in its name is minimized, and any other is maximized.
            patience: the number of evaluations without improvement after which training ends. 0:
                training never ends early.
        """
        self._period = period
        self._checkpointer = checkpointer
        self._metric = metric
        self._sign = -1 if any(name in metric for name in _MINIMIZED) else 1
        self._patience = patience
        self.best: Optional[float] = None
        self.best_iteration = -1

    def before_train(self) -> None:
        path = Path(self._checkpointer.save_dir) / f"{self.FILE}.pth"
        if self.trainer.start_iter == 0 or not path.is_file():
            return
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            metric, best, iteration = (content[key] for key in ("metric", "best", "iteration"))
        except Exception as error:  # a damaged file may raise any error
            reason = one_line_reason(error)
            logger.warning("%s cannot be read, so the best score is forgotten: %s", path, reason)
            return
        if metric == self._metric:
            self.best, self.best_iteration = best, iteration

    def after_step(self) -> None:
        if not is_evaluated(self.trainer, self._period):
            return
        self._update()
        reason = comm.all_gather(self._stagnation())[0]
        if reason:
            raise TrainingStopped(reason)

    def _stagnation(self) -> str:
        """Returns why training should end, or "" if it should not."""
        stagnant = self.trainer.iter - self.best_iteration >= self._patience * self._period
        if self._patience == 0 or self.best is None or not stagnant:
            return ""
        return (
            f"{self._metric} has not improved in {self._patience} evaluations: "
            f"best {self.best:.4g} after iteration {self.best_iteration}, kept in {self.FILE}.pth"
        )

    def after_train(self) -> None:
        if self.trainer.iter + 1 >= self.trainer.max_iter:
            self._update()

    def _update(self) -> None:
        if not comm.is_main_process():
            return
        score, _ = self.trainer.storage.latest().get(self._metric, (math.nan, -1))
        if not math.isfinite(score):
            names = ", ".join(n for n in self.trainer.storage.latest() if "/" in n)
            logger.warning(
                "TEST.BEST_METRIC %s was not evaluated; allowed: %s", self._metric, names
            )
            return
        if self.best is None or self._sign * score > self._sign * self.best:
            self.best, self.best_iteration = float(score), last_iteration(self.trainer)
            state = {"iteration": self.best_iteration, "metric": self._metric, "best": self.best}
            self._checkpointer.save(self.FILE, is_last=False, **state)
            logger.info("best %s so far: %.4g", self._metric, self.best)


class ResumedEvaluation(HookBase):
    """Repeats the evaluation of the checkpoint from which a run resumes.

    A checkpoint is written before it is evaluated. If the process died during that evaluation, the
    checkpoint may be the best model without being known as such.
    """

    def __init__(self, evaluations: Sequence[HookBase]):
        """
        Args:
            evaluations: the hooks that evaluate after a step.
        """
        self._evaluations = evaluations

    def before_train(self) -> None:
        trainer = self.trainer
        if trainer.start_iter == 0:
            return
        trainer.iter = trainer.storage.iter = trainer.start_iter - 1
        for hook in self._evaluations:
            hook.after_step()
        trainer.iter = trainer.storage.iter = trainer.start_iter


class FixedPreciseBN(hooks.PreciseBN):
    """Detectron2's precise batch normalization, computed always from the same images.

    A resumed run therefore computes the same statistics.
    """

    def update_stats(self) -> None:
        self._data_iter = None
        super().update_stats()


class StopOnSignal(HookBase):
    """Ends training after the current iteration on SIGINT (Ctrl-C) or SIGTERM.

    A second signal ends the process at once. With several processes, it is enough that one of them
    gets the signal. A single process stops in the middle of an evaluation, which loses nothing;
    several processes first complete the evaluation together.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)
    SAME_SIGNAL_SECONDS = SAME_SIGNAL_SECONDS

    def __init__(self):
        self._received = 0
        self._received_at = 0.0
        self._evaluating = False
        self._process = os.getpid()

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handles the signals within a ``with`` block."""
        previous = {number: signal.signal(number, self._handle) for number in self.SIGNALS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: Any) -> None:
        if os.getpid() != self._process:
            return  # a data-loading process, which the training process will end
        name = signal.Signals(number).name
        if self._received:
            if time.monotonic() - self._received_at > self.SAME_SIGNAL_SECONDS:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        self._received, self._received_at = number, time.monotonic()
        if self._evaluating and comm.get_world_size() == 1:
            raise TrainingStopped(f"{name} during an evaluation", number)
        what = "evaluation" if self._evaluating else "iteration"
        print(
            f"{name}: ending after this {what}; a second signal ends the run at once",
            file=sys.stderr,
        )

    def evaluate(self, evaluation: Callable[[], Any]) -> Any:
        """Calls a function that a signal may interrupt, and returns its result."""
        self._evaluating = True
        try:
            return evaluation()
        finally:
            self._evaluating = False

    def after_step(self) -> None:
        received = max(comm.all_gather(self._received))
        if received:
            raise TrainingStopped(signal.Signals(received).name, received)
