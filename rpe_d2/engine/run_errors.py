"""Errors of a run that the system or its settings cause, where torch gives a traceback."""

import errno
import re
from contextlib import contextmanager
from typing import Iterator

from detectron2.config import CfgNode
from detectron2.utils import comm

from rpe_d2.data import DeadWorker

try:
    import resource
except ImportError:  # a system without POSIX limits
    resource = None

# What torch says, in RuntimeErrors, where the system ends or limits the processes of a loader.
_LOADER_CAUSES = {
    r"DataLoader worker \(pid": "a data-loading process died",
    r"Too many open files|ancdata|file descriptors": "data loading opened too many files",
    r"shared memory|No space left on device|Bus error": "data loading ran out of shared memory",
}
_LOADER_ADVICE = "what helps: DATALOADER.NUM_WORKERS 0, a higher `ulimit -n`, a larger /dev/shm"
_ONE_VALUE = r"Expected more than 1 value per channel when training, got input size (.*)"

# Torch sends each tensor from a data-loading process as an open file. Where a limit is reached, it
# may also wait forever. With fewer files than these, small runs do not start.
_FILES = 64
_FILES_OF_A_WORKER = 16
_FILES_OF_AN_IMAGE = 4


class TooFewValues(ValueError):
    """An image is too small for the network. The message is one line."""


def check_open_files(cfg: CfgNode) -> None:
    """Checks that the system lets a run open as many files as its data-loading processes need.

    Raises:
        ValueError: The limit is too low.
    """
    workers = cfg.DATALOADER.NUM_WORKERS
    if resource is None or workers < 1:
        return
    images = max(cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size(), 1)
    needed = _FILES + _FILES_OF_A_WORKER * workers + _FILES_OF_AN_IMAGE * images
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if 0 <= limit < needed:  # unlimited is -1
        raise ValueError(
            f"DATALOADER.NUM_WORKERS is {workers}, but a process may open only {limit} files; "
            f"allowed: 0, or {workers} after `ulimit -n {needed}`"
        )


@contextmanager
def named_run_errors() -> Iterator[None]:
    """Raises errors of the code within the ``with`` block in one line that says what helps.

    Raises:
        DeadWorker: A data-loading process was killed, or the system has no files or shared memory
            left for it.
        TooFewValues: A normalization layer gets a single value.
    """
    try:
        yield
    except DeadWorker:
        raise
    except (RuntimeError, EOFError, ConnectionError) as error:
        for pattern, cause in _LOADER_CAUSES.items():
            if re.search(pattern, str(error)):
                reason = str(error).strip().splitlines()[-1]  # a process adds its own traceback
                raise DeadWorker(f"{cause} ({reason[:200]}); {_LOADER_ADVICE}") from error
        raise
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.ENFILE):
            raise
        raise DeadWorker(f"the run opened too many files ({error}); {_LOADER_ADVICE}") from error
    except ValueError as error:
        found = re.search(_ONE_VALUE, str(error))
        if not found:
            raise
        raise TooFewValues(
            f"a normalization layer gets a map of a single value, {found[1]}, because the images "
            "are too small; allowed: larger INPUT.MIN_SIZE_TRAIN and INPUT.MIN_SIZE_TEST, or "
            "INPUT.SCALE where it is set, more images in SOLVER.IMS_PER_BATCH with BN, or more "
            "channels in each group with GN"
        ) from error
