"""Signals and failed transfers in data-loading processes."""

import multiprocessing
import os
import signal
import threading
from multiprocessing.queues import Queue
from typing import Any, Optional, Tuple

from torch._utils import ExceptionWrapper
from torch.utils.data import get_worker_info

__all__ = ["leave_signals_to_the_trainer"]

_signal_guard: Optional[threading.Thread] = None


def leave_signals_to_the_trainer() -> None:
    """Makes a data-loading process ignore SIGTERM unless its parent, the training process, sent it.

    SLURM and service managers send SIGTERM to every process of a run. If a data-loading process
    died from it, the training would end before its state is saved. A data-loading process also
    reports from now on if it cannot send its data, as when shared memory is full: the training
    process would otherwise wait for them forever. In any other process this function does nothing.
    """
    global _signal_guard
    if get_worker_info() is None:
        return
    Queue._on_queue_feeder_error = _send_reason
    if _signal_guard is None and hasattr(signal, "sigtimedwait"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        _signal_guard = threading.Thread(target=_exit_with_parent, daemon=True)
        _signal_guard.start()


def _exit_with_parent() -> None:
    trainer = multiprocessing.parent_process()
    while trainer.is_alive():
        received = signal.sigtimedwait({signal.SIGTERM}, 5)
        if received is not None and received.si_pid == trainer.pid:
            break
    os._exit(0)


def _send_reason(queue: Queue, error: Exception, item: Tuple[Any, Any]) -> None:
    """Sends the reason in place of an item of torch's loader, a number and data."""
    failure = RuntimeError(" ".join(str(error).split()))
    wrapper = ExceptionWrapper((RuntimeError, failure, None), where="while data were sent")
    queue.put((item[0], wrapper))
