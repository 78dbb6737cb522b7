"""Reading of text and JSON that users bring."""

import gzip
import json
import zlib
from pathlib import Path
from typing import Any, Union

from .image_files import check_is_file

# A small file may hold endless zeros.
_MOST_BYTES = 2**31


def read_text(path: Union[str, Path], where: str = "") -> str:
    """Reads a text file in UTF-8, compressed by gzip if its name ends with ``.gz``.

    Args:
        path: the file.
        where: prefix of the message.

    Raises:
        ValueError: It is no text in UTF-8, or no file. The message is one line that names it.
    """
    check_is_file(str(path))
    prefix = f"{where}: " if where else ""
    try:
        if Path(path).suffix.lower() == ".gz":
            text = _decompressed(path, prefix).decode("utf-8")
            return text.replace("\r\n", "\n").replace("\r", "\n")  # as in plain files
        return Path(path).read_text(encoding="utf-8")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{prefix}{path} is not a whole gzip file ({error})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{prefix}{path} is not text in UTF-8 ({error})") from error


def _decompressed(path: Union[str, Path], prefix: str) -> bytes:
    with gzip.open(path) as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ValueError(
            f"{prefix}{path} is larger than {_MOST_BYTES} bytes; allowed: at most that"
        )
    return content


def parse_json(text: Union[str, bytes], source: object) -> Any:
    """Parses JSON.

    Args:
        text: the JSON.
        source: what the message names, usually the path of the file.

    Raises:
        ValueError: The text is not JSON, or is nested too deeply. A damaged file of brackets would
            otherwise end in a RecursionError.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError(
            f"{source}: its JSON is nested too deeply; allowed: hundreds of levels"
        ) from error
    except ValueError as error:  # also a number of thousands of digits, which names no place
        raise ValueError(f"{source} is not JSON ({error})") from error
