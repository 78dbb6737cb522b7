"""Detectron2's trainer with this package's mapper, evaluator and optimizer."""

import os
import weakref
from typing import Optional

import torch
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetMapper,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.solver import get_default_optimizer_params
from detectron2.solver.build import maybe_add_gradient_clipping
from torch import nn

from rpe_d2.data import (
    CountInstances,
    NameUnreadable,
    PixelLabelMapper,
    additional_augmentations,
)
from rpe_d2.evaluation import InstanceEvaluator, MaskProposalEvaluator

from .checkpoint import ModelCheckpointer

OPTIMIZERS = ("SGD", "ADAMW")


class Trainer(DefaultTrainer):
    """Trains any Detectron2 configuration; what it adds is chosen by the configuration."""

    def __init__(self, cfg: CfgNode):
        super().__init__(cfg)
        # Detectron2 builds its checkpointer, and the hooks that use it, in one go.
        self.checkpointer = ModelCheckpointer(
            self._trainer.model, cfg.OUTPUT_DIR, complete=False, trainer=weakref.proxy(self)
        )
        self._hooks.clear()
        self.register_hooks(self.build_hooks())

    @classmethod
    def build_train_loader(cls, cfg: CfgNode):
        needs_masks = cfg.MODEL.MASK_ON or cfg.MODEL.META_ARCHITECTURE == "PixelEmbeddingNet"
        if needs_masks:
            mapper = PixelLabelMapper(cfg, is_train=True)
        else:
            mapper = DatasetMapper(cfg, is_train=True)
            mapper.augmentations.augs.extend(additional_augmentations(cfg))
        return build_detection_train_loader(cfg, mapper=NameUnreadable(mapper))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str):
        mapper = DatasetMapper(cfg, is_train=False)
        if cfg.MODEL.RPE.GROUPING == "kmeans":
            mapper = CountInstances(mapper)
        return build_detection_test_loader(cfg, dataset_name, mapper=NameUnreadable(mapper))

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: Optional[str] = None
    ) -> DatasetEvaluator:
        folder = output_folder or os.path.join(cfg.OUTPUT_DIR, "inference")
        only_proposals = cfg.MODEL.META_ARCHITECTURE == "ProposalNetwork"
        evaluators = []
        if not only_proposals:
            evaluators.append(
                InstanceEvaluator(
                    dataset_name,
                    folder,
                    cfg.TEST.DETECTIONS_PER_IMAGE,
                    cfg.TEST.TOUCHING_INSTANCES,
                )
            )
        if only_proposals or cfg.TEST.PROPOSALS:
            evaluators.append(MaskProposalEvaluator(dataset_name))
        return DatasetEvaluators(evaluators)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Detectron2's ``build_optimizer`` with a choice of algorithm, ``SOLVER.OPTIMIZER``.

    Raises:
        ValueError: an unknown algorithm.
    """
    solver = cfg.SOLVER
    parameters = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        # Decay would pull a learned bandwidth towards 1, the widest that makes sense.
        overrides={"log_bandwidth": {"weight_decay": 0.0}},
    )
    options = {"lr": solver.BASE_LR, "weight_decay": solver.WEIGHT_DECAY}
    if solver.OPTIMIZER == "SGD":
        optimizer = torch.optim.SGD(
            parameters, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV, **options
        )
    elif solver.OPTIMIZER == "ADAMW":
        # Fused, a step takes a third of the time on a CPU. On CUDA a fused step would see gradients that the scaler of
        # mixed precision has not unscaled yet, and so would the clipping.
        on_cpu = all(parameter.device.type == "cpu" for parameter in model.parameters())
        optimizer = torch.optim.AdamW(parameters, fused=on_cpu, **options)
    else:
        raise ValueError(
            f"SOLVER.OPTIMIZER is {solver.OPTIMIZER!r}; allowed: {', '.join(OPTIMIZERS)}"
        )
    return maybe_add_gradient_clipping(cfg, optimizer)
