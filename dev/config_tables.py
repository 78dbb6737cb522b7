"""The tables of configuration keys in docs/configuration.md."""

import inspect

from rpe_d2.config import all_keys
from rpe_d2.config.key import Key
from rpe_d2.config.key_table import NODES


def config_table() -> str:
    """Returns a Markdown section for each node: a line about it and a table of its keys."""
    sections = []
    for node, keys in all_keys().items():
        rows = ["| key | default | allowed | meaning |", "|---|---|---|---|"]
        for name, key in keys.items():
            full_name = f"{node}.{name}".lstrip(".")
            meaning = key.meaning.replace("|", "\\|")
            default = f'"{key.default}"' if isinstance(key.default, str) else key.default
            rows.append(f"| `{full_name}` | `{default}` | {_allowed(key)} | {meaning} |")
        title = f"`{node}`" if node else "Top level"
        about = inspect.getdoc(NODES[node])
        sections.append("\n".join([f"## {title}", "", about, "", *rows]))
    return "\n\n".join(sections)


def _allowed(key: Key) -> str:
    """Returns the allowed values, with names as code."""
    if not key.choices or key.kind is not str:
        return key.allowed
    names = ", ".join(f"`{choice}`" if choice else '`""`' for choice in key.choices)
    return f"one or more of {names}" if isinstance(key.default, list) else names
