"""One iteration of training: batches, losses, gradients, a step of the optimizer."""

import itertools
import logging
import time
from collections import defaultdict
from contextlib import nullcontext
from typing import Any, Dict, List, Optional

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from torch import nn

from rpe_d2.data import ResumableLoader, UnreadableImage, seed_all
from rpe_d2.data.train_loader import SKIPPED, unreadable_message
from rpe_d2.utils.readable import unreadable_reason

logger = logging.getLogger(__name__)

PRECISIONS = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class NonFinite(RuntimeError):
    """Losses or gradients are infinite or NaN more often than allowed; the message is one line."""


class TooManyUnreadable(UnreadableImage):
    """More images than allowed are unreadable; all processes raise it in the same iteration."""


class SpoiltStatistics(NonFinite):
    """Running statistics of the model are infinite or NaN: it must not be saved."""


class TrainStep(SimpleTrainer):
    """Detectron2's step with accumulated gradients, mixed precision and skipped steps where numbers are not finite.

    All randomness of an iteration is seeded by the run's seed, the process and the iteration, so that a resumed run
    repeats it whatever was computed in between.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Any,
        optimizer: torch.optim.Optimizer,
        *,
        seed: int,
        accumulate_steps: int = 1,
        precision: Optional[torch.dtype] = None,
        max_nonfinite_steps: int = 0,
        max_unreadable: int = 0,
    ):
        """
        Args:
            model: gives a dict of losses; wrapped for distributed training where there are several processes.
            data_loader: endless, of lists of dicts.
            optimizer: of the model's parameters.
            seed: of the run, >= 0.
            accumulate_steps: batches whose mean gradient makes a step.
            precision: the forward pass runs under autocast with it; None: no autocast.
            max_nonfinite_steps: steps that may be skipped.
            max_unreadable: images that may be unreadable.
        """
        super().__init__(model, data_loader, optimizer)
        self.seed = seed
        self.accumulate_steps = accumulate_steps
        self.precision = precision
        self.device_type = next(model.parameters()).device.type
        self.grad_scaler = torch.amp.GradScaler(
            self.device_type, enabled=precision is torch.float16
        )
        self.max_nonfinite_steps = max_nonfinite_steps
        self.max_unreadable = max_unreadable
        self.images_seen = 0  # by all processes
        self.unreadable: Dict[str, str] = {}  # reasons by file name, of all processes
        self.nonfinite_steps = 0

    def run_step(self) -> None:
        """
        Raises:
            TooManyUnreadable, NonFinite: more of them than allowed.
        """
        start = time.perf_counter()
        batches = self._next_batches()
        data_time = time.perf_counter() - start
        self.optimizer.zero_grad()
        losses: Dict[str, torch.Tensor] = defaultdict(float)
        for number, batch in enumerate(batches):
            seed_all(self.seed, comm.get_rank(), self.iter, number)
            is_last = number == self.accumulate_steps - 1
            # Gradients are summed over processes once, with the last batch.
            with nullcontext() if is_last or comm.get_world_size() == 1 else self.model.no_sync():
                for name, loss in self._backward(batch).items():
                    losses[name] = losses[name] + loss.detach() / self.accumulate_steps
        self.after_backward()

        if self.grad_scaler.is_enabled():
            self.grad_scaler.unscale_(self.optimizer)
        culprits = self._bad_losses(losses)
        # The scaler of half precision finds its scale by overflowing gradients now and then.
        is_normal = (
            not culprits and self.grad_scaler.is_enabled() and self.grad_scaler.get_scale() > 1
        )
        culprits = culprits or self._bad_gradients()
        if culprits:
            self._skip(culprits, batches, is_normal)
        else:
            self._write_metrics(losses, data_time)
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()
        self.images_seen += sum(map(len, batches)) * comm.get_world_size()

    def _backward(self, batch: List[Dict[str, Any]]) -> Dict[str, torch.Tensor]:
        with torch.autocast(
            self.device_type, dtype=self.precision, enabled=self.precision is not None
        ):
            losses = self.model(batch)
        total = sum(losses.values()) / self.accumulate_steps
        self.grad_scaler.scale(total).backward()
        return losses

    def _next_batches(self) -> List[List[Dict[str, Any]]]:
        """Batches of a step. Counts what is unreadable in all processes, so that all of them stop in the same step."""
        batches: List[List[Dict[str, Any]]] = []
        failure = ""
        try:
            for _ in range(self.accumulate_steps):
                batches.append(next(self._data_loader_iter))
        except UnreadableImage as error:  # no replacement was found
            failure = unreadable_reason(error)
        met: Dict[str, str] = {}
        for item in itertools.chain(*batches):
            met.update(item.pop(SKIPPED, {}))
        unreadable = dict(self.unreadable)
        failures = []
        for part, part_failure in comm.all_gather((met, failure)):
            failures += [part_failure] if part_failure else []
            for file_name, reason in part.items():
                if file_name not in unreadable:
                    unreadable[file_name] = reason
                    logger.warning("skipped, unreadable image %d: %s", len(unreadable), reason)
        if failures:
            raise TooManyUnreadable(failures[0])
        if len(unreadable) > self.max_unreadable:
            raise TooManyUnreadable(unreadable_message(unreadable, self.max_unreadable))
        self.unreadable = unreadable
        return batches

    def _bad_losses(self, losses: Dict[str, torch.Tensor]) -> List[str]:
        """What is infinite or NaN of the losses of any process; the same in all processes."""
        bad = [
            f"{name} is {float(loss)}" for name, loss in losses.items() if not loss.isfinite().all()
        ]
        return sorted(set(sum(comm.all_gather(bad), [])))

    def _bad_gradients(self) -> List[str]:
        """The first parameter whose gradient is infinite or NaN; the same in all processes."""
        # Summed over processes already, hence the same in all of them.
        named = [(n, p.grad) for n, p in self.model.named_parameters() if p.grad is not None]
        largest = torch._foreach_norm([gradient for _, gradient in named], float("inf"))
        finite = torch.stack(largest).isfinite()
        if finite.all():
            return []
        names = [name for (name, _), good in zip(named, finite.tolist()) if not good]
        more = f" and of {len(names) - 1} other parameters" if len(names) > 1 else ""
        return [f"the gradient of {names[0].removeprefix('module.')}{more} is not finite"]

    def _skip(
        self, culprits: List[str], batches: List[List[Dict[str, Any]]], is_normal: bool
    ) -> None:
        images = [
            str(item.get("image_id", item.get("file_name"))) for item in itertools.chain(*batches)
        ]
        images = sum(comm.all_gather(images), [])
        message = f"iteration {self.iter}: {', '.join(culprits)}; image ids {', '.join(images)}"
        self.optimizer.zero_grad()
        if self.grad_scaler.is_enabled():
            self.grad_scaler.update()
        if is_normal:
            logger.info("skipped, loss scale is now %g: %s", self.grad_scaler.get_scale(), message)
            return
        polluted = [n for n, b in self.model.named_buffers() if not b.isfinite().all()]
        polluted = sum(comm.all_gather(polluted), [])
        if polluted:
            raise SpoiltStatistics(
                f"{message}; the running statistics {polluted[0]} are spoilt, go on from the last checkpoint "
                "with --resume and a lower SOLVER.BASE_LR"
            )
        if self.nonfinite_steps >= self.max_nonfinite_steps:
            raise NonFinite(
                f"{message}; skipped steps: {self.nonfinite_steps}, SOLVER.MAX_NONFINITE_STEPS is "
                f"{self.max_nonfinite_steps}"
            )
        self.nonfinite_steps += 1
        logger.warning("skipped step %d, %s", self.nonfinite_steps, message)

    def state_dict(self) -> Dict[str, Any]:
        state = {
            **super().state_dict(),
            "seed": self.seed,
            "images_seen": self.images_seen,
            "unreadable": dict(self.unreadable),
            "nonfinite_steps": self.nonfinite_steps,
        }
        if self.grad_scaler.is_enabled():
            state["grad_scaler"] = self.grad_scaler.state_dict()
        return state

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.images_seen = state_dict.get("images_seen", 0)
        self.unreadable = dict(state_dict.get("unreadable", {}))
        self.nonfinite_steps = state_dict.get("nonfinite_steps", 0)
        if self.grad_scaler.is_enabled() and state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
        if isinstance(self.data_loader, ResumableLoader):
            self.data_loader.start_at(self.images_seen)
