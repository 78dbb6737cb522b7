"""Errors that a user can mend: one line, no traceback."""

import sys
from contextlib import contextmanager
from typing import Iterator, Tuple, Type

import yaml

from rpe_d2.data import UnreadableImage
from rpe_d2.data.readable import unreadable_reason

# What a wrong key, value or file raises while a run is set up.
USER_ERRORS = (ValueError, KeyError, OSError, AssertionError, yaml.YAMLError)


def one_line(error: Exception) -> str:
    """The message of an error on one line."""
    # str() of a KeyError is quoted; of others it is the message.
    message = error.args[0] if isinstance(error, KeyError) and error.args else error
    return " ".join(str(message).split())


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
