"""Parsing of JSON that users bring."""

import json
from typing import Any, Union


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
