"""Setup of a run: building and checking its configuration."""

import argparse
import importlib.util
import logging
import os
import pickle
import re
import secrets
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Iterator, List

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from rpe_d2.config import (
    add_rpe_config,
    check_config,
    check_config_file,
    check_registered_names,
    find_config_file,
)
from rpe_d2.utils.files import locked_folder, make_new_folder, make_writable_folder
from rpe_d2.utils.image_files import check_is_file
from rpe_d2.utils.safe_loading import load_arrays

from .datasets import (
    check_datasets,
    log_reports,
    register_datasets,
    warn_of_unreachable_objects,
    write_data_report,
)
from .host_models import check_run, check_training_data
from .run_errors import check_open_files

# The names of scores: those of this package's evaluators and Detectron2's, by task.
_METRIC = re.compile(
    r"validation/.+|(.+/)?(bbox|segm|keypoints|sem_seg|panoptic_seg|f_score|best_iou|labels|"
    r"boundary|frame_pairs|sparse_color|(segm_|sem_seg_|voc_|proposals_)\w+)/.+"
)

logger = logging.getLogger("rpe_d2")


def setup(args: argparse.Namespace) -> CfgNode:
    """Sets up a run: builds and checks its configuration, registers its data, seed and logging.

    Args:
        args: the arguments that Detectron2's ``default_argument_parser`` returns.

    Returns:
        The frozen configuration. In an evaluation its ``OUTPUT_DIR`` is the folder that
        :func:`evaluation_folder` chooses.

    Raises:
        ValueError, FileNotFoundError: The message is one line that names the key or file.
    """
    cfg = load_config(args.config_file, args.opts)
    if not args.eval_only:
        cfg.SEED = choose_seed(cfg, args.resume)
    check_registered_names(cfg)
    check_solver(cfg)
    if not args.eval_only:
        check_batch_size(cfg)
        check_at_least_one("SOLVER.MAX_ITER", cfg.SOLVER.MAX_ITER)
    check_at_least_one("TEST.DETECTIONS_PER_IMAGE", cfg.TEST.DETECTIONS_PER_IMAGE)
    check_open_files(cfg)
    check_proposal_files(cfg)
    for key in ("TEST",) if args.eval_only else ("TRAIN",):
        if not cfg.DATASETS[key]:
            raise ValueError(f"DATASETS.{key} is empty; allowed: names of data sets, ('mine',)")
    if args.eval_only and not (cfg.MODEL.WEIGHTS or args.resume):
        raise ValueError("MODEL.WEIGHTS is empty; --eval-only needs the weights to evaluate")
    check_datasets(cfg)
    check_run(cfg, has_weights=bool(cfg.MODEL.WEIGHTS or args.resume))
    check_output_dir(cfg.OUTPUT_DIR, is_new_training=not (args.eval_only or args.resume))
    if args.eval_only:
        cfg.OUTPUT_DIR = evaluation_folder(cfg.OUTPUT_DIR)
    cfg.freeze()
    default_setup(cfg, args)
    if cfg.DETERMINISTIC:
        use_deterministic_algorithms()
    setup_logger(cfg.OUTPUT_DIR, comm.get_rank(), name="rpe_d2")
    if not args.eval_only:
        check_training_data(cfg)
    if comm.is_main_process():
        log_reports(cfg)
        warn_of_unreachable_objects(cfg)
        write_data_report(cfg)
    return cfg


def load_config(config_file: str, opts: List[str]) -> CfgNode:
    """Reads a configuration, adapts it to the available device and registers its data sets.

    Args:
        config_file: the path of a YAML file.
        opts: KEY VALUE overrides, as on the command line.

    Raises:
        ValueError, FileNotFoundError: See :func:`read_config` and :func:`register_datasets`.
    """
    cfg = read_config(config_file, opts)
    use_available_device(cfg)
    register_datasets(cfg)
    return cfg


def read_config(config_file: str, opts: List[str]) -> CfgNode:
    """Merges a YAML file and KEY VALUE overrides into the defaults of Detectron2 and this package.

    Args:
        config_file: the path of a YAML file.
        opts: KEY VALUE overrides, as on the command line.

    Raises:
        ValueError, KeyError, AssertionError, OSError, yaml.YAMLError: A file, a key or a value is
            wrong.
    """
    reject_swallowed_flags(opts)
    cfg = get_cfg()
    add_rpe_config(cfg)
    config_file = find_config_file(config_file)
    check_config_file(config_file, cfg)
    # Unsafe YAML can build any Python object.
    cfg.merge_from_file(config_file, allow_unsafe=False)
    cfg.merge_from_list(opts)
    check_sizes(cfg)
    return cfg


def check_sizes(cfg: CfgNode) -> None:
    """Checks the sizes to which Detectron2 resizes images.

    Raises:
        ValueError: A size is impossible.
    """
    for key, least in (
        ("MIN_SIZE_TRAIN", 1),
        ("MAX_SIZE_TRAIN", 1),
        ("MIN_SIZE_TEST", 0),
        ("MAX_SIZE_TEST", 1),
    ):
        value = cfg.INPUT[key]
        sizes = value if isinstance(value, (list, tuple)) else (value,)
        if not sizes or min(sizes) < least:
            raise ValueError(f"INPUT.{key} is {value}; allowed: {least} or more pixels")


def reject_swallowed_flags(opts: List[str]) -> None:
    """Rejects flags after KEY VALUE overrides, which argparse would take for overrides.

    Raises:
        ValueError: There is such a flag.
    """
    flags = [opt for opt in opts if opt.startswith("--")]
    if flags:
        raise ValueError(f"{flags[0]} stands after KEY VALUE overrides; put all flags before them")


def use_available_device(cfg: CfgNode) -> None:
    """Falls back to the CPU if CUDA is unavailable, and disables float16 training on a CPU.

    Raises:
        ValueError: ``MODEL.DEVICE`` does not exist.
    """
    check_device("MODEL.DEVICE", cfg.MODEL.DEVICE)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.warning("MODEL.DEVICE is %s, but CUDA is unavailable: using cpu", cfg.MODEL.DEVICE)
        cfg.MODEL.DEVICE = "cpu"
    amp = cfg.SOLVER.AMP
    if amp.ENABLED and amp.PRECISION == "float16" and not cfg.MODEL.DEVICE.startswith("cuda"):
        logger.warning("SOLVER.AMP.PRECISION float16 needs CUDA: training in float32")
        amp.ENABLED = False


def check_device(key: str, name: str) -> None:
    """Checks the name of a device. On a machine without GPUs, any GPU number is accepted.

    Args:
        key: the configuration key or flag that names the device, for the message.
        name: the device, such as "cpu" or "cuda:1".

    Raises:
        ValueError: Torch does not know the device, or the machine has fewer GPUs.
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
    """Chooses the seed of a training run, the same in all processes.

    A resumed run keeps its seed. A new run uses ``SEED``, or a random seed if ``SEED`` is negative.
    """
    seed = cfg.SEED if cfg.SEED >= 0 else secrets.randbelow(2**31)
    last = os.path.join(cfg.OUTPUT_DIR, "last_checkpoint")
    if resume and os.path.exists(last):
        seed = _seed_of_checkpoints(cfg.OUTPUT_DIR, seed)
        if 0 <= cfg.SEED != seed:
            logger.warning("SEED is %d; the resumed run keeps its own, %d", cfg.SEED, seed)
    return comm.all_gather(seed)[0]


def _seed_of_checkpoints(folder: str, default: int) -> int:
    for path in sorted(Path(folder).glob("model_*.pth"), reverse=True):
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            return content["trainer"]["_trainer"]["seed"]
        except Exception:  # damaged, or written by another trainer; the checkpointer reports it
            continue
    return default


def use_deterministic_algorithms() -> None:
    """Makes torch use deterministic algorithms, and warn about operations that have none."""
    # cuBLAS is deterministic only if this is set before its first use.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def check_solver(cfg: CfgNode) -> None:
    """Checks the keys of rpe_d2, and keys for training that depend on other keys.

    Raises:
        ValueError: The message is one line with the key, its value and what is allowed.
    """
    check_config(cfg)
    if cfg.TEST.DENSE_CRF.ENABLED and importlib.util.find_spec("pydensecrf") is None:
        raise ValueError(
            "TEST.DENSE_CRF.ENABLED is True; allowed: False, or True after pip install pydensecrf2"
        )
    if cfg.TEST.DENSE_CRF.ENABLED and cfg.TEST.SUPERPIXELS.ENABLED:
        raise ValueError(
            "TEST.DENSE_CRF.ENABLED and TEST.SUPERPIXELS.ENABLED are True; allowed: one of them"
        )
    metric = cfg.TEST.BEST_METRIC
    if metric and not _METRIC.fullmatch(metric):
        raise ValueError(
            f"TEST.BEST_METRIC is {metric!r}; allowed: TASK/SCORE such as segm/AP, bbox/AP50, "
            "sem_seg/mIoU or boundary/ODS, with several data sets NAME/TASK/SCORE, or "
            "validation/total_loss"
        )
    patience = cfg.SOLVER.EARLY_STOPPING_PATIENCE
    if patience > 0 and not (cfg.TEST.BEST_METRIC and cfg.TEST.EVAL_PERIOD > 0):
        raise ValueError(
            f"SOLVER.EARLY_STOPPING_PATIENCE is {patience}; allowed: 0, or more with "
            "TEST.BEST_METRIC and TEST.EVAL_PERIOD"
        )


def check_at_least_one(key: str, value: int) -> None:
    """Checks a key of Detectron2 that counts something.

    Raises:
        ValueError: The value is below 1.
    """
    if value < 1:
        raise ValueError(f"{key} is {value}; allowed: 1 or more")


def check_batch_size(cfg: CfgNode) -> None:
    """Checks that a batch can be divided equally between the processes.

    Raises:
        ValueError: The message is one line with the key, its value and what is allowed.
    """
    batch = cfg.SOLVER.IMS_PER_BATCH
    processes = cfg.SOLVER.REFERENCE_WORLD_SIZE or comm.get_world_size()
    if batch < 1 or batch % processes:
        allowed = "1 or more" if processes == 1 else f"multiples of the {processes} processes"
        raise ValueError(f"SOLVER.IMS_PER_BATCH is {batch}; allowed: {allowed}")


def check_proposal_files(cfg: CfgNode) -> None:
    """Checks the pickles of proposals before Detectron2 loads them, because a pickle can run code.

    Raises:
        ValueError: A file holds something other than arrays and plain types, or is damaged.
    """
    if not cfg.MODEL.LOAD_PROPOSALS:
        return
    for key in ("PROPOSAL_FILES_TRAIN", "PROPOSAL_FILES_TEST"):
        for path in cfg.DATASETS[key]:
            check_is_file(path)
            try:
                with open(path, "rb") as file:
                    load_arrays(file)
            except pickle.UnpicklingError as error:
                raise ValueError(f"DATASETS.{key}: {path}: {error}") from error


def check_output_dir(folder: str, is_new_training: bool) -> None:
    """Creates the output folder of a run.

    Args:
        folder: ``OUTPUT_DIR``.
        is_new_training: whether the run trains and does not resume another run.

    Raises:
        ValueError: The folder cannot be written, or a new training would overwrite its checkpoints.
    """
    _make_output_dir(folder)
    if is_new_training and os.path.exists(os.path.join(folder, "last_checkpoint")):
        raise ValueError(
            f"OUTPUT_DIR {folder} holds the checkpoints of another training; "
            "continue it with --resume or choose another folder"
        )


def _make_output_dir(folder: str) -> None:
    if not folder:
        raise ValueError("OUTPUT_DIR is empty; allowed: the path of a folder")
    make_writable_folder("OUTPUT_DIR", Path(folder))


@contextmanager
def locked_output_dir(folder: str) -> Iterator[None]:
    """Reserves ``OUTPUT_DIR`` for one training run within a ``with`` block.

    All processes must call this; the main one holds the lock.

    Raises:
        ValueError: Another training is running in the folder, or it cannot be written.
    """
    with ExitStack() as stack:
        problem = ""
        if comm.is_main_process():
            try:
                _make_output_dir(folder)
                stack.enter_context(locked_folder(Path(folder)))
            except BlockingIOError:
                problem = (
                    f"OUTPUT_DIR is {folder}, where another training is running; "
                    "allowed: a folder without a running training"
                )
            except ValueError as error:
                problem = str(error)
        problem = comm.all_gather(problem)[0]
        if problem:
            raise ValueError(problem)
        yield


def evaluation_folder(folder: str) -> str:
    """Chooses the folder to which an evaluation writes.

    It is the given folder or, if another run has written there, a new folder inside it,
    ``evaluation``, ``evaluation-2`` and so on. The configuration and predictions of a training run
    are never overwritten. All processes must call this; the main process creates the folder.

    Args:
        folder: ``OUTPUT_DIR``.
    """
    chosen = folder
    if comm.is_main_process() and os.path.exists(os.path.join(folder, "config.yaml")):
        chosen = str(make_new_folder(Path(folder) / "evaluation"))
    return comm.all_gather(chosen)[0]
