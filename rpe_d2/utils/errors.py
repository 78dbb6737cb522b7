"""One-line messages, without a traceback, for errors that a user can fix."""

import io
import re
import sys
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, Tuple, Type

import yaml

from .readable import UnreadableImage, unreadable_reason
from .second_signal import second_signal_kills

# What a wrong key, value or file raises while a run is set up.
USER_ERRORS = (ValueError, KeyError, OSError, AssertionError, ImportError, yaml.YAMLError)

# What torch on a CPU or a GPU, NumPy and OpenCV say where memory is short. Few raise a MemoryError.
_OUT_OF_MEMORY = re.compile(
    "can't allocate memory|out of memory|not enough memory|Unable to allocate|Insufficient memory"
)
_MEMORY_ADVICE = (
    "what helps: a smaller SOLVER.IMS_PER_BATCH, INPUT.MIN_SIZE_TRAIN or INPUT.MIN_SIZE_TEST, or "
    "INPUT.SCALE where it is set, or fewer channels"
)


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error of any library says that memory is short."""
    return isinstance(error, MemoryError) or bool(_OUT_OF_MEMORY.search(str(error)))


def one_line(error: Exception) -> str:
    """Returns the message of an error on one line.

    If the message is a single word or empty, the type of the error and the line of code that raised
    it are added.
    """
    # str() puts the message of a KeyError in quotes.
    message = error.args[0] if isinstance(error, KeyError) and error.args else error
    text = " ".join(str(message).split())
    if " " in text:
        return text
    kind = type(error).__name__
    text = f"{kind}: {text}" if text else kind
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return text
    last = frames[-1]
    return f"{text} ({Path(last.filename).name}, line {last.lineno}: {last.line})"


@contextmanager
def one_line_errors(kinds: Tuple[Type[Exception], ...] = USER_ERRORS) -> Iterator[None]:
    """Ends the process with status 2 and one line on stderr if a user's mistake raises an error.

    Within the block, a second signal ends the process even if it hangs in C code. From then on,
    names that the terminal cannot show are printed with escapes.

    Args:
        kinds: the errors that a user can fix, besides a lack of memory. Any other error is a bug
            and keeps its traceback.
    """
    for stream in (sys.stdout, sys.stderr):  # names of files may have bytes that are no text
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with second_signal_kills():
            yield
    except Exception as error:
        if is_out_of_memory(error):
            text = f"out of memory: {one_line(error)[:200]}; {_MEMORY_ADVICE}"
        elif not isinstance(error, kinds):
            raise
        elif isinstance(error, UnreadableImage):
            text = unreadable_reason(error)
        else:
            text = one_line(error)
        print("error:", text, file=sys.stderr)
        sys.exit(2)
