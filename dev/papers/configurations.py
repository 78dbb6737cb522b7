"""The table of the configurations in configs/paper/."""

import re
from pathlib import Path
from typing import Dict, List

from dev.papers.entries import DATA, GPU, Paths
from dev.papers.links import CONFIGS, config_link
from dev.result_tables import markdown_table, read_record

FOLDER = "paper"
# What is missing to train a configuration that has no records.
UNMEASURED: Dict[str, Paths] = {
    "deepmask_coco.yaml": (DATA, GPU),
    "instance_fcn_voc.yaml": (DATA, GPU),
    "mnc_coco.yaml": (DATA, GPU),
    "pfn_voc.yaml": (DATA, GPU),
    "rpe_voc.yaml": (DATA, GPU),
    "rpe_voc_proposals.yaml": (DATA, GPU),
    "spn_helen.yaml": (DATA,),
    "spn_voc.yaml": (DATA, GPU),
}


def configurations_table(results: Path) -> str:
    """Returns a row for each configuration of a paper: what it is for, and its records.

    Args:
        results: the folder of the records.
    """
    records = _records_by_config(results)
    rows = []
    for path in sorted((CONFIGS / FOLDER).glob("*.yaml")):
        name = f"{FOLDER}/{path.name}"
        found = records.get(f"configs/{name}", [])
        if found:
            first = found[0].relative_to(results).as_posix()
            shown = f"{len(found)}, [one of them](results/{first})"
        elif path.name in UNMEASURED:
            shown = f"missing: {', '.join(UNMEASURED[path.name])}"
        else:
            shown = "base of others" if path.name.startswith("Base-") else "not measured yet"
        rows.append([config_link(name), purpose(path), shown])
    return markdown_table(["configuration", "what it is for", "records"], rows)


def purpose(path: Path) -> str:
    """Returns the first sentence of the comment that opens a configuration."""
    comment = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        comment.append(line.lstrip("# ").strip())
    # A sentence ends before a capital letter, unlike "et al.", which stands before others.
    sentence = re.split(r"(?<=[.:])\s(?=[A-Z])", " ".join(comment))[0]
    return sentence.rstrip(".:").replace("|", "\\|")


def _records_by_config(results: Path) -> Dict[str, List[Path]]:
    records: Dict[str, List[Path]] = {}
    for path in sorted(results.rglob("*.json")):
        config = read_record(path).get("config")
        if isinstance(config, str):
            records.setdefault(config, []).append(path)
    return records
