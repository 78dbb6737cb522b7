"""The properties of models that the engine needs to know.

The classes that a configuration names declare them as class attributes and class methods:

* ``dataset_mapper_name``: the mapper for training if ``INPUT.DATASET_MAPPER_NAME`` is "".
* ``evaluation_mapper_name(cfg)``: the mapper for evaluation, if ``ImageMapper`` is not enough.
* ``num_classes_keys``: for each kind, "thing" or "stuff", the key that holds its number of classes.
* ``is_class_agnostic``: whether classes do not matter, so that data sets of different classes can
  be trained on together.
* ``default_confidence_threshold``: the score below which demo and visualize omit instances.
* ``only_proposals``: whether the model predicts proposals and nothing else.
* ``inference_inputs(cfg)``: the inputs that the model needs at inference besides images,
  "num_instances", "coarse_masks", "coarse_sem_seg", "sparse_labels", "sparse_color" or
  "key_frame". (Detectron2's proposals from files are "proposals".)
* ``check_run(cfg, has_weights)``: raises a one-line ValueError if a run cannot start.
* ``check_training_data(cfg, max_instances)``: logs warnings about settings that do not fit the
  data, in which an image has up to ``max_instances`` instances.
* ``check_object_areas(cfg, areas)``: logs warnings about settings with which objects cannot be
  found. ``areas`` has the areas of objects in pixels of the network's input by data set.
* ``parts``: which of "proposal_generator", "roi_heads" and "sem_seg_head" a meta-architecture
  builds.
* ``has_pair_loss`` and ``has_class_balance``: whether a semantic head supports the pair loss, and
  ``balance_classes(pixel_counts)``, which weighs classes by their frequencies.

All of them are optional. Detectron2's own classes do not have these attributes; ``HOST_MODELS``
declares them for these classes and for the classes derived from them.
"""

from typing import Any, Dict, List, Tuple

import numpy as np
from detectron2.config import CfgNode
from detectron2.modeling import (
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_HEADS_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
)

from rpe_d2.data import most_instances

__all__ = [
    "check_object_areas",
    "check_run",
    "check_training_data",
    "default_confidence_threshold",
    "evaluation_mapper_name",
    "inference_inputs",
    "is_class_agnostic",
    "model_classes",
    "num_classes_keys",
    "only_proposals",
    "training_mapper_name",
]

# The parts of a model: their registries and the nodes below MODEL that name them.
_PARTS = {
    "proposal_generator": (PROPOSAL_GENERATOR_REGISTRY, "PROPOSAL_GENERATOR"),
    "roi_heads": (ROI_HEADS_REGISTRY, "ROI_HEADS"),
    "sem_seg_head": (SEM_SEG_HEADS_REGISTRY, "SEM_SEG_HEAD"),
}

# The declarations for Detectron2's meta-architectures.
HOST_MODELS: Dict[str, Dict[str, Any]] = {
    "GeneralizedRCNN": {
        "parts": ("proposal_generator", "roi_heads"),
        "num_classes_keys": {"thing": "MODEL.ROI_HEADS.NUM_CLASSES"},
    },
    "PanopticFPN": {
        "parts": ("proposal_generator", "roi_heads", "sem_seg_head"),
        "num_classes_keys": {
            "thing": "MODEL.ROI_HEADS.NUM_CLASSES",
            "stuff": "MODEL.SEM_SEG_HEAD.NUM_CLASSES",
        },
    },
    "ProposalNetwork": {"parts": ("proposal_generator",), "only_proposals": True},
    "RetinaNet": {"num_classes_keys": {"thing": "MODEL.RETINANET.NUM_CLASSES"}},
    "SemanticSegmentor": {
        "parts": ("sem_seg_head",),
        "num_classes_keys": {"stuff": "MODEL.SEM_SEG_HEAD.NUM_CLASSES"},
    },
}
# The inputs of a model, besides images, that evaluations can provide.
KNOWN_INPUTS = (
    "num_instances",
    "coarse_masks",
    "coarse_sem_seg",
    "sparse_labels",
    "sparse_color",
    "key_frame",
    "proposals",
)
# Detectron2's name for "no proposal generator": proposals come from files,
# DATASETS.PROPOSAL_FILES_TEST.
_PROPOSALS_FROM_FILES = "PrecomputedProposals"


def model_classes(cfg: CfgNode) -> List[type]:
    """Returns the classes of a model: its meta-architecture, then the parts that it builds.

    Names that are not registered are omitted; they are reported when the model is built.
    """
    return list(_model_parts(cfg).values())


def num_classes_keys(cfg: CfgNode) -> Dict[str, str]:
    """Returns the keys that hold the model's numbers of classes, by "thing" and "stuff".

    Kinds that the model does not declare are omitted.
    """
    return _first_declared(cfg, "num_classes_keys", {})


def inference_inputs(cfg: CfgNode) -> Tuple[str, ...]:
    """Returns the inputs besides images that the model needs at inference.

    Raises:
        ValueError: A class names an input that evaluations cannot provide.
    """
    inputs: Dict[str, None] = {}  # in this order, each once
    for entry in model_classes(cfg):
        if hasattr(entry, "inference_inputs"):
            names = entry.inference_inputs(cfg)
            unknown = sorted(set(names) - set(KNOWN_INPUTS))
            if unknown:
                raise ValueError(
                    f"{entry.__name__}.inference_inputs names {', '.join(unknown)}; "
                    f"allowed: {', '.join(KNOWN_INPUTS)}"
                )
            inputs.update(dict.fromkeys(names))
        builds_generator = "proposal_generator" in _declared(entry, "parts", ())
        if builds_generator and cfg.MODEL.PROPOSAL_GENERATOR.NAME == _PROPOSALS_FROM_FILES:
            inputs["proposals"] = None
    return tuple(inputs)


def default_confidence_threshold(cfg: CfgNode) -> float:
    """Returns the score below which instances are omitted from pictures and label maps."""
    if cfg.TEST.MIN_SCORE >= 0:
        return cfg.TEST.MIN_SCORE
    return _first_declared(cfg, "default_confidence_threshold", 0.5)


def is_class_agnostic(cfg: CfgNode) -> bool:
    """Returns whether the classes of the data do not matter to the model."""
    return _first_declared(cfg, "is_class_agnostic", False)


def only_proposals(cfg: CfgNode) -> bool:
    """Returns whether the model predicts proposals and nothing else."""
    return _first_declared(cfg, "only_proposals", False)


def training_mapper_name(cfg: CfgNode) -> str:
    """Returns the registered name of the mapper for training.

    It is ``INPUT.DATASET_MAPPER_NAME`` if that is set, else what the model's classes declare, else
    PixelLabelMapper with ``MODEL.MASK_ON`` and ImageMapper without.
    """
    usual = "PixelLabelMapper" if cfg.MODEL.MASK_ON else "ImageMapper"
    return cfg.INPUT.DATASET_MAPPER_NAME or _first_declared(cfg, "dataset_mapper_name", usual)


def evaluation_mapper_name(cfg: CfgNode) -> str:
    """Returns the registered name of the mapper for evaluation."""
    declared = _first_declared(cfg, "evaluation_mapper_name", None)
    return "ImageMapper" if declared is None else declared(cfg)


def check_run(cfg: CfgNode, has_weights: bool) -> None:
    """Calls the checks of the model's classes whether a run can start.

    Args:
        cfg: the configuration.
        has_weights: whether the run starts from weights, ``MODEL.WEIGHTS`` or a checkpoint.

    Raises:
        ValueError: The run cannot start. The message is one line with the reason.
    """
    for entry in model_classes(cfg):
        if hasattr(entry, "check_run"):
            entry.check_run(cfg, has_weights)
    head = _model_parts(cfg).get("sem_seg_head")
    for key, declaration, what in (
        ("PAIR_LOSS_WEIGHT", "has_pair_loss", "pair loss"),
        ("CLASS_BALANCE", "has_class_balance", "class balance"),
    ):
        value = cfg.MODEL.SEM_SEG_HEAD[key]
        if head is None or value <= 0 or _declared(head, declaration, False):
            continue
        others = [k for k, entry in SEM_SEG_HEADS_REGISTRY if _declared(entry, declaration, False)]
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.{key} is {value:g}; {head.__name__} has no {what}, "
            f"allowed: 0, or a head that has it, {', '.join(sorted(others))}"
        )


def check_training_data(cfg: CfgNode) -> None:
    """Calls the checks of the model's classes whether settings fit the training data."""
    checks = [
        entry.check_training_data
        for entry in model_classes(cfg)
        if hasattr(entry, "check_training_data")
    ]
    if checks:
        largest = max((most_instances(name) for name in cfg.DATASETS.TRAIN), default=0)
        for check in checks:
            check(cfg, largest)


def check_object_areas(cfg: CfgNode, areas: Dict[str, np.ndarray]) -> None:
    """Lets the model's classes warn about settings with which objects cannot be found.

    Args:
        cfg: the configuration.
        areas: by data set, areas (n,) of objects in pixels of the network's input, above 0.
    """
    for entry in model_classes(cfg):
        if areas and hasattr(entry, "check_object_areas"):
            entry.check_object_areas(cfg, areas)


def _model_parts(cfg: CfgNode) -> Dict[str, type]:
    """Returns the classes of :func:`model_classes` by part, with "meta_arch" for the whole."""
    registered = {}
    if cfg.MODEL.META_ARCHITECTURE in META_ARCH_REGISTRY:
        registered["meta_arch"] = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
    for part in _declared(registered.get("meta_arch"), "parts", ()):
        registry, node = _PARTS[part]
        if cfg.MODEL[node].NAME in registry:
            registered[part] = registry.get(cfg.MODEL[node].NAME)
    # A registry may also hold functions, which declare nothing.
    return {part: entry for part, entry in registered.items() if isinstance(entry, type)}


def _first_declared(cfg: CfgNode, name: str, default: Any) -> Any:
    """Returns the declaration ``name`` of the first of the model's classes that has it."""
    missing = object()
    for entry in model_classes(cfg):
        value = _declared(entry, name, missing)
        if value is not missing:
            return value
    return default


def _declared(entry: Any, name: str, default: Any) -> Any:
    """Returns the nearest declaration of a class or its bases, from the class or HOST_MODELS."""
    for base in getattr(entry, "__mro__", ()):
        if name in vars(base):
            return getattr(base, name)
        host = HOST_MODELS.get(base.__name__, {})
        if name in host:
            return host[name]
    return default
