"""A training iteration, from the batches to the step of the optimizer."""

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
    """Losses or gradients are infinite or NaN more often than allowed. The message is one line."""


class TooManyUnreadable(UnreadableImage):
    """More images than allowed are unreadable. All processes raise this in the same iteration."""


class NonFiniteStatistics(NonFinite):
    """Running statistics of the model are infinite or NaN, so it must not be saved."""


class TrainStep(SimpleTrainer):
    """Detectron2's training step with gradient accumulation and mixed precision.

    A step whose losses or gradients are not finite is skipped. All randomness of an iteration is
    seeded by the run's seed, the process and the iteration, so that a resumed run repeats it
    exactly.
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
            model: returns a dict of losses. With several processes it is wrapped for distributed
                training.
            data_loader: yields an endless stream of lists of dicts.
            optimizer: the optimizer of the model's parameters.
            seed: the seed of the run, 0 or more.
            accumulate_steps: the number of batches whose mean gradient makes a step.
            precision: the type that autocast uses in the forward pass. None: no autocast.
            max_nonfinite_steps: the number of steps that may be skipped.
            max_unreadable: the number of images that may be unreadable.
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
        self.unreadable: Dict[str, str] = {}  # reasons by file name, from all processes
        self.nonfinite_steps = 0

    def run_step(self) -> None:
        """Computes the gradient of ``accumulate_steps`` batches and updates the weights.

        Raises:
            TooManyUnreadable, NonFinite: There are more of these events than allowed.
        """
        start = time.perf_counter()
        batches = self._next_batches()
        data_time = time.perf_counter() - start
        self.optimizer.zero_grad()
        losses: Dict[str, torch.Tensor] = defaultdict(float)
        for number, batch in enumerate(batches):
            seed_all(self.seed, comm.get_rank(), self.iter, number)
            is_last = number == self.accumulate_steps - 1
            # Gradients are averaged over the processes once, with the last batch.
            with nullcontext() if is_last or comm.get_world_size() == 1 else self.model.no_sync():
                for name, loss in self._backward(batch).items():
                    losses[name] = losses[name] + loss.detach() / self.accumulate_steps
        self.after_backward()

        if self.grad_scaler.is_enabled():
            self.grad_scaler.unscale_(self.optimizer)
        culprits = self._nonfinite_losses(losses)
        # The loss scaler of float16 finds its scale by letting gradients overflow now and then.
        is_normal = (
            not culprits and self.grad_scaler.is_enabled() and self.grad_scaler.get_scale() > 1
        )
        culprits = culprits or self._nonfinite_gradients()
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
        """Loads the batches of a step.

        Unreadable images are counted over all processes, so that all processes stop in the same
        step.
        """
        batches: List[List[Dict[str, Any]]] = []
        failure = ""
        try:
            for _ in range(self.accumulate_steps):
                batches.append(next(self._data_loader_iter))
        except UnreadableImage as error:  # no replacement was found
            failure = unreadable_reason(error)
        skipped: Dict[str, str] = {}
        for item in itertools.chain(*batches):
            skipped.update(item.pop(SKIPPED, {}))
        unreadable = dict(self.unreadable)
        failures = []
        for part, part_failure in comm.all_gather((skipped, failure)):
            failures += [part_failure] if part_failure else []
            for file_name, reason in part.items():
                if file_name not in unreadable:
                    unreadable[file_name] = reason
                    logger.warning("skipped unreadable image %d: %s", len(unreadable), reason)
        if failures:
            raise TooManyUnreadable(failures[0])
        if len(unreadable) > self.max_unreadable:
            raise TooManyUnreadable(unreadable_message(unreadable, self.max_unreadable))
        self.unreadable = unreadable
        return batches

    def _nonfinite_losses(self, losses: Dict[str, torch.Tensor]) -> List[str]:
        """Describes the losses that are infinite or NaN in any process, equally in all of them."""
        nonfinite = [
            f"{name} is {float(loss)}" for name, loss in losses.items() if not loss.isfinite().all()
        ]
        return sorted(set(sum(comm.all_gather(nonfinite), [])))

    def _nonfinite_gradients(self) -> List[str]:
        """Describes the first parameter whose gradient is infinite or NaN."""
        # Gradients are averaged over the processes already, hence equal in all of them.
        named = [(n, p.grad) for n, p in self.model.named_parameters() if p.grad is not None]
        largest = torch._foreach_norm([gradient for _, gradient in named], float("inf"))
        finite = torch.stack(largest).isfinite()
        if finite.all():
            return []
        names = [name for (name, _), is_finite in zip(named, finite.tolist()) if not is_finite]
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
            logger.info(
                "skipped step, loss scale is now %g: %s", self.grad_scaler.get_scale(), message
            )
            return
        nonfinite = [n for n, b in self.model.named_buffers() if not b.isfinite().all()]
        nonfinite = sum(comm.all_gather(nonfinite), [])
        if nonfinite:
            raise NonFiniteStatistics(
                f"{message}; the running statistics {nonfinite[0]} are not finite, "
                "continue from the last checkpoint with --resume and a lower SOLVER.BASE_LR"
            )
        if self.nonfinite_steps >= self.max_nonfinite_steps:
            raise NonFinite(
                f"{message}; skipped steps: {self.nonfinite_steps}, SOLVER.MAX_NONFINITE_STEPS is "
                f"{self.max_nonfinite_steps}"
            )
        self.nonfinite_steps += 1
        logger.warning("skipped step %d: %s", self.nonfinite_steps, message)

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
