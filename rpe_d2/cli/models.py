"""The command line of ``rpe-d2 models``."""

import argparse
import sys
from pathlib import Path
from typing import List, Optional

from tabulate import tabulate

from rpe_d2.inference.model_folders import CARD, shipped_cards, weights_of_folder
from rpe_d2.utils.errors import one_line_errors
from rpe_d2.utils.json_text import read_text


def main(argv: Optional[List[str]] = None) -> int:
    """Lists the models that come with rpe_d2, or prints the card of one of them.

    Returns:
        Exit status: 0, or 2 with a one-line error if there is no such model.
    """
    parser = argparse.ArgumentParser(
        description="Lists the models that come with rpe_d2 and their weights."
    )
    parser.add_argument("name", nargs="?", help="print the card of this model")
    args = parser.parse_args(argv)
    with one_line_errors():
        models = shipped_cards()
        if args.name is None:
            rows = [[name, _megabytes(folder), _summary(folder)] for name, folder in models.items()]
            print(tabulate(rows, headers=["model", "MB", "for"], floatfmt=".1f"))
        elif args.name in models:
            print(read_text(models[args.name] / CARD).rstrip())
        else:
            raise ValueError(f"there is no model {args.name}; allowed: {', '.join(models)}")
    return 0


def _megabytes(folder: Path) -> float:
    return Path(weights_of_folder(folder)).stat().st_size / 1e6


def _summary(folder: Path) -> str:
    """Returns the first line under the title of a model's card."""
    lines = [line for line in read_text(folder / CARD).splitlines() if line.strip()]
    return lines[1] if len(lines) > 1 else ""


if __name__ == "__main__":
    sys.exit(main())
