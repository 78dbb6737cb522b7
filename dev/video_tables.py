"""Tables of colors and masks that are carried through clips, from results/video/."""

import json
from pathlib import Path
from typing import Dict, List, Optional

from dev.result_tables import NO_VALUE, markdown_table

_CLIPS = ("bigbuckbunny", "bikes", "carphone")
_DISTANCES = ("10", "20", "30")
_METHODS = {
    "copy": "copy",
    "spn": "SPN alone",
    "flow": "optical flow",
    "network": "**network**",
    "network_flow": "**network on flow's warp**",
}
_MODES = ("direct", "two-sided", "chained")


def video_tables(folder: Path) -> Dict[str, str]:
    """Returns all tables by name."""
    tables = {f"video {clip}": color_table(folder, clip) for clip in _CLIPS}
    return {**tables, "video masks": mask_table(folder)}


def color_table(folder: Path, clip: str) -> str:
    """Compares PSNR and color difference by distance, and the saturation at the largest one."""
    rows = []
    for mode in _MODES:
        for method, title in _METHODS.items():
            record = _record(folder / f"colors_{method}.json")
            scores = record and record["scores"][clip].get(mode)
            if not scores:
                continue
            cells = [f"{title}, {mode}"]
            for name, digits in (("psnr", 1), ("delta_e", 2)):
                for distance in _DISTANCES:
                    known = distance in scores
                    value = f"{scores[distance][name]:.{digits}f}" if known else NO_VALUE
                    cells.append(value)
            last = scores[max(scores, key=int)]
            rows.append([*cells, f"{last['saturation']:.2f}"])
    headings = [f"PSNR, K = {distance}" for distance in _DISTANCES]
    headings += [f"ΔE, {distance}" for distance in _DISTANCES]
    return markdown_table(["method", *headings, "saturation kept"], rows)


def mask_table(folder: Path) -> str:
    """Compares the mean IoU of objects over all frames, in percent."""
    rows: List[List[str]] = []
    for method, title in _METHODS.items():
        record = _record(folder / f"masks_{method}.json")
        if record:
            scores = record["scores"]
            rows.append([title, *(f"{scores[mode]['J']:.1f}" for mode in ("direct", "chained"))])
    return markdown_table(["method", "J, direct", "J, chained"], rows)


def _record(path: Path) -> Optional[dict]:
    return json.loads(path.read_text()) if path.is_file() else None
