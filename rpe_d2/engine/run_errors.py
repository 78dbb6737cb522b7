"""Errors of a run that the system or its settings cause, where torch gives a traceback."""

import re
from contextlib import contextmanager
from typing import Iterator

from rpe_d2.data import DeadWorker

# What torch says, in RuntimeErrors, where the system ends or limits the processes of a loader.
_LOADER_CAUSES = {
    r"DataLoader worker \(pid": "a data-loading process died",
    r"Too many open files|ancdata|file descriptors": "data loading opened too many files",
    r"shared memory|No space left on device|Bus error": "data loading ran out of shared memory",
}
_LOADER_ADVICE = "what helps: DATALOADER.NUM_WORKERS 0, a higher `ulimit -n`, a larger /dev/shm"
_ONE_VALUE = r"Expected more than 1 value per channel when training, got input size (.*)"


class TooFewValues(ValueError):
    """An image is too small for the network. The message is one line."""


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
        text = " ".join(str(error).split())
        for pattern, cause in _LOADER_CAUSES.items():
            if re.search(pattern, text):
                raise DeadWorker(f"{cause} ({text[:200]}); {_LOADER_ADVICE}") from error
        raise
    except ValueError as error:
        found = re.search(_ONE_VALUE, str(error))
        if not found:
            raise
        raise TooFewValues(
            f"a normalization layer gets a map of a single value, {found[1]}, because the images "
            "are too small; allowed: larger INPUT.MIN_SIZE_TRAIN and INPUT.MIN_SIZE_TEST, more "
            "images in SOLVER.IMS_PER_BATCH with BN, or more channels in each group with GN"
        ) from error
