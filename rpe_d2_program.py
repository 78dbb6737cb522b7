"""Entry point of the ``rpe-d2`` program.

This module lies beside the package on purpose. Importing any module of ``rpe_d2`` registers its
components, which imports torch and Detectron2 and takes seconds. ``rpe-d2 --help`` needs neither.
"""

from importlib.util import find_spec
from pathlib import Path
from runpy import run_path


def main() -> int:
    """Runs :func:`rpe_d2.cli.main.main` without importing the package ``rpe_d2`` first."""
    (package,) = find_spec("rpe_d2").submodule_search_locations
    return run_path(str(Path(package, "cli", "main.py")))["main"]()
