"""A second signal ends a process that hangs in C code."""

import os
import signal
import subprocess
import sys
import time

import pytest

from rpe_d2.utils.second_signal import SAME_SIGNAL_SECONDS

# The loop prints at its start. No instruction of Python runs in it, and its thread never releases
# the interpreter.
HANGING = """
import collections, functools, itertools, signal, sys
from rpe_d2.utils.errors import one_line_errors
if sys.argv[1] == "SIGTERM":
    signal.signal(signal.SIGTERM, lambda number, frame: None)
else:  # a shell starts its background jobs, as these tests may be, with SIGINT ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
with one_line_errors():
    start = map(functools.partial(print, flush=True), ["hanging"])
    collections.deque(itertools.chain(start, itertools.repeat(0)), maxlen=0)
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_process_that_hangs_in_c_code_dies_of_the_second_signal(name, request):
    command = [sys.executable, "-c", HANGING, name]
    # Reading to the end of the output also shows that the watchdog is gone.
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    request.addfinalizer(process.kill)
    assert process.stdout.readline() == "hanging\n"
    for _ in range(3):  # one signal that arrives several times
        os.kill(process.pid, getattr(signal, name))
        time.sleep(0.1)
    time.sleep(SAME_SIGNAL_SECONDS + 0.5)
    assert process.poll() is None
    # On a busy machine the watchdog may see the first signal late, and takes the next one for it.
    deadline = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < deadline:
        os.kill(process.pid, getattr(signal, name))
        time.sleep(1)
    assert process.wait(5) == -signal.SIGKILL
    assert process.stdout.read() == ""


FORKING = """
import multiprocessing, os, signal, time
from rpe_d2.utils.errors import one_line_errors
signal.signal(signal.SIGTERM, lambda number, frame: None)
with one_line_errors():
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,), daemon=True)
    child.start()
    for _ in range(2):
        time.sleep(2.2)
        os.kill(child.pid, signal.SIGTERM)
    time.sleep(2)
    child.kill()
print("alive")
"""


def test_signals_to_forked_processes_do_not_count():
    done = subprocess.run([sys.executable, "-c", FORKING], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr
