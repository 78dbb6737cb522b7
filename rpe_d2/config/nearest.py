"""Suggestions for misspelled names."""

import difflib
from typing import Iterable


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """Lists the known names that are most similar to an unknown one, the most similar first.

    Args:
        name: the unknown name. The last part of a name with dots is also compared by itself: for
            ``MARGIN``, ``MODEL.RPE.MARGIN`` is suggested.

    Returns:
        At most ``count`` names, separated by commas.
    """
    known = list(known)
    last = name.rpartition(".")[2]
    found = [other for other in known if other.rpartition(".")[2] == last and last != name]
    found += [other for other in known if "." not in name and other.endswith(f".{name}")]
    found = difflib.get_close_matches(name, found, count, cutoff=0)
    found += difflib.get_close_matches(name, known, count, cutoff=0)
    return ", ".join(list(dict.fromkeys(found))[:count])
