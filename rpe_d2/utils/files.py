"""Safe writing of files: under an unused name, or by atomic replacement."""

import errno
import os
import platform
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Iterator

try:
    import fcntl
except ImportError:  # a system without POSIX locks
    fcntl = None

TEMPORARY = ".tmp"  # the suffix of incomplete files
LOCK = ".lock"  # the empty file that is locked for a folder; it is never deleted


def free_path(path: Path) -> Path:
    """Returns the first of ``NAME.EXT``, ``NAME-2.EXT``, ``NAME-3.EXT`` … that does not exist."""
    number = 1
    free = path
    while os.path.lexists(free):  # a dangling link takes its name, too
        number += 1
        free = path.with_stem(f"{path.stem}-{number}")
    return free


def write_new_file(path: Path, content: bytes) -> Path:
    """Writes a file under the first unused name of ``NAME.EXT``, ``NAME-2.EXT``, ``NAME-3.EXT`` …

    Args:
        path: ``NAME.EXT``.
        content: the bytes of the file.

    Returns:
        The path of the file.
    """
    while True:
        free = free_path(path)
        try:
            with open(free, "xb") as file:
                file.write(content)
            return free
        except FileExistsError:  # another process took the name
            continue


def make_new_folder(path: Path) -> Path:
    """Creates a folder under the first unused name of ``NAME``, ``NAME-2``, ``NAME-3`` …

    Returns:
        The path of the folder.
    """
    while True:
        free = free_path(path)
        try:
            free.mkdir()
            return free
        except FileExistsError:  # another process took the name
            continue


def make_writable_folder(key: str, path: Path) -> None:
    """Creates a folder and its missing parents, and checks that files can be written into it.

    Args:
        key: the configuration key or flag that names the folder, for the message.
        path: the folder.

    Raises:
        ValueError: The folder cannot be created or written into.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ValueError(f"{key} {path} cannot be written: {error.strerror}") from error


@contextmanager
def locked_folder(path: Path) -> Iterator[None]:
    """Holds a lock on a folder within a ``with`` block, so that only one process writes into it.

    The kernel releases the lock if the process dies. Forked processes do not inherit it.

    Raises:
        BlockingIOError: Another process holds the lock.
    """
    if fcntl is None:
        yield
        return
    # For reading, too: a pipe of this name would be waited for.
    with open(os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o666), "rb") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise BlockingIOError(error.errno, "another process holds the lock") from error
            # Some network file systems have no locks. Then the folder is used without one.
        yield


@contextmanager
def replacing_file(path: Path) -> Iterator[BinaryIO]:
    """Opens a file that replaces ``path`` once it is complete and on disk.

    Until then, and if an exception is raised, an existing file of that name does not change.
    """
    # A restarted run may overlap with one that is about to die, and machines may share the folder.
    temporary = path.with_name(f"{path.name}.{platform.node()}.{os.getpid()}{TEMPORARY}")
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
    folder = os.open(path.parent, os.O_RDONLY)  # the new name must reach the disk, too
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
