"""Pictures that cannot be read are named in one line."""

import multiprocessing
import os
import signal
import threading
from typing import Any, Callable, Dict, Optional

from detectron2.data.detection_utils import SizeMismatchError
from PIL import Image
from torch.utils.data import get_worker_info

# What PIL and Detectron2 raise for files that are missing, truncated, of another size, far too large or no pictures.
UNREADABLE = (OSError, SyntaxError, SizeMismatchError, Image.DecompressionBombError)


class UnreadableImage(ValueError):
    """A picture of a data set cannot be read; the message is one line with its file name."""


_signal_guard: Optional[threading.Thread] = None


def leave_signals_to_the_trainer() -> None:
    """In a data-loading process: ignores SIGTERM unless the process that trains has sent it.

    SLURM and service managers signal every process of a run; a data process that died of it would end the run before
    its state is saved. Elsewhere, and on later calls, does nothing.
    """
    global _signal_guard
    if _signal_guard is None and get_worker_info() is not None and hasattr(signal, "sigtimedwait"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        _signal_guard = threading.Thread(target=_end_with_parent, daemon=True)
        _signal_guard.start()


def _end_with_parent() -> None:
    trainer = multiprocessing.parent_process()
    while trainer.is_alive():
        received = signal.sigtimedwait({signal.SIGTERM}, 5)
        if received is not None and received.si_pid == trainer.pid:
            break
    os._exit(0)


def unreadable_reason(error: BaseException) -> str:
    """The line of an :class:`UnreadableImage`, which a data-loading process passes on inside its traceback."""
    return (
        str(error).strip().splitlines()[-1].removeprefix("rpe_d2.utils.readable.UnreadableImage: ")
    )


class NameUnreadable:
    """A mapper that calls another one and says which picture could not be read."""

    def __init__(self, mapper: Callable[[Dict[str, Any]], Optional[Dict[str, Any]]]):
        """
        Args:
            mapper: from a data set's dict to the model's input.
        """
        self.mapper = mapper

    def __call__(self, dataset_dict: Dict[str, Any]) -> Optional[Dict[str, Any]]:
        """
        Raises:
            UnreadableImage: with the file's name.
        """
        leave_signals_to_the_trainer()
        try:
            return self.mapper(dataset_dict)
        except UNREADABLE as error:
            reason = " ".join(str(error).split())
            if dataset_dict["file_name"] not in reason:
                reason = f"{dataset_dict['file_name']}: {reason}"
            raise UnreadableImage(f"{reason} ({type(error).__name__})") from error
