"""Packages and programs that a test needs, in the project's environment and in a borrowed one."""

import importlib
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import pytest

ROOT = Path(__file__).resolve().parents[2]


def lacking(reason: str) -> NoReturn:
    """Fails in the repository's ``.venv``, where a skip would hide a missing installation step.

    Skips the test in a borrowed environment, which ``tools/env.sh`` never modifies.
    """
    if Path(sys.prefix) == ROOT / ".venv":
        pytest.fail(f"{reason} (tools/env.sh installs it)", pytrace=False)
    pytest.skip(reason, allow_module_level=True)


def required(name: str, install: str) -> ModuleType:
    """Imports a package that ``tools/env.sh`` installs; see :func:`lacking` for a missing one.

    Args:
        name: The module.
        install: What installs it, as an argument of ``pip install``.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        lacking(f"{error.name} is missing: pip install {install}")


def chromium() -> str:
    """The path of Chromium or Chrome; the test is skipped where neither is installed."""
    found = filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
    return next(found, None) or pytest.skip("no Chromium here: apt install chromium")
