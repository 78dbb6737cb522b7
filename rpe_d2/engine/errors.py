"""Errors that a user can mend: one line, no traceback."""

import sys
from contextlib import contextmanager
from typing import Iterator

import yaml

# What a wrong key, value or file raises while a run is set up.
USER_ERRORS = (ValueError, KeyError, OSError, AssertionError, yaml.YAMLError)


def one_line(error: Exception) -> str:
    """The message of an error on one line."""
    # str() of a KeyError is quoted; of others it is the message.
    message = error.args[0] if isinstance(error, KeyError) and error.args else error
    return " ".join(str(message).split())


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends the process with status 2 and one line on stderr for errors that a user can mend."""
    try:
        yield
    except USER_ERRORS as error:
        print("error:", one_line(error), file=sys.stderr)
        sys.exit(2)
