"""The table of the configurations in configs/paper/."""

import re
from pathlib import Path
from typing import Dict, List, Sequence

from dev.papers.entries import Table
from dev.papers.links import CONFIGS, config_link
from dev.result_tables import markdown_table, read_record

FOLDER = "paper"


def configurations_table(results: Path, tables: Sequence[Table]) -> str:
    """Returns a row for each configuration of a paper: what it is for, and its records.

    Args:
        results: the folder of the records.
        tables: the tables of the papers, whose rows say what a configuration without records lacks.
    """
    records = _records_by_config(results)
    rows = []
    for path in sorted((CONFIGS / FOLDER).glob("*.yaml")):
        name = f"{FOLDER}/{path.name}"
        found = records.get(f"configs/{name}", [])
        if found:
            shown = f"{len(found)}, [one of them](results/{found[0].relative_to(results)})"
        elif path.name.startswith("Base-"):
            shown = "base of others"
        else:
            shown = _lacks(name, tables)
        rows.append([config_link(name), purpose(path), shown])
    return markdown_table(["configuration", "what it is for", "records"], rows)


def purpose(path: Path) -> str:
    """Returns the first sentence of the comment that opens a configuration."""
    comment = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        comment.append(line.lstrip("# ").strip())
    # A sentence ends with a point before a capital. "et al." is followed by other characters.
    sentence = re.split(r"(?<=[.:])\s(?=[A-Z])", " ".join(comment))[0]
    return sentence.rstrip(".:").replace("|", "\\|")


def _lacks(name: str, tables: Sequence[Table]) -> str:
    """Returns what the rows lack that would be measured with a configuration."""
    words: List[str] = []
    for table in tables:
        for row in table.rows:
            if name == row.config and isinstance(row.ours, str):
                words.append(row.ours)
    missing = ", ".join(dict.fromkeys(words))
    return f"none; missing: {missing}" if missing else "none yet"


def _records_by_config(results: Path) -> Dict[str, List[Path]]:
    records: Dict[str, List[Path]] = {}
    for path in sorted(results.rglob("*.json")):
        config = read_record(path).get("config")
        if isinstance(config, str):
            records.setdefault(config, []).append(path)
    return records
