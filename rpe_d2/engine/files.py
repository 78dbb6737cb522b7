"""Writing files without overwriting any."""

from pathlib import Path


def write_new_file(path: Path, content: bytes) -> Path:
    """Writes ``NAME.EXT``, or ``NAME-2.EXT``, ``NAME-3.EXT`` … where there is one already.

    Returns:
        Path of the file.
    """
    number = 1
    while True:
        free = path if number == 1 else path.with_stem(f"{path.stem}-{number}")
        try:
            with open(free, "xb") as file:
                file.write(content)
            return free
        except FileExistsError:
            number += 1
