"""Links of docs/papers.md to files of the repository."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"


def file_link(path: str) -> str:
    """Returns a link to a file, called after its name. The path is relative to the repository."""
    return f"[{Path(path).name}](../{path})"


def config_link(name: str) -> str:
    """Returns a link to a configuration below configs/, called after its path without suffix."""
    return f"[{Path(name).with_suffix('').as_posix()}](../configs/{name})"
