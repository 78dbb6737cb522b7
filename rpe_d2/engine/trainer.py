"""Detectron2's trainer with this package's data, evaluators and optimizer, and exact resuming."""

import contextlib
import logging
import os
import weakref
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, build_detection_test_loader
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase, hooks
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators, SemSegEvaluator
from detectron2.solver import LRMultiplier
from detectron2.utils import comm
from fvcore.nn.precise_bn import get_bn_modules
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rpe_d2.data import (
    DATASET_MAPPER_REGISTRY,
    CoarseInstances,
    CountInstances,
    NameUnreadable,
    ResumableLoader,
    UnreadableImage,
    build_resumable_train_loader,
    build_train_mapper,
    count_class_pixels,
    resizing_of_tests,
)
from rpe_d2.evaluation import (
    BestIoUEvaluator,
    BoundaryAPEvaluator,
    BSDSBoundaryEvaluator,
    DenseCRF,
    FieldMetricsEvaluator,
    FramePairEvaluator,
    InstanceSegmentationEvaluator,
    MaskProposalEvaluator,
    PartFScoreEvaluator,
    RefinedScoresEvaluator,
    SparseColorEvaluator,
    SuperpixelVote,
    VOCInstanceEvaluator,
)
from rpe_d2.evaluation.ground_truth import has_semantic_maps
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
from .host_models import (
    default_confidence_threshold,
    evaluation_mapper_name,
    inference_inputs,
    is_class_agnostic,
    only_proposals,
    training_mapper_name,
)
from .run_record import cpu_seconds
from .solver import build_lr_scheduler, build_optimizer
from .train_step import PRECISIONS, NonFinite, NonFiniteStatistics, TooManyUnreadable, TrainStep
from .wandb_writer import WandbWriter

logger = logging.getLogger(__name__)

# The wrappers of the evaluation mapper that provide inputs of a model besides images.
_INPUT_MAPPERS = {"num_instances": CountInstances, "coarse_masks": CoarseInstances}


class Trainer(DefaultTrainer):
    """Trains any Detectron2 model. All additional features are enabled by the configuration."""

    def __init__(self, cfg: CfgNode):
        """
        Args:
            cfg: the configuration. A negative ``SEED`` is replaced by a random one. A resumed run
                continues exactly only with the same seed, which
                :func:`rpe_d2.engine.setup.setup` reads from the checkpoint.
        """
        # DefaultTrainer's constructor is skipped: its distributed model fails on CPUs, and its
        # loader cannot resume.
        TrainerBase.__init__(self)
        cfg = self.auto_scale_workers(cfg, comm.get_world_size()).clone()
        cfg.defrost()
        cfg.SEED = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
        cfg.freeze()
        self.cfg = cfg
        self.start_iter = 0
        self.evaluation_cpu_seconds = 0.0  # of this process and its children, so far
        self.max_iter = cfg.SOLVER.MAX_ITER
        model = self.build_model(cfg)
        _balance_classes(cfg, model)
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
        """The model to evaluate, with the averaged weights if ``SOLVER.EMA`` is enabled."""
        return self.averaged.module if self.averaged else self.model

    def build_hooks(self) -> List[Optional[HookBase]]:
        """Builds the hooks, in the order in which they run after a step."""
        cfg, test = self.cfg, self.cfg.TEST
        is_main = comm.is_main_process()
        self._stop = stop = StopOnSignal()

        def evaluate() -> Dict[str, Any]:
            with self._evaluation():
                self._last_eval_results = stop.evaluate(lambda: self.test(cfg, self.trained_model))
            return self._last_eval_results

        def validate() -> Dict[str, float]:
            with self._evaluation():
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
        # A checkpoint is saved before it is evaluated, so that a failing evaluation costs less.
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

    @contextlib.contextmanager
    def _evaluation(self) -> Iterator[None]:
        share_buffers(self.trained_model)
        start = cpu_seconds()
        try:
            yield
        finally:
            self.evaluation_cpu_seconds += cpu_seconds() - start

    def build_writers(self) -> List[Any]:
        writers = super().build_writers()
        if self.cfg.WANDB_PROJECT:
            writers.append(WandbWriter(self.cfg))
        return writers

    def resume_or_load(self, resume: bool = True) -> None:
        super().resume_or_load(resume)
        self.start_iter = comm.all_gather(self.start_iter)[0]
        if self.averaged and self.averaged.n_averaged == 0:
            # The copy was made before the weights were loaded.
            self.averaged.module.load_state_dict(unwrapped(self.model).state_dict())

    def train(self) -> None:
        """Trains up to the last iteration, unless training is stopped.

        Raises:
            TrainingStopped: A signal arrived, or the best score stagnates. The state is saved.
            UnreadableImage, NonFinite: There are more of these events than allowed. The state
                before the iteration is saved.
            DeadWorker: A data-loading process died. Nothing is saved, because this may be noticed
                in the middle of an update.
        """
        with self._stop.installed():
            try:
                super().train()
            except TrainingStopped as stop:
                saved = self.save_state(self.iter)
                text = f"stopped after iteration {min(self.iter, self.max_iter - 1)}: {stop}{saved}"
                raise TrainingStopped(text, stop.signal_number) from None
            except TooManyUnreadable:
                raise  # run_step has saved the state
            except UnreadableImage:
                # Raised in an evaluation, perhaps in one process alone: the others would wait for
                # this one, and saving is done by all of them together.
                if comm.get_world_size() == 1:
                    logger.error("stopped%s", self.save_state(self.iter))
                raise
            except (RuntimeError, OSError) as error:  # torch may report a dead worker anywhere
                loader = self.data_loader
                dead = isinstance(loader, ResumableLoader) and loader.dead_worker(error)
                if dead:
                    raise dead from error
                raise

    def run_step(self) -> None:
        self._trainer.iter = self.iter
        try:
            self._trainer.run_step()
        except NonFiniteStatistics:
            raise
        except (TooManyUnreadable, NonFinite):
            # All processes raise this together, with the weights of the previous iteration.
            self.iter -= 1
            logger.error("stopped%s", self.save_state(self.iter))
            raise

    def after_train(self) -> None:
        # Detectron2 also evaluates where the last iteration failed, perhaps in one process alone.
        finished = self.iter >= self.max_iter
        self.storage.iter = self.iter
        for hook in self._hooks:
            if finished or hook not in self._evaluations:
                hook.after_train()

    def save_state(self, iteration: int) -> str:
        """Saves the state of the training after an iteration, unless it is saved already.

        All processes must call this, and none continues before the file is complete.

        Args:
            iteration: the last iteration that is complete.

        Returns:
            The end of a log message that names the file, or "" if this run has not completed an
            iteration yet.
        """
        if not self.start_iter <= iteration < self.max_iter:
            return ""
        name = f"model_{iteration:07d}"
        if self.checkpointer.last_saved != name:
            self.checkpointer.save(name, iteration=iteration)
        comm.synchronize()
        return f"; saved {Path(self.cfg.OUTPUT_DIR) / name}.pth, continue with --resume"

    @classmethod
    def validation_losses(cls, cfg: CfgNode, model: nn.Module) -> Dict[str, float]:
        """Computes the training losses on the first of ``DATASETS.TEST``, without augmentation."""
        mapper = cls.build_train_mapper(cfg, augmentations=[resizing_of_tests(cfg)])
        loader = build_detection_test_loader(
            cfg, cfg.DATASETS.TEST[0], mapper=NameUnreadable(mapper)
        )
        return mean_losses(unwrapped(model), loader)

    @classmethod
    def build_train_mapper(cls, cfg: CfgNode, **changes: Any) -> Callable[..., Any]:
        """Builds the mapper that training needs.

        Args:
            cfg: the configuration.
            changes: arguments of the mapper that replace the configuration's.

        Raises:
            ValueError: ``INPUT.DATASET_MAPPER_NAME`` is not registered.
        """
        return build_train_mapper(training_mapper_name(cfg), cfg, **changes)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode):
        mapper = NameUnreadable(cls.build_train_mapper(cfg))
        return build_resumable_train_loader(cfg, mapper, same_classes=not is_class_agnostic(cfg))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str):
        mapper = DATASET_MAPPER_REGISTRY.get(evaluation_mapper_name(cfg))(cfg, is_train=False)
        for name in inference_inputs(cfg):
            if name in _INPUT_MAPPERS:
                mapper = _INPUT_MAPPERS[name](mapper)
        return build_detection_test_loader(cfg, dataset_name, mapper=NameUnreadable(mapper))

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: Optional[str] = None
    ) -> DatasetEvaluator:
        """Builds the evaluators of a data set from its ``evaluator_type`` and the configuration."""
        folder = output_folder or os.path.join(cfg.OUTPUT_DIR, "inference")
        metadata, test = MetadataCatalog.get(dataset_name), cfg.TEST
        kind = metadata.get("evaluator_type")
        if kind == "boundaries":
            return BSDSBoundaryEvaluator(dataset_name, test.BOUNDARY_THRESHOLDS)
        if kind == "frame_pairs":
            return FramePairEvaluator(dataset_name)
        if "sparse_color" in inference_inputs(cfg):
            return SparseColorEvaluator()
        has_instances = kind != "sem_seg" and not only_proposals(cfg)
        evaluators: List[DatasetEvaluator] = []
        if has_semantic_maps(dataset_name):
            evaluators.append(_semantic_evaluator(dataset_name, folder))
            if metadata.get("part_classes"):
                evaluators.append(PartFScoreEvaluator(dataset_name))
        if has_instances:
            limit, touching = test.DETECTIONS_PER_IMAGE, test.TOUCHING_INSTANCES
            evaluators.append(InstanceSegmentationEvaluator(dataset_name, folder, limit, touching))
        if has_instances and (kind == "voc_instances" or test.VOC_AP):
            evaluators.append(VOCInstanceEvaluator(dataset_name))
        if has_instances and metadata.get("best_iou"):
            evaluators.append(BestIoUEvaluator(dataset_name))
        if has_instances and (metadata.get("field_metrics") or test.FIELD_METRICS):
            threshold = default_confidence_threshold(cfg)
            evaluators.append(FieldMetricsEvaluator(dataset_name, threshold))
        if only_proposals(cfg) or test.PROPOSALS:
            evaluators.append(MaskProposalEvaluator(dataset_name))
        if test.BOUNDARIES:
            evaluators.append(BoundaryAPEvaluator(dataset_name, test.DETECTIONS_PER_IMAGE))
        evaluator = DatasetEvaluators(evaluators)
        refinement = None
        if test.DENSE_CRF.ENABLED:
            crf = test.DENSE_CRF
            refinement = DenseCRF(crf.ITERATIONS, crf.POSITION, crf.COLOR, crf.WEIGHT)
        elif test.SUPERPIXELS.ENABLED:
            segments = test.SUPERPIXELS
            refinement = SuperpixelVote(segments.SCALE, segments.SIGMA, segments.MIN_SIZE)
        if kind == "sem_seg" and refinement is not None:
            return RefinedScoresEvaluator(refinement, evaluator, cfg.INPUT.FORMAT)
        return evaluator

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRMultiplier:
        return build_lr_scheduler(cfg, optimizer)


def _balance_classes(cfg: CfgNode, model: nn.Module) -> None:
    """Tells the modules that weigh classes how frequent they are in the training data."""
    head = cfg.MODEL.SEM_SEG_HEAD
    modules = [module for module in model.modules() if hasattr(module, "balance_classes")]
    if not head.CLASS_BALANCE or not modules:
        return
    counts = count_class_pixels(cfg.DATASETS.TRAIN, head.NUM_CLASSES)
    percent = ", ".join(f"{100 * count / counts.sum():.2g}" for count in counts)
    logger.info("classes are balanced; they have %s %% of the pixels", percent)
    for module in modules:
        module.balance_classes(torch.from_numpy(counts))


def _semantic_evaluator(dataset_name: str, folder: str) -> SemSegEvaluator:
    evaluator = SemSegEvaluator(dataset_name, output_dir=folder, sem_seg_loading_fn=read_label_map)
    # Detectron2's boundary IoU erodes the label map as a whole, which is only correct for two
    # classes: class 3 beside class 1 gets a boundary of class 2. BoundaryAPEvaluator processes each
    # class separately.
    evaluator._compute_boundary_iou = False
    return evaluator


def distributed(model: nn.Module, find_unused_parameters: bool) -> nn.Module:
    """Wraps a model for distributed training if there are several processes."""
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
    """Copies the main process's buffers to all processes. A checkpoint holds the same ones."""
    if comm.get_world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def unwrapped(model: nn.Module) -> nn.Module:
    """Returns the model without the wrapper for distributed training."""
    return model.module if isinstance(model, DistributedDataParallel) else model
