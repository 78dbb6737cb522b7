"""Errors that a user can mend: one line, no traceback."""

import sys
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, Tuple, Type

import yaml

from rpe_d2.data import UnreadableImage

from .readable import unreadable_reason

# What a wrong key, value or file raises while a run is set up.
USER_ERRORS = (ValueError, KeyError, OSError, AssertionError, yaml.YAMLError)


def one_line(error: Exception) -> str:
    """The message of an error on one line; where that is a word or nothing, also its type and the source line."""
    # str() of a KeyError is quoted; of others it is the message.
    message = error.args[0] if isinstance(error, KeyError) and error.args else error
    text = " ".join(str(message).split())
    if " " in text:
        return text
    kind = type(error).__name__
    found = f"{kind}: {text}" if text else kind
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return found
    return (
        f"{found} ({Path(frames[-1].filename).name}, line {frames[-1].lineno}: {frames[-1].line})"
    )


@contextmanager
def one_line_errors(kinds: Tuple[Type[Exception], ...] = USER_ERRORS) -> Iterator[None]:
    """Ends the process with status 2 and one line on stderr for errors that a user can mend.

    Args:
        kinds: what counts as such; anything else is a bug and keeps its traceback.
    """
    try:
        yield
    except kinds as error:
        text = unreadable_reason(error) if isinstance(error, UnreadableImage) else one_line(error)
        print("error:", text, file=sys.stderr)
        sys.exit(2)
