"""Reading of text and JSON that users bring."""

import json
from pathlib import Path
from typing import Any, Union

from .image_files import check_is_file


def read_text(path: Union[str, Path], where: str = "") -> str:
    """Reads a text file in UTF-8.

    Args:
        path: the file.
        where: prefix of the message.

    Raises:
        ValueError: It is no text in UTF-8, or no file. The message is one line that names it.
    """
    check_is_file(str(path))
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        prefix = f"{where}: " if where else ""
        raise ValueError(f"{prefix}{path} is not text in UTF-8 ({error})") from error


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
