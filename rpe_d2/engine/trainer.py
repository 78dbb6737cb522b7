"""Detectron2's trainer with this package's mapper, evaluator and optimizer."""

import os
from typing import Optional

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, build_detection_train_loader
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import DatasetEvaluator
from detectron2.solver import get_default_optimizer_params
from detectron2.solver.build import maybe_add_gradient_clipping
from torch import nn

from rpe_d2.data import PixelLabelMapper
from rpe_d2.evaluation import InstanceEvaluator

OPTIMIZERS = ("SGD", "ADAMW")


class Trainer(DefaultTrainer):
    """Trains any Detectron2 configuration; what it adds is chosen by the configuration."""

    @classmethod
    def build_train_loader(cls, cfg: CfgNode):
        needs_masks = cfg.MODEL.MASK_ON or cfg.MODEL.META_ARCHITECTURE == "PixelEmbeddingNet"
        mapper = (PixelLabelMapper if needs_masks else DatasetMapper)(cfg, is_train=True)
        return build_detection_train_loader(cfg, mapper=mapper)

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: Optional[str] = None
    ) -> DatasetEvaluator:
        folder = output_folder or os.path.join(cfg.OUTPUT_DIR, "inference")
        return InstanceEvaluator(dataset_name, folder, cfg.TEST.DETECTIONS_PER_IMAGE)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        if cfg.SOLVER.OPTIMIZER == "SGD":
            return super().build_optimizer(cfg, model)
        if cfg.SOLVER.OPTIMIZER != "ADAMW":
            raise ValueError(
                f"SOLVER.OPTIMIZER is {cfg.SOLVER.OPTIMIZER!r}; allowed: {', '.join(OPTIMIZERS)}"
            )
        parameters = get_default_optimizer_params(
            model,
            base_lr=cfg.SOLVER.BASE_LR,
            weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
            bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
            weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
        )
        optimizer = torch.optim.AdamW(
            parameters, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY
        )
        return maybe_add_gradient_clipping(cfg, optimizer)
