"""Optimizers and learning rate schedules."""

from typing import List

import torch
from detectron2.config import CfgNode
from detectron2.solver import LRMultiplier, WarmupParamScheduler
from detectron2.solver import build_lr_scheduler as build_detectron2_lr_scheduler
from detectron2.solver import get_default_optimizer_params
from detectron2.solver.build import maybe_add_gradient_clipping
from fvcore.common.param_scheduler import PolynomialDecayParamScheduler
from torch import nn

__all__ = ["build_lr_scheduler", "build_optimizer"]

OPTIMIZERS = ("SGD", "ADAMW")


def _without_weight_decay(model: nn.Module) -> List[str]:
    """Collects the parameter names that modules list in ``no_weight_decay``."""
    return sorted({n for module in model.modules() for n in getattr(module, "no_weight_decay", ())})


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Builds the optimizer that ``SOLVER.OPTIMIZER`` names, with Detectron2's options for both.

    Raises:
        ValueError: ``SOLVER.OPTIMIZER`` is unknown.
    """
    solver = cfg.SOLVER
    parameters = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        overrides={name: {"weight_decay": 0.0} for name in _without_weight_decay(model)},
    )
    options = {"lr": solver.BASE_LR, "weight_decay": solver.WEIGHT_DECAY}
    if solver.OPTIMIZER == "SGD":
        optimizer = torch.optim.SGD(
            parameters, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV, **options
        )
    elif solver.OPTIMIZER == "ADAMW":
        # On a CPU, the fused implementation takes a third of the time.
        on_cpu = all(parameter.device.type == "cpu" for parameter in model.parameters())
        optimizer = torch.optim.AdamW(parameters, fused=on_cpu, **options)
    else:
        raise ValueError(
            f"SOLVER.OPTIMIZER is {solver.OPTIMIZER!r}; allowed: {', '.join(OPTIMIZERS)}"
        )
    return maybe_add_gradient_clipping(cfg, optimizer)


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRMultiplier:
    """Builds the schedule that ``SOLVER.LR_SCHEDULER_NAME`` names.

    ``WarmupPolyLR`` has the same name and the same keys as in Detectron2's DeepLab project: the
    rate is ``BASE_LR * (1 - iteration / MAX_ITER) ** SOLVER.POLY_LR_POWER``. The others are those
    of Detectron2.
    """
    solver = cfg.SOLVER
    if solver.LR_SCHEDULER_NAME != "WarmupPolyLR":
        return build_detectron2_lr_scheduler(cfg, optimizer)
    schedule = WarmupParamScheduler(
        PolynomialDecayParamScheduler(1.0, solver.POLY_LR_POWER),
        solver.WARMUP_FACTOR,
        min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0),
        solver.WARMUP_METHOD,
        solver.RESCALE_INTERVAL,
    )
    return LRMultiplier(optimizer, multiplier=schedule, max_iter=solver.MAX_ITER)
