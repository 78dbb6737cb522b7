"""Links of docs/papers.md to files of the repository."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"


def file_link(path: str) -> str:
    """Returns a link to a file, called after its name. The path is relative to the repository."""
    return f"[{Path(path).name}](../{path})"


def config_link(name: str, changes: str = "") -> str:
    """Returns a link to a configuration, called after its path without suffix.

    Args:
        name: the configuration, below configs/.
        changes: overrides to show behind it.
    """
    link = f"[{Path(name).with_suffix('').as_posix()}](../configs/{name})"
    return f"{link} `{changes}`" if changes else link
