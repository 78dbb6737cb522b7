"""Optimizers and learning rate schedules."""

from typing import List, Tuple

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


def _backbone_prefixes(model: nn.Module) -> Tuple[str, ...]:
    """Returns the prefixes of the parameters of backbones.

    These are modules with the name ``backbone``, and those that modules list in
    ``backbone_names``.
    """
    prefixes = []
    for name, module in model.named_modules():
        for child in {"backbone", *getattr(module, "backbone_names", ())}:
            if hasattr(module, child):
                prefixes.append(f"{name}.{child}.".lstrip("."))
    return tuple(prefixes)


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Builds the optimizer that ``SOLVER.OPTIMIZER`` names, with Detectron2's options for both.

    ``SOLVER.BACKBONE_MULTIPLIER`` has the name and the meaning that it has in Mask2Former. With 0,
    the parameters of the backbone need no gradients any more.

    Raises:
        ValueError: ``SOLVER.OPTIMIZER`` is unknown.
    """
    solver = cfg.SOLVER
    backbone = _backbone_prefixes(model)
    if solver.BACKBONE_MULTIPLIER == 0:
        for name, parameter in model.named_parameters():
            if name.startswith(backbone):
                parameter.requires_grad_(False)

    def factor(name: str) -> float:
        own = solver.BACKBONE_MULTIPLIER if name.startswith(backbone) else 1.0
        return own * (solver.BIAS_LR_FACTOR if name.endswith(".bias") else 1.0)

    parameters = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        lr_factor_func=factor,
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
