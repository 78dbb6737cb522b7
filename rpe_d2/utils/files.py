"""Writing files so that none is lost: under a free name, or whole or not at all."""

import os
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Iterator

TEMPORARY = ".tmp"  # suffix of files that are not yet complete


def free_path(path: Path) -> Path:
    """``NAME.EXT``, or the first of ``NAME-2.EXT``, ``NAME-3.EXT`` … that does not exist."""
    number = 1
    free = path
    while free.exists():
        number += 1
        free = path.with_stem(f"{path.stem}-{number}")
    return free


def write_new_file(path: Path, content: bytes) -> Path:
    """Writes ``NAME.EXT``, or ``NAME-2.EXT``, ``NAME-3.EXT`` … where there is one already.

    Returns:
        Path of the file.
    """
    while True:
        free = free_path(path)
        try:
            with open(free, "xb") as file:
                file.write(content)
            return free
        except FileExistsError:  # another process was faster
            continue


def make_new_folder(path: Path) -> Path:
    """Makes the folder ``NAME``, or ``NAME-2``, ``NAME-3`` … where there is one already.

    Returns:
        Path of the folder.
    """
    while True:
        free = free_path(path)
        try:
            free.mkdir()
            return free
        except FileExistsError:  # another process was faster
            continue


def make_writable_folder(key: str, path: Path) -> None:
    """Makes a folder and those it lies in, where there are none, and writes into it on trial.

    Args:
        key: what the user has named it by.

    Raises:
        ValueError: it cannot be made or written into.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ValueError(f"{key} {path} cannot be written: {error.strerror}") from error


@contextmanager
def replacing_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the name ``path`` once it is complete and on the disk.

    Until then, and for ever if anything is raised, what had the name before keeps it.
    """
    # Its own name: a run that is started again may meet the one before, which is not quite dead.
    temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY)  # the new name has to reach the disk, too
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
