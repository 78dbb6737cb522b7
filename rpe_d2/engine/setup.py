"""From command-line arguments to a checked configuration."""

import argparse
import importlib.util
import logging
import os
import pickle
import secrets
from functools import lru_cache
from pathlib import Path
from typing import Any, Dict, List

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_setup
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from rpe_d2.config import (
    add_rpe_config,
    check_config,
    check_config_file,
    check_registered_names,
    find_config_file,
)
from rpe_d2.data import check_voc_files
from rpe_d2.modeling.sem_seg.sem_seg_head import SemSegHead
from rpe_d2.modeling.sem_seg.spn_sem_seg_head import SPNSemSegHead
from rpe_d2.ops.sphere import min_margin
from rpe_d2.utils.files import make_new_folder, make_writable_folder
from rpe_d2.utils.safe_pickle import load_arrays

from .datasets import register_datasets

logger = logging.getLogger("rpe_d2")


def setup(args: argparse.Namespace) -> CfgNode:
    """Builds the configuration of a run, registers its data sets, checks it and sets up logging and seed.

    Args:
        args: of Detectron2's ``default_argument_parser``.

    Returns:
        The frozen configuration. An evaluation's ``OUTPUT_DIR`` is that of :func:`evaluation_folder`.

    Raises:
        ValueError, FileNotFoundError: one line that names the key or file at fault.
    """
    cfg = load_config(args.config_file, args.opts)
    if not args.eval_only:
        cfg.SEED = choose_seed(cfg, args.resume)
    check_registered_names(cfg)
    check_solver(cfg)
    if not args.eval_only:
        check_batch_size(cfg)
    check_proposal_files(cfg)
    for key in ("TEST",) if args.eval_only else ("TRAIN",):
        if not cfg.DATASETS[key]:
            raise ValueError(f"DATASETS.{key} is empty; allowed: names of data sets, ('mine',)")
    if args.eval_only and not (cfg.MODEL.WEIGHTS or args.resume):
        raise ValueError("MODEL.WEIGHTS is empty; --eval-only needs the weights to evaluate")
    if cfg.MODEL.PROPOSAL_GENERATOR.NAME == "SharpMask" and not (cfg.MODEL.WEIGHTS or args.resume):
        raise ValueError(
            "MODEL.WEIGHTS is empty; SharpMask refines a trained DeepMask, name its checkpoint"
        )
    if cfg.MODEL.SPN.FREEZE_HEAD and not (cfg.MODEL.WEIGHTS or args.resume):
        raise ValueError(
            "MODEL.WEIGHTS is empty; MODEL.SPN.FREEZE_HEAD keeps a trained head, name its checkpoint"
        )
    check_datasets(cfg)
    check_semantic_head(cfg)
    check_output_dir(cfg.OUTPUT_DIR, starts_anew=not (args.eval_only or args.resume))
    if args.eval_only:
        cfg.OUTPUT_DIR = evaluation_folder(cfg.OUTPUT_DIR)
    cfg.freeze()
    default_setup(cfg, args)
    if cfg.DETERMINISTIC:
        use_deterministic_algorithms()
    setup_logger(cfg.OUTPUT_DIR, comm.get_rank(), name="rpe_d2")
    check_margin(cfg, training=not args.eval_only)
    return cfg


def load_config(config_file: str, opts: List[str]) -> CfgNode:
    """Merges a file and KEY VALUE pairs into Detectron2's keys and this package's, and registers named data sets."""
    cfg = read_config(config_file, opts)
    use_available_device(cfg)
    register_datasets(cfg)
    return cfg


def read_config(config_file: str, opts: List[str]) -> CfgNode:
    """Merges a file and KEY VALUE pairs into Detectron2's keys and this package's.

    Raises:
        ValueError, KeyError, AssertionError, OSError, yaml.YAMLError: a file, key or value is wrong.
    """
    reject_swallowed_flags(opts)
    cfg = get_cfg()
    add_rpe_config(cfg)
    config_file = find_config_file(config_file)
    check_config_file(config_file, cfg)
    cfg.merge_from_file(config_file, allow_unsafe=False)  # YAML could build any Python object
    cfg.merge_from_list(opts)
    return cfg


def reject_swallowed_flags(opts: List[str]) -> None:
    """Flags after the first KEY VALUE pair end up among the pairs; say so instead of failing on the pair."""
    flags = [opt for opt in opts if opt.startswith("--")]
    if flags:
        raise ValueError(f"{flags[0]} stands after KEY VALUE overrides; put all flags before them")


def use_available_device(cfg: CfgNode) -> None:
    """Falls back to the CPU where there is no CUDA, and turns off what the CPU does not have.

    Raises:
        ValueError: there is no such device.
    """
    check_device("MODEL.DEVICE", cfg.MODEL.DEVICE)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.warning("MODEL.DEVICE is %s and CUDA is not available: using cpu", cfg.MODEL.DEVICE)
        cfg.MODEL.DEVICE = "cpu"
    amp = cfg.SOLVER.AMP
    if amp.ENABLED and amp.PRECISION == "float16" and not cfg.MODEL.DEVICE.startswith("cuda"):
        logger.warning("SOLVER.AMP.PRECISION float16 needs CUDA: training in float32")
        amp.ENABLED = False


def check_device(key: str, name: str) -> None:
    """Checks the name of a device; GPUs' numbers only where there are GPUs.

    Args:
        key: what the user has named it by.

    Raises:
        ValueError: torch knows no such device, or the machine has fewer GPUs.
    """
    gpus = torch.cuda.device_count()
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or (device.type == "cuda" and 0 < gpus <= (device.index or 0)):
        raise ValueError(
            f"{key} is {name}; this machine has {gpus} GPUs, allowed: cpu, cuda, cuda:0 …"
        )


def choose_seed(cfg: CfgNode, resume: bool) -> int:
    """The seed of a training: that of the run to resume, else ``SEED``, else a random one; the same in all processes."""
    seed = cfg.SEED if cfg.SEED >= 0 else secrets.randbelow(2**31)
    last = os.path.join(cfg.OUTPUT_DIR, "last_checkpoint")
    if resume and os.path.exists(last):
        seed = _seed_of_checkpoints(cfg.OUTPUT_DIR, seed)
        if 0 <= cfg.SEED != seed:
            logger.warning("SEED is %d; the run to resume has %d and keeps it", cfg.SEED, seed)
    return comm.all_gather(seed)[0]


def _seed_of_checkpoints(folder: str, default: int) -> int:
    for path in sorted(Path(folder).glob("model_*.pth"), reverse=True):
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            return content["trainer"]["_trainer"]["seed"]
        except Exception:  # broken, or of another trainer; the checkpointer will say so
            continue
    return default


def use_deterministic_algorithms() -> None:
    """Makes torch take the deterministic one of two ways, and warn where there is none."""
    # cuBLAS is deterministic only with this, set before it is first used.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def check_solver(cfg: CfgNode) -> None:
    """Checks the keys of rpe_d2, and of training those that depend on others.

    Raises:
        ValueError: one line that names the key, the value and what is allowed.
    """
    check_config(cfg)
    if cfg.TEST.DENSE_CRF.ENABLED and importlib.util.find_spec("pydensecrf") is None:
        raise ValueError(
            "TEST.DENSE_CRF.ENABLED is True; allowed: False, or True after pip install -e '.[crf]'"
        )
    patience = cfg.SOLVER.EARLY_STOPPING_PATIENCE
    if patience > 0 and not (cfg.TEST.BEST_METRIC and cfg.TEST.EVAL_PERIOD > 0):
        raise ValueError(
            f"SOLVER.EARLY_STOPPING_PATIENCE is {patience}; allowed: 0, or more with "
            "TEST.BEST_METRIC and TEST.EVAL_PERIOD"
        )


def check_batch_size(cfg: CfgNode) -> None:
    """Checks that every process gets images, and as many as the others.

    Raises:
        ValueError: one line that names the key, the value and what is allowed.
    """
    batch = cfg.SOLVER.IMS_PER_BATCH
    processes = cfg.SOLVER.REFERENCE_WORLD_SIZE or comm.get_world_size()
    if batch < 1 or batch % processes:
        allowed = "1 or more" if processes == 1 else f"multiples of the {processes} processes"
        raise ValueError(f"SOLVER.IMS_PER_BATCH is {batch}; allowed: {allowed}")


def check_proposal_files(cfg: CfgNode) -> None:
    """Reads the pickles of proposals that Detectron2 will unpickle: it would run whatever they bring along.

    Raises:
        ValueError: one holds more than arrays and plain types, or is broken.
    """
    if not cfg.MODEL.LOAD_PROPOSALS:
        return
    for key in ("PROPOSAL_FILES_TRAIN", "PROPOSAL_FILES_TEST"):
        for path in cfg.DATASETS[key]:
            try:
                with open(path, "rb") as file:
                    load_arrays(file)
            except pickle.UnpicklingError as error:
                raise ValueError(f"DATASETS.{key}: {path}: {error}") from error


def check_output_dir(folder: str, starts_anew: bool) -> None:
    """Makes the folder of a run; a training that starts anew finds no other training's checkpoints there.

    Raises:
        ValueError: it cannot be written, or holds checkpoints that would be overwritten.
    """
    make_writable_folder("OUTPUT_DIR", Path(folder))
    if starts_anew and os.path.exists(os.path.join(folder, "last_checkpoint")):
        raise ValueError(
            f"OUTPUT_DIR {folder} holds the checkpoints of another training; "
            "continue it with --resume or choose another folder"
        )


def evaluation_folder(folder: str) -> str:
    """Where an evaluation writes: into the folder itself or, where a run has written there, a new one inside.

    That one is ``evaluation``, ``evaluation-2`` …: a training's configuration and predictions stay as they are. To be
    called by all processes; the first one chooses.
    """
    chosen = folder
    if comm.is_main_process() and os.path.exists(os.path.join(folder, "config.yaml")):
        chosen = str(make_new_folder(Path(folder) / "evaluation"))
    return comm.all_gather(chosen)[0]


# What each of Detectron2's meta-architectures learns, and where its number of classes stands.
_CLASS_KEYS = {
    "PixelEmbeddingNet": {"thing": "MODEL.RPE.NUM_CLASSES"},
    "GeneralizedRCNN": {"thing": "MODEL.ROI_HEADS.NUM_CLASSES"},
    "RetinaNet": {"thing": "MODEL.RETINANET.NUM_CLASSES"},
    "SemanticSegmentor": {"stuff": "MODEL.SEM_SEG_HEAD.NUM_CLASSES"},
    "PanopticFPN": {
        "thing": "MODEL.ROI_HEADS.NUM_CLASSES",
        "stuff": "MODEL.SEM_SEG_HEAD.NUM_CLASSES",
    },
}


def number_of_classes(cfg: CfgNode) -> Dict[str, int]:
    """By "thing_classes" and "stuff_classes", how many the model has; without a kind whose number it does not have."""
    keys = {"stuff": "MODEL.SEM_SEG_HEAD.NUM_CLASSES"}
    keys.update(_CLASS_KEYS.get(cfg.MODEL.META_ARCHITECTURE, {}))
    return {f"{kind}_classes": _value(cfg, key) for kind, key in keys.items()}


def _value(cfg: CfgNode, key: str) -> Any:
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def check_datasets(cfg: CfgNode) -> None:
    """Checks that the data sets exist, agree on their classes and have as many as the model."""
    for key in ("TRAIN", "TEST"):
        for name in cfg.DATASETS[key]:
            if name not in DatasetCatalog:
                raise ValueError(
                    f"DATASETS.{key} names {name!r}, which is not registered; "
                    'own data: DATASETS.COCO_JSONS "name=path.json:image_root", DATASETS.SEM_SEG_DIRS '
                    '"name=images/:labels/"'
                )
            check_voc_files(name)
    kinds = _CLASS_KEYS.get(cfg.MODEL.META_ARCHITECTURE, {"thing": ""})
    for kind, class_key in kinds.items():
        _check_classes(cfg, kind, class_key)


def _check_classes(cfg: CfgNode, kind: str, class_key: str) -> None:
    """Of the "thing" or "stuff" classes; ``class_key`` "" if the model has no number of them."""
    first = None
    for key in ("TRAIN", "TEST"):
        for name in cfg.DATASETS[key]:
            classes = MetadataCatalog.get(name).get(f"{kind}_classes")
            if classes is None:
                if kind == "stuff":
                    raise ValueError(
                        f"DATASETS.{key}: {name} has no semantic maps, from which {cfg.MODEL.META_ARCHITECTURE} learns"
                    )
                continue
            first = first or (name, classes)
            if classes != first[1]:
                raise ValueError(
                    f"DATASETS.{key}: {name} has the classes {_listed(classes)}; "
                    f"{first[0]} has {_listed(first[1])}; allowed: the same, in the order of their category ids"
                )
            if class_key and len(classes) != _value(cfg, class_key):
                raise ValueError(
                    f"{class_key} is {_value(cfg, class_key)}; {name} has {len(classes)} classes"
                )
            ignored = cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
            label = MetadataCatalog.get(name).get("ignore_label", ignored)
            if kind == "stuff" and label != ignored:
                raise ValueError(
                    f"MODEL.SEM_SEG_HEAD.IGNORE_VALUE is {ignored}; the unlabelled pixels of {name} are {label}"
                )


def check_semantic_head(cfg: CfgNode) -> None:
    """Checks that the semantic head has the pair loss, where the configuration asks for that."""
    name, weight = cfg.MODEL.SEM_SEG_HEAD.NAME, cfg.MODEL.SEM_SEG_HEAD.PAIR_LOSS_WEIGHT
    if cfg.MODEL.META_ARCHITECTURE not in ("SemanticSegmentor", "PanopticFPN") or weight <= 0:
        return
    if name in SEM_SEG_HEADS_REGISTRY and not issubclass(
        SEM_SEG_HEADS_REGISTRY.get(name), (SemSegHead, SPNSemSegHead)
    ):
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.PAIR_LOSS_WEIGHT is {weight:g}; {name} has no pair loss, allowed: "
            "EmbeddingSemSegHead on the same features, SPNSemSegHead around it, or the weight 0"
        )


def _listed(names: List[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (f", … ({len(names)})" if len(names) > limit else "")


def check_margin(cfg: CfgNode, training: bool) -> None:
    """Warns of settings with which grouping cannot succeed on the training data, and says what would fit."""
    rpe = cfg.MODEL.RPE
    if cfg.MODEL.META_ARCHITECTURE != "PixelEmbeddingNet" or not training:
        return
    if rpe.NEGATIVE_RADIUS > 0:
        if rpe.GROUPING == "mean_shift" and not (rpe.VOTES or rpe.SPLIT_COMPONENTS):
            logger.warning(
                "MODEL.RPE.NEGATIVE_RADIUS lets instances that are far apart share an embedding, and nothing tells "
                "them apart: set MODEL.RPE.VOTES or MODEL.RPE.SPLIT_COMPONENTS True"
            )
        return
    largest = max((most_instances(name) for name in cfg.DATASETS.TRAIN), default=0)
    groups = largest + (rpe.BACKGROUND == "group")
    if groups < 2:
        return
    needed, exact = min_margin(groups, rpe.EMBEDDING_DIM)
    if needed <= rpe.MARGIN + 1e-9:
        return
    # 2 dim points are known to fit at margin 1/2, and no dimension helps below the simplex's margin.
    dim = max(rpe.EMBEDDING_DIM, -(-groups // 2))
    logger.warning(
        "MODEL.RPE.MARGIN %.3f cannot separate the %d groups of the largest training image in %d dimensions "
        "(smallest margin: %s%.3f). What fits: MODEL.RPE.EMBEDDING_DIM %d with MARGIN %.2f, or "
        "MODEL.RPE.NEGATIVE_RADIUS > 0.",
        rpe.MARGIN,
        groups,
        rpe.EMBEDDING_DIM,
        "" if exact else "at least ",
        needed,
        dim,
        max(rpe.MARGIN, 0.5),
    )


@lru_cache(maxsize=None)
def most_instances(dataset_name: str) -> int:
    """Instances, without crowds, in the fullest image of a registered data set."""
    return max(
        (
            sum(1 for annotation in item.get("annotations", ()) if not annotation.get("iscrowd", 0))
            for item in DatasetCatalog.get(dataset_name)
        ),
        default=0,
    )
