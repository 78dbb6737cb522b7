"""Writing files without overwriting any."""

from pathlib import Path


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
