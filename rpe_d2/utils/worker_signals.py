"""Signals in data-loading processes."""

import multiprocessing
import os
import signal
import threading
from typing import Optional

from torch.utils.data import get_worker_info

__all__ = ["leave_signals_to_the_trainer"]

_signal_guard: Optional[threading.Thread] = None


def leave_signals_to_the_trainer() -> None:
    """Makes a data-loading process ignore SIGTERM unless its parent, the training process, sent it.

    SLURM and service managers send SIGTERM to every process of a run. If a data-loading process
    died from it, the training would end before its state is saved. In any other process, and when
    called again, this function does nothing.
    """
    global _signal_guard
    if _signal_guard is None and get_worker_info() is not None and hasattr(signal, "sigtimedwait"):
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
