"""The ``rpe-d2`` program, which has one command for each tool.

The module of a command is imported when the command is called.
"""

import difflib
import sys
from importlib import import_module
from typing import List, NamedTuple, Optional

from rpe_d2 import __version__


class Command(NamedTuple):
    """A command of the program.

    Attributes:
        module: the module whose ``main(argv=None) -> int`` runs the command.
        help: one line for ``rpe-d2 --help``.
    """

    module: str
    help: str


COMMANDS = {
    "predict": Command("rpe_d2.cli.predict", "segment pictures and write label maps"),
    "models": Command("rpe_d2.cli.models", "list the models that come with rpe_d2"),
    "serve": Command("rpe_d2.cli.serve", "segment pictures on a page in the browser"),
    "fit": Command(
        "rpe_d2.cli.fit", "train a model on pictures and label maps, with no key to set"
    ),
    "refine": Command("rpe_d2.cli.refine", "refine label maps or masks of any model"),
    "evaluate": Command("rpe_d2.cli.evaluate", "compare label maps with true ones"),
    "convert": Command("rpe_d2.cli.convert", "convert label maps, COCO, GeoJSON and other files"),
    "train": Command("rpe_d2.cli.train_net", "train and evaluate a configuration"),
    "demo": Command("rpe_d2.cli.demo", "run a trained model on images or a video"),
    "visualize": Command("rpe_d2.cli.visualize", "draw ground truth, predictions and embeddings"),
    "compare": Command("rpe_d2.cli.compare", "compare several models on one data set"),
    "refine-masks": Command(
        "rpe_d2.cli.refine_masks", "refine masks with a refiner of your own training"
    ),
    "propagate-video": Command(
        "rpe_d2.cli.propagate_video", "carry colors or masks from key frames through a clip"
    ),
    "eval-bsds": Command("rpe_d2.cli.eval_bsds", "evaluate contours with the BSDS500 benchmark"),
    "prepare-voc": Command("rpe_d2.cli.prepare_voc", "report which VOC 2012 and SBD files exist"),
    "split-coco": Command("rpe_d2.cli.split_coco", "split a COCO-format file by images"),
    "benchmark": Command("rpe_d2.cli.benchmark.main", "measure time and memory"),
}


def main(argv: Optional[List[str]] = None) -> int:
    """Runs one command with the arguments after its name.

    Args:
        argv: command and arguments. If None, those of the process.

    Returns:
        The exit status of the command, or 2 if there is no such command.
    """
    name, *arguments = (sys.argv[1:] if argv is None else argv) or [""]
    if name in ("", "-h", "--help"):
        print(_usage(), file=sys.stdout if name else sys.stderr)
        return 0 if name else 2
    if name == "--version":
        print(f"rpe-d2 {__version__}")
        return 0
    if name not in COMMANDS:
        nearest = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"allowed: {', '.join(COMMANDS)}"
        print(f"error: rpe-d2 has no command {name}; {hint}", file=sys.stderr)
        return 2
    # argparse, Detectron2's parser and the records of runs take the name of the program from here.
    before, sys.argv = sys.argv, [f"rpe-d2 {name}", *arguments]
    try:
        return import_module(COMMANDS[name].module).main(arguments)
    finally:
        sys.argv = before


def _usage() -> str:
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            "usage: rpe-d2 COMMAND [ARGUMENTS]",
            "",
            "Pixel grouping for Detectron2.",
            "",
            "commands:",
            *(f"  {name:{width}}  {command.help}" for name, command in COMMANDS.items()),
            "",
            "rpe-d2 COMMAND --help lists the arguments of a command.",
            "rpe-d2 --version prints the version.",
        ]
    )
