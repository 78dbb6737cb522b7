"""Detectron2's trainer with this package's data, evaluation, optimizer and care for interrupted runs."""

import logging
import os
import weakref
from pathlib import Path
from typing import Any, Dict, List, Optional

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, MetadataCatalog, build_detection_test_loader
from detectron2.data import transforms as T
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase, hooks
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators, SemSegEvaluator
from detectron2.solver import get_default_optimizer_params
from detectron2.solver.build import maybe_add_gradient_clipping
from detectron2.utils import comm
from fvcore.nn.precise_bn import get_bn_modules
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rpe_d2.data import (
    BoundaryMapper,
    CoarseInstances,
    CountInstances,
    NameUnreadable,
    PixelLabelMapper,
    ResumableLoader,
    UnreadableImage,
    additional_augmentations,
    build_resumable_train_loader,
)
from rpe_d2.evaluation import (
    BoundaryAPEvaluator,
    BSDSBoundaryEvaluator,
    DenseCRF,
    DenseCRFEvaluator,
    InstanceSegmentationEvaluator,
    MaskProposalEvaluator,
    PartFScoreEvaluator,
    VOCInstanceEvaluator,
)
from rpe_d2.utils.label_maps import read_label_map

from .checkpoint import AVERAGED, ModelCheckpointer
from .hooks import (
    AverageWeights,
    BestModel,
    FixedPreciseBN,
    ResumedEvaluation,
    StopOnSignal,
    TrainingStopped,
    ValidationLoss,
    averaged_copy,
    mean_losses,
)
from .train_step import PRECISIONS, NonFinite, SpoiltStatistics, TooManyUnreadable, TrainStep
from .wandb_writer import WandbWriter

logger = logging.getLogger(__name__)

OPTIMIZERS = ("SGD", "ADAMW")
_GENERATORS_OF_MASKS = ("MeanShiftProposalGenerator", "DeepMask", "SharpMask", "InstanceFCN")


class Trainer(DefaultTrainer):
    """Trains any Detectron2 configuration; what it adds is chosen by the configuration."""

    def __init__(self, cfg: CfgNode):
        """
        Args:
            cfg: a ``SEED`` below 0 is replaced by a random one, with which a later resume goes on only where
                :func:`rpe_d2.engine.setup.setup` reads it from the checkpoint.
        """
        # Instead of DefaultTrainer's: its distributed model fails on CPUs, and its loader cannot resume.
        TrainerBase.__init__(self)
        cfg = self.auto_scale_workers(cfg, comm.get_world_size()).clone()
        cfg.defrost()
        cfg.SEED = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
        cfg.freeze()
        self.cfg = cfg
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        self.averaged = (
            averaged_copy(model, cfg.SOLVER.EMA.DECAY) if cfg.SOLVER.EMA.ENABLED else None
        )
        self._trainer = TrainStep(
            distributed(model, cfg.SOLVER.FIND_UNUSED_PARAMETERS),
            self.build_train_loader(cfg),
            optimizer,
            seed=cfg.SEED,
            accumulate_steps=cfg.SOLVER.ACCUMULATE_STEPS,
            precision=PRECISIONS[cfg.SOLVER.AMP.PRECISION] if cfg.SOLVER.AMP.ENABLED else None,
            max_nonfinite_steps=cfg.SOLVER.MAX_NONFINITE_STEPS,
            max_unreadable=cfg.DATALOADER.MAX_UNREADABLE,
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = ModelCheckpointer(
            model,
            cfg.OUTPUT_DIR,
            complete=False,
            trainer=weakref.proxy(self),
            **({AVERAGED: self.averaged} if self.averaged else {}),
        )
        self.register_hooks(self.build_hooks())

    @property
    def trained_model(self) -> nn.Module:
        """What is evaluated: the averaged weights where there are some."""
        return self.averaged.module if self.averaged else self.model

    def build_hooks(self) -> List[Optional[HookBase]]:
        """Detectron2's, and those the configuration asks for, in the order in which they act after a step."""
        cfg, test = self.cfg, self.cfg.TEST
        is_main = comm.is_main_process()
        self._stop = stop = StopOnSignal()

        def evaluate() -> Dict[str, Any]:
            share_buffers(self.trained_model)
            self._last_eval_results = stop.evaluate(lambda: self.test(cfg, self.trained_model))
            return self._last_eval_results

        def validate() -> Dict[str, float]:
            share_buffers(self.trained_model)
            return stop.evaluate(lambda: self.validation_losses(cfg, self.trained_model))

        train_hooks = [hooks.IterationTimer(), hooks.LRScheduler()]
        if self.averaged:
            train_hooks.append(AverageWeights(self.averaged, unwrapped(self.model)))
        if test.PRECISE_BN.ENABLED and get_bn_modules(self.model):
            here = cfg.clone()
            here.defrost()
            here.DATALOADER.NUM_WORKERS = 0
            loader, steps = self.build_train_loader(here), test.PRECISE_BN.NUM_ITER
            train_hooks.append(FixedPreciseBN(test.EVAL_PERIOD, self.model, loader, steps))
        # Saved before they are evaluated: a failing evaluation costs less.
        if is_main:
            period = cfg.SOLVER.CHECKPOINT_PERIOD
            train_hooks.append(hooks.PeriodicCheckpointer(self.checkpointer, period))
        evaluations = [hooks.EvalHook(test.EVAL_PERIOD, evaluate)]
        if test.VALIDATION_LOSS:
            evaluations.append(ValidationLoss(test.EVAL_PERIOD, validate))
        if test.BEST_METRIC:
            patience = cfg.SOLVER.EARLY_STOPPING_PATIENCE
            evaluations.append(
                BestModel(test.EVAL_PERIOD, self.checkpointer, test.BEST_METRIC, patience)
            )
        self._evaluations = evaluations
        train_hooks += evaluations
        if is_main:
            train_hooks.append(hooks.PeriodicWriter(self.build_writers(), period=20))
        return [*train_hooks, stop, ResumedEvaluation(evaluations)]

    def build_writers(self) -> List[Any]:
        writers = super().build_writers()
        if self.cfg.WANDB_PROJECT:
            writers.append(WandbWriter(self.cfg))
        return writers

    def resume_or_load(self, resume: bool = True) -> None:
        super().resume_or_load(resume)
        self.start_iter = comm.all_gather(self.start_iter)[0]
        if self.averaged and self.averaged.n_averaged == 0:
            # Nothing is averaged yet, but the copy was made before the weights were loaded.
            self.averaged.module.load_state_dict(unwrapped(self.model).state_dict())

    def train(self) -> None:
        """Trains to the last iteration, or until something asks to stop.

        Raises:
            TrainingStopped: by a signal, or because nothing improves; the state is saved.
            UnreadableImage, NonFinite: more of them than allowed; the state before the iteration is saved.
            DeadWorker: a process that reads data died, which may be noticed in the middle of an update: nothing is
                saved.
        """
        with self._stop.installed():
            try:
                super().train()
            except TrainingStopped as stop:
                saved = self.save_state(self.iter)
                text = f"stopped after iteration {min(self.iter, self.max_iter - 1)}: {stop}{saved}"
                raise TrainingStopped(text, stop.signal_number) from None
            except TooManyUnreadable:
                raise  # saved by run_step
            except UnreadableImage:
                # In an evaluation, of one process's share: the others are still waiting for it.
                if comm.get_world_size() == 1:
                    logger.error("stopped%s", self.save_state(self.iter))
                raise
            except (RuntimeError, OSError) as error:  # or noticed while a checkpoint was written
                loader = self.data_loader
                dead = isinstance(loader, ResumableLoader) and loader.dead_worker(error)
                if dead:
                    raise dead from error
                raise

    def run_step(self) -> None:
        self._trainer.iter = self.iter
        try:
            self._trainer.run_step()
        except SpoiltStatistics:
            raise
        except (TooManyUnreadable, NonFinite):
            # All processes are here, with the weights of the iteration before.
            self.iter -= 1
            logger.error("stopped%s", self.save_state(self.iter))
            raise

    def after_train(self) -> None:
        # Detectron2's evaluates also where the last iteration has failed, and its other processes may not.
        finished = self.iter >= self.max_iter
        self.storage.iter = self.iter
        for hook in self._hooks:
            if finished or hook not in self._evaluations:
                hook.after_train()

    def save_state(self, iteration: int) -> str:
        """Saves the training after an iteration, if it has begun and is not saved yet; says so in words.

        To be called by all processes: none goes on, and maybe ends, before the file is complete.
        """
        if not self.start_iter <= iteration < self.max_iter:
            return ""
        name = f"model_{iteration:07d}"
        if self.checkpointer.last_saved != name:
            self.checkpointer.save(name, iteration=iteration)
        comm.synchronize()
        return f"; saved {Path(self.cfg.OUTPUT_DIR) / name}.pth, go on with --resume"

    @classmethod
    def validation_losses(cls, cfg: CfgNode, model: nn.Module) -> Dict[str, float]:
        """Training losses on the first of ``DATASETS.TEST``, without augmentation."""
        resize = T.ResizeShortestEdge(
            [cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST, "choice"
        )
        mapper = cls.build_train_mapper(cfg, augmentations=[resize])
        loader = build_detection_test_loader(
            cfg, cfg.DATASETS.TEST[0], mapper=NameUnreadable(mapper)
        )
        return mean_losses(unwrapped(model), loader)

    @classmethod
    def build_train_mapper(cls, cfg: CfgNode, **changes: Any) -> DatasetMapper:
        """The mapper of training.

        Args:
            changes: arguments of the mapper that replace the configuration's.
        """
        if cfg.MODEL.META_ARCHITECTURE == "BoundaryEmbeddingNet":
            return BoundaryMapper(cfg, is_train=True, **changes)
        learns_masks = (
            cfg.MODEL.META_ARCHITECTURE in ("PixelEmbeddingNet", "SPNRefiner")
            or cfg.MODEL.PROPOSAL_GENERATOR.NAME in _GENERATORS_OF_MASKS
        )
        if cfg.MODEL.MASK_ON or learns_masks:
            return PixelLabelMapper(cfg, is_train=True, **changes)
        mapper = DatasetMapper(cfg, is_train=True, **changes)
        if "augmentations" not in changes:
            mapper.augmentations.augs.extend(additional_augmentations(cfg))
        return mapper

    @classmethod
    def build_train_loader(cls, cfg: CfgNode):
        return build_resumable_train_loader(cfg, NameUnreadable(cls.build_train_mapper(cfg)))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str):
        mapper = DatasetMapper(cfg, is_train=False)
        if cfg.MODEL.RPE.GROUPING == "kmeans":
            mapper = CountInstances(mapper)
        if cfg.MODEL.META_ARCHITECTURE == "SPNRefiner":
            spn = cfg.MODEL.SPN
            mapper = CoarseInstances(mapper, spn.COARSE_FACTORS[0], spn.JITTER)
        return build_detection_test_loader(cfg, dataset_name, mapper=NameUnreadable(mapper))

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: Optional[str] = None
    ) -> DatasetEvaluator:
        folder = output_folder or os.path.join(cfg.OUTPUT_DIR, "inference")
        only_proposals = cfg.MODEL.META_ARCHITECTURE == "ProposalNetwork"
        if MetadataCatalog.get(dataset_name).get("evaluator_type") == "boundaries":
            return BSDSBoundaryEvaluator(dataset_name, cfg.TEST.BOUNDARY_THRESHOLDS)
        evaluators = []
        evaluator_type = MetadataCatalog.get(dataset_name).get("evaluator_type")
        if evaluator_type in ("sem_seg", "panoptic"):
            semantic = SemSegEvaluator(
                dataset_name, output_dir=folder, sem_seg_loading_fn=read_label_map
            )
            # It erodes the map of labels, of which two classes are the most: a 3 beside a 1 has the boundary "2".
            # BoundaryAPEvaluator takes the classes one by one.
            semantic._compute_boundary_iou = False
            evaluators.append(semantic)
            if MetadataCatalog.get(dataset_name).get("part_classes"):
                evaluators.append(PartFScoreEvaluator(dataset_name))
        if evaluator_type != "sem_seg" and not only_proposals:
            evaluators.append(
                InstanceSegmentationEvaluator(
                    dataset_name,
                    folder,
                    cfg.TEST.DETECTIONS_PER_IMAGE,
                    cfg.TEST.TOUCHING_INSTANCES,
                )
            )
            if evaluator_type == "voc_instances" or cfg.TEST.VOC_AP:
                evaluators.append(VOCInstanceEvaluator(dataset_name))
        if only_proposals or cfg.TEST.PROPOSALS:
            evaluators.append(MaskProposalEvaluator(dataset_name))
        if cfg.TEST.BOUNDARIES:
            evaluators.append(BoundaryAPEvaluator(dataset_name, cfg.TEST.DETECTIONS_PER_IMAGE))
        evaluator = DatasetEvaluators(evaluators)
        if evaluator_type == "sem_seg" and cfg.TEST.DENSE_CRF.ENABLED:
            crf = cfg.TEST.DENSE_CRF
            refinement = DenseCRF(crf.ITERATIONS, crf.POSITION, crf.COLOR, crf.WEIGHT)
            return DenseCRFEvaluator(refinement, evaluator)
        return evaluator

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)


def distributed(model: nn.Module, find_unused_parameters: bool) -> nn.Module:
    """The model with gradients averaged over the processes; itself where there is one process."""
    if comm.get_world_size() == 1:
        return model
    on_cuda = next(model.parameters()).is_cuda
    return DistributedDataParallel(
        model,
        device_ids=[torch.cuda.current_device()] if on_cuda else None,
        broadcast_buffers=False,
        find_unused_parameters=find_unused_parameters,
    )


def share_buffers(model: nn.Module) -> None:
    """Gives all processes the first one's running statistics: those that a checkpoint holds."""
    if comm.get_world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def unwrapped(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, DistributedDataParallel) else model


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
        # Fused, a step takes a third of the time on a CPU.
        on_cpu = all(parameter.device.type == "cpu" for parameter in model.parameters())
        optimizer = torch.optim.AdamW(parameters, fused=on_cpu, **options)
    else:
        raise ValueError(
            f"SOLVER.OPTIMIZER is {solver.OPTIMIZER!r}; allowed: {', '.join(OPTIMIZERS)}"
        )
    return maybe_add_gradient_clipping(cfg, optimizer)
