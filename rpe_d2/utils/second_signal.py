"""Ending a process on a second signal, even if it hangs in C code."""

import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import Iterator

__all__ = ["SAME_SIGNAL_SECONDS", "second_signal_kills"]

# A signal to a group of processes may arrive twice: directly, and passed on by a launcher.
SAME_SIGNAL_SECONDS = 2.0
_GRACE_SECONDS = 1.0

# Python runs signal handlers and threads only between two of its instructions, so a call into C
# that does not return blocks all of them. The interpreter's own handler still writes the number of
# the signal to a pipe. Another process therefore reads that pipe. It ends together with the watched
# process, whose death closes the pipe or changes the parent.
_WATCHDOG = f"""
import os, select, signal, sys, time
watched, first = int(sys.argv[1]), None
while os.getppid() == watched:
    if not select.select([0], [], [], 0.5)[0]:
        continue
    received = os.read(0, 1)
    if not received:
        break
    if received[0] not in (signal.SIGINT, signal.SIGTERM):
        continue
    now = time.monotonic()
    first = first or now
    if now - first > {SAME_SIGNAL_SECONDS}:
        time.sleep({_GRACE_SECONDS})  # a process that does not hang ends by itself
        if os.getppid() == watched:
            os.kill(watched, signal.SIGKILL)
        break
"""

_watched_process = 0  # the id of the process that is watched


@contextmanager
def second_signal_kills() -> Iterator[None]:
    """Kills this process on the second SIGINT or SIGTERM that arrives within a ``with`` block.

    A signal counts as the second one if it arrives at least two seconds after the first. A process
    that runs Python code ends by itself. Within another such block, and outside the main thread,
    this does nothing.
    """
    global _watched_process
    is_main_thread = threading.current_thread() is threading.main_thread()
    if os.name != "posix" or not (sys.executable and is_main_thread):
        yield
        return
    if _watched_process == os.getpid():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    command = [sys.executable, "-I", "-S", "-c", _WATCHDOG, str(os.getpid())]
    try:
        # In a session of its own, signals to this process's group do not reach the watchdog.
        watchdog = subprocess.Popen(
            command,
            stdin=reader,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError:  # no more processes or files are allowed; the tool runs without a watchdog
        os.close(writer)
        yield
        return
    finally:
        os.close(reader)
    previous = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    _watched_process = os.getpid()
    try:
        yield
    finally:
        if _watched_process == os.getpid():  # not in a process that was forked in the block
            _watched_process = 0
            signal.set_wakeup_fd(previous)
            os.close(writer)
            watchdog.kill()
            watchdog.wait()


def _forget_in_a_forked_process() -> None:
    # Data-loading processes get SIGTERM at their normal end, which must not count.
    if _watched_process and _watched_process != os.getpid():
        signal.set_wakeup_fd(-1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_a_forked_process)
