"""Parts of command lines that several commands share."""

import argparse
import shlex
import sys
from typing import List, Optional


def positive(text: str) -> int:
    """Parses a whole number of at least 1; the ``type`` of an argument."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number}; allowed: 1 or more")
    return number


def command_line(tool: str, argv: Optional[List[str]]) -> str:
    """Returns the command of this process in shell syntax, for the records that are written.

    Args:
        tool: path of the script, "tools/NAME.py". ``rpe-d2 NAME`` takes its place in commands of
            that program.
        argv: arguments of the command; None: those of the process.
    """
    program = sys.argv[0].split() if sys.argv[0].startswith("rpe-d2 ") else [tool]
    return shlex.join([*program, *(sys.argv[1:] if argv is None else argv)])
