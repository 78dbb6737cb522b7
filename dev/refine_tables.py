"""Tables of what rpe_d2.refine gains, from results/refine/."""

import json
from pathlib import Path
from typing import Dict, List

from dev.result_tables import markdown_table

_NAMES = {
    "given": "as given",
    "gaussian": "Gaussian blur",
    "median": "median",
    "guided_filter": "guided filter",
    "random_walker": "random walker",
    "dense_crf": "dense CRF",
    "refine": "**rpe_d2.refine**",
}
_KINDS = ("none", "blocky", "mask_grid", "shrink", "warp")


def refined_tables(folder: Path) -> Dict[str, str]:
    """Returns all tables by name."""
    return {
        "refined shapes": degraded_table(folder / "degraded.json", "shapes"),
        "refined nuclei": degraded_table(folder / "degraded.json", "nuclei"),
        "refined predictions": predictions_table(folder / "predictions.json"),
        "refined classes": voc_table(folder),
    }


def degraded_table(path: Path, source: str) -> str:
    """Compares the IoU of boundaries after each method, in percent, by kind of error."""
    record = json.loads(path.read_text())
    scores, seconds = record["scores"][source], record["cpu_seconds_per_image"]
    rows = []
    for method, kinds in scores.items():
        mean = sum(kind["boundary_iou"] for kind in kinds.values()) / len(kinds)
        values = [mean, *(kinds[kind]["boundary_iou"] for kind in _KINDS)]
        name = _NAMES[method]
        rows.append([name, *(f"{100 * value:.1f}" for value in values), f"{seconds[method]:.2f}"])
    kinds = [kind.replace("_", " ") for kind in _KINDS]
    return markdown_table(["method", "mean of 11", *kinds, "CPU s"], rows)


def predictions_table(path: Path) -> str:
    """Compares the stored predictions of models before and after the refinement."""
    scores: Dict[str, Dict[str, Dict[str, float]]] = json.loads(path.read_text())["scores"]
    rows: List[List[str]] = []
    for model, parts in scores.items():
        for part, metrics in parts.items():
            rows.append([f"{model}, {part}", *(f"{value:.1f}" for value in metrics.values())])
    return markdown_table(["predictions", *next(iter(scores.values()))["given"]], rows)


def voc_table(folder: Path) -> str:
    """Compares the rows of dev/voc_refine.py."""
    rows = []
    for base, title in (("mnv2", "MobileNetV2"), ("dm05", "MobileNetV2, half as wide")):
        for row, name in (("base", "base"), ("crf", "base + dense CRF"), ("spn", "base + refiner")):
            path = folder / f"voc_{row}_{base}.json"
            if not path.is_file():
                continue
            metrics = json.loads(path.read_text())["metrics"]
            values = [metrics["sem_seg"][key] for key in ("mIoU", "mACC", "pACC")]
            values += [
                metrics[f"sem_seg_boundary{suffix}"]["mIoU"] for suffix in ("", "_2px", "_1px")
            ]
            rows.append([title, name, *(f"{value:.1f}" for value in values)])
    headings = ["DeepLab on", "method", "mIoU", "mACC", "pACC"]
    return markdown_table([*headings, "boundary, 2 %", "2 px", "1 px"], rows)
