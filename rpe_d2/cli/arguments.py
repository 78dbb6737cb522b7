"""Parts of command lines that several commands share."""

import argparse
import contextlib
import shlex
import sys
from typing import Callable, List, Optional

from rpe_d2.inference import Segmenter


def positive(text: str) -> int:
    """Parses a whole number of at least 1; the ``type`` of an argument."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number}; allowed: 1 or more")
    return number


def number_type(allowed: str, is_allowed: Callable[[float], bool]) -> Callable[[str], float]:
    """Returns a parser of numbers, for the ``type`` of an argument.

    Args:
        allowed: what is allowed, for messages.
        is_allowed: whether a number is.
    """

    def parse(text: str) -> float:
        with contextlib.suppress(ValueError):
            if is_allowed(float(text)):
                return float(text)
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: {allowed}")

    return parse


def command_line(tool: str, argv: Optional[List[str]]) -> str:
    """Returns the command of this process in shell syntax, for the records that are written.

    Args:
        tool: path of the script, "tools/NAME.py". ``rpe-d2 NAME`` takes its place in commands of
            that program.
        argv: arguments of the command; None: those of the process.
    """
    program = sys.argv[0].split() if sys.argv[0].startswith("rpe-d2 ") else [tool]
    return shlex.join([*program, *(sys.argv[1:] if argv is None else argv)])


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags of :func:`load_segmenter`."""
    parser.add_argument(
        "--model",
        required=True,
        help="a model of rpe-d2 models, the output folder of a training, or a configuration",
    )
    parser.add_argument("--weights", default="", metavar="FILE", help="default: the model's own")
    parser.add_argument("--device", help="cpu, cuda, cuda:1; default: a GPU where there is one")
    parser.add_argument(
        "--min-score",
        type=number_type("0 to 1", lambda value: 0 <= value <= 1),
        metavar="SCORE",
        help="omit objects below this score; default: the model's own, for most models 0.5",
    )
    parser.add_argument(
        "--opts", nargs="+", default=[], metavar="KEY VALUE", help="overrides of the configuration"
    )


def load_segmenter(args: argparse.Namespace) -> Segmenter:
    """Loads the model that a command line names.

    Raises:
        ValueError: There is no such model, or the weights do not fit. The message is one line.
    """
    return Segmenter.load(
        args.model, args.weights, args.device, min_score=args.min_score, opts=args.opts
    )
