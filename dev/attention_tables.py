"""Tables of the spatial transformers on distorted digits, from results/attention/."""

from pathlib import Path
from typing import Dict, List, NamedTuple, Tuple

from dev.result_tables import NO_VALUE, markdown_table, over_seeds, read_record

_DISTORTIONS = ("R", "RTS", "P", "E")
_TRANSFORMS = {"none": "", "affine": "affine", "projective": "projective", "tps": "spline"}
# Error in percent by network and transformation, in the order of the distortions: table 1 of
# Jaderberg et al., NIPS 2015, as the slides show it.
PUBLISHED: Dict[Tuple[str, str], Tuple[float, ...]] = {
    ("FCN", "none"): (2.1, 5.2, 3.1, 3.2),
    ("FCN", "affine"): (1.2, 0.8, 1.5, 2.7),
    ("FCN", "projective"): (1.3, 0.9, 1.4, 2.6),
    ("FCN", "tps"): (1.1, 0.8, 1.4, 2.4),
    ("CNN", "none"): (1.2, 0.8, 1.5, 1.4),
    ("CNN", "affine"): (0.7, 0.5, 0.8, 1.2),
    ("CNN", "projective"): (0.8, 0.6, 0.8, 1.3),
    ("CNN", "tps"): (0.7, 0.5, 0.8, 1.1),
}
Row = Tuple[str, str]  # network and transformation
Runs = Dict[Tuple[str, str, str], List[dict]]  # by network, transformation and distortion
_TRAINED = ("affine", "projective", "tps")


class Claim(NamedTuple):
    """An order of pairs of rows: the first of a pair has the lower error."""

    text: str
    pairs: List[Tuple[Row, Row]]


CLAIMS = (
    Claim(
        "a transformer lowers the error of the FCN",
        [(("FCN", kind), ("FCN", "none")) for kind in _TRAINED],
    ),
    Claim(
        "a transformer lowers the error of the CNN",
        [(("CNN", kind), ("CNN", "none")) for kind in _TRAINED],
    ),
    Claim("the CNN has a lower error than the FCN", [(("CNN", "none"), ("FCN", "none"))]),
    Claim(
        "the same with a transformer in both",
        [(("CNN", kind), ("FCN", kind)) for kind in _TRAINED],
    ),
    Claim(
        "the spline has a lower error than the affine transformation",
        [((network, "tps"), (network, "affine")) for network in ("FCN", "CNN")],
    ),
    Claim(
        "the spline has a lower error than the projective one",
        [((network, "tps"), (network, "projective")) for network in ("FCN", "CNN")],
    ),
)


def attention_tables(folder: Path) -> Dict[str, str]:
    """Returns all tables by name."""
    runs = _runs(folder)
    return {
        "spatial transformers": errors_table(runs),
        "spatial transformers, order": order_table(runs),
        "spatial transformers, runs": runs_table(runs),
    }


def _runs(folder: Path) -> Runs:
    """Reads the records of dev/attention_runs.py that exist."""
    runs: Runs = {}
    for network, transform in PUBLISHED:
        for distortion in _DISTORTIONS:
            path = folder / f"{distortion}_{network}.json"
            record = read_record(path) if path.is_file() else {"runs": {}}
            runs[network, transform, distortion] = record["runs"].get(transform, [])
    return runs


def errors_table(runs: Runs) -> str:
    """Returns the errors with their ranges over the seeds, beside the published ones."""
    rows = []
    for (network, transform), published in PUBLISHED.items():
        cells = []
        for distortion in _DISTORTIONS:
            errors = _errors(runs, (network, transform), distortion)
            cells.append(over_seeds(errors) if errors else NO_VALUE)
        rows.append([_title(network, transform), *cells, " / ".join(map(str, published))])
    published = f"published: {' / '.join(_DISTORTIONS)}"
    return markdown_table(["network", *_DISTORTIONS, published], rows)


def order_table(runs: Runs) -> str:
    """Compares the order of the errors with the published one, where that has an order.

    The published table has one figure for each row. Errors of our runs have an order if their
    ranges over the seeds do not overlap.
    """
    rows = []
    for claim in CLAIMS:
        cases = _published_cases(claim)
        same = opposite = compared = 0
        for better, worse, distortion in cases:
            first, second = (_errors(runs, row, distortion) for row in (better, worse))
            if first and second:
                compared += 1
                same += max(first) < min(second)
                opposite += min(first) > max(second)
        ours = [NO_VALUE] * 4
        if compared:
            counts = same, opposite, compared - same - opposite
            ours = [*map(str, counts), _verdict(same, opposite, compared)]
        rows.append([claim.text, str(len(cases)), *ours])
    headings = ["order", "published cases", "same", "opposite", "no difference", "verdict"]
    return markdown_table(headings, rows)


def runs_table(runs: Runs) -> str:
    """Returns parameters, learning rates, lengths and times of the runs."""
    rows = []
    for network, transform in PUBLISHED:
        found = [run for distortion in _DISTORTIONS for run in runs[network, transform, distortion]]
        if not found:
            continue
        iterations = [run["iterations"] for run in found]
        minutes = [run["cpu_seconds"] / 60 for run in found]
        rows.append(
            [
                _title(network, transform),
                f"{found[0]['parameters']:,}",
                f"{found[0]['rate']:g}",
                f"{min(iterations)}–{max(iterations)}",
                over_seeds(minutes, digits=2),
                str(len(found)),
            ]
        )
    headings = ["network", "parameters", "learning rate", "iterations", "CPU minutes", "runs"]
    return markdown_table(headings, rows)


def _errors(runs: Runs, row: Row, distortion: str) -> List[float]:
    return [run["error"] for run in runs[(*row, distortion)]]


def _published_cases(claim: Claim) -> List[Tuple[Row, Row, str]]:
    """Returns the pairs of rows and the distortions on which the published errors differ."""
    return [
        (better, worse, distortion)
        for better, worse in claim.pairs
        for number, distortion in enumerate(_DISTORTIONS)
        if PUBLISHED[better][number] < PUBLISHED[worse][number]
    ]


def _title(network: str, transform: str) -> str:
    return f"ST-{network}, {_TRANSFORMS[transform]}" if _TRANSFORMS[transform] else network


def _verdict(same: int, opposite: int, compared: int) -> str:
    """Returns "reproduced" or "refuted" if most cases say so, and none says the opposite."""
    if 2 * same > compared and not opposite:
        return "reproduced"
    if 2 * opposite > compared and not same:
        return "refuted"
    return "undecided"
