"""Tables of the records behind the claims of the papers."""

from pathlib import Path
from typing import Dict, List, Tuple

from dev.result_tables import (
    NO_VALUE,
    Score,
    markdown_table,
    over_seeds,
    read_record,
    score_of,
    seeds_of,
)


def decoded_table(folder: Path) -> str:
    """Returns a table of the records of dev/decode_loops.py, with means and ranges over the seeds.

    A record is called after its model and its seed, ``NAME_SEED.json``.
    """
    groups: Dict[str, List[dict]] = {}
    for path in sorted(folder.glob("*.json")):
        groups.setdefault(path.stem.rpartition("_")[0], []).append(read_record(path))
    columns = {
        "mean": "mean best IoU",
        "predictions": "predictions",
        "same_instance_below": "pairs within an object not merged, %",
        "different_instances_above": "pairs of two objects merged, %",
    }
    rows = []
    for name, records in groups.items():
        for loops in records[0]["loops"]:
            cells = [
                over_seeds([record["loops"][loops][column] for record in records])
                for column in columns
            ]
            rows.append([name, loops, *cells, str(len(records))])
    return markdown_table(["model", "loops", *columns.values(), "seeds"], rows)


def additions_table(folder: Path, names: Dict[str, str]) -> str:
    """Returns a table of the runs ``shapes_NAME_SEED.json`` and ``nuclei_NAME_SEED.json``.

    Args:
        folder: their folder.
        names: NAME of each row, and its label.
    """
    columns = {
        "shapes": [Score("segm", "AP", "shapes: AP"), Score("segm", "AP50", "AP50")],
        "nuclei": [
            *[Score("segm", "AP", "nuclei: AP"), Score("segm", "AP50", "AP50")],
            Score("segm_touching", "AP", "touching: AP"),
        ],
    }
    rows = []
    for name, label in names.items():
        cells = [label]
        for data, scores in columns.items():
            paths = sorted(folder.glob(f"{data}_{name}_*.json"))
            records = [read_record(path) for path in paths]
            cells += [
                (
                    over_seeds([score_of(record, score.task, score.name) for record in records])
                    if records
                    else NO_VALUE
                )
                for score in scores
            ]
        rows.append(cells)
    headings = [score.heading for scores in columns.values() for score in scores]
    return markdown_table(["form of the method", *headings], rows)


def holes_table(folder: Path) -> str:
    """Returns a table of the runs ``holes_HEAD_WEIGHT_SEED.json`` and of their holes.

    A folder holes/ has the records of dev/count_holes.py under the same names.
    """
    groups: Dict[str, List[Tuple[dict, dict]]] = {}
    for path in sorted((folder / "holes").glob("*.json")):
        records = read_record(folder / path.name), read_record(path)
        groups.setdefault(path.stem.rpartition("_")[0], []).append(records)
    columns = {
        "holes_an_image": "holes an image",
        "pixels_in_holes_an_image": "pixels in holes",
        "true_holes_an_image": "true holes an image",
    }
    rows = []
    for name, records in groups.items():
        head, weight = name.removeprefix("holes_").rsplit("_", 1)
        cells = [over_seeds([run["metrics"]["sem_seg"]["mIoU"] for run, _ in records])]
        for column in columns:
            cells.append(over_seeds([holes[column] for _, holes in records], digits=2))
        rows.append([head, weight, *cells, seeds_of([run for run, _ in records])])
    return markdown_table(
        ["head", "weight of the pair loss", "mIoU", *columns.values(), "seeds"], rows
    )
