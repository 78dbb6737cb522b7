"""Comparison of models as a Markdown table and as a self-contained HTML page."""

import html
import io
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, NullFormatter

from .figure import counted

# Title of a column, keys of its value in a row ("-" before them: smaller is better), and format.
_COLUMNS = (
    ("AP", "segm AP", ".1f"),
    ("AP50", "segm AP50", ".1f"),
    ("AP75", "segm AP75", ".1f"),
    ("AR", "segm AR", ".1f"),
    ("boundary AP", "boundary AP", ".1f"),
    ("box AP", "bbox AP", ".1f"),
    ("AR@10", "proposals AR@10", ".1f"),
    ("AR@100", "proposals AR@100", ".1f"),
    ("AR@1000", "proposals AR@1000", ".1f"),
    ("AUC", "proposals AUC", ".1f"),
    ("R50@10", "proposals R50@10", ".1f"),
    ("box AR@10", "box_proposals AR@10", ".1f"),
    ("box AR@100", "box_proposals AR@100", ".1f"),
    ("s / image", "-seconds_per_image", ".3f"),
    ("M parameters", "-parameters_million", ".1f"),
    ("GFLOPs", "-gflops", ".1f"),
)

# What error_analysis returns besides the kinds of errors.
_NOT_STACKED = ("AP50", "false_positives", "false_negatives", "counts")

_STYLE = """
body {
  font: 15px/1.45 system-ui, sans-serif; color: #1d2330;
  max-width: 1500px; margin: 24px auto; padding: 0 20px;
}
h1 { font-size: 24px; margin-bottom: 4px; }
h2 { font-size: 18px; margin-top: 32px; }
p { max-width: 900px; color: #4a5263; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
th, td { padding: 6px 10px; text-align: right; border-bottom: 1px solid #dfe3ea; }
th, td { white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 2px solid #8b94a6; }
td.best { font-weight: 700; }
td.text { text-align: left; white-space: normal; }
figure { margin: 0; }
figcaption { font-size: 13px; color: #4a5263; }
td.failed { text-align: left; color: #a4262c; white-space: normal; }
.swatch {
  display: inline-block; width: 11px; height: 11px; border-radius: 2px; margin-right: 7px;
}
.plots { display: flex; flex-wrap: wrap; gap: 14px; }
.plots svg { width: 355px; height: auto; }
.pictures td { border: 0; padding: 3px; text-align: center; }
.pictures img { width: 230px; border-radius: 3px; display: block; }
.pictures th { font-size: 13px; border: 0; text-align: center; max-width: 230px; }
.pictures th { overflow: hidden; text-overflow: ellipsis; }
"""


def comparison_table(rows: Sequence[Dict[str, Any]]) -> str:
    """Formats rows as a Markdown table with one line per model.

    A missing number is "-", and the row of a failed model has the reason. Columns without numbers
    are omitted.
    """
    columns = _columns(rows)
    lines = [
        "| model | " + " | ".join(title for title, _, _ in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for row in rows:
        if "error" in row:
            cells = [f"failed: {row['error']}"] + [""] * (len(columns) - 1)
        else:
            cells = [_text(_number(row, where), form) for _, where, form in columns]
        lines.append(f"| {_label(row)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def comparison_page(
    dataset: str, num_images: int, rows: Sequence[Dict[str, Any]], truth: Sequence[str]
) -> str:
    """Creates a self-contained HTML page with a table, curves and images.

    Args:
        dataset: name of the dataset.
        num_images: number of images evaluated.
        rows: measurements of the models by ``tools/compare.py``.
        truth: data URLs of the ground truth of some images. The rows have the same images.
    """
    done = [row for row in rows if "error" not in row]
    colors = {id(row): color for row, color in zip(rows, _colors(len(rows)))}
    parts = [
        f"<h1>{html.escape(dataset)}</h1>",
        f"<p>{counted(len(rows), 'model')}, {counted(num_images, 'image')}.</p>",
        f'<div class="wide">{_html_table(rows, colors)}</div>',
        "<p>AP and AR in percent as defined by COCO; boundary AP at 2 % of the image diagonal "
        "(Cheng et al. 2021). AR@n, AUC and R50@n are class-agnostic recalls of masks, and box "
        "AR@n of boxes, with n proposals per image; detectors are evaluated by their instances. "
        "Models without masks are evaluated by filled boxes. Seconds are medians per image; GFLOPs "
        "count the multiply-adds of one inference. Bold: the best value of a column.</p>",
    ]
    if done:
        parts.append("<h2>Curves</h2>" + _plots(done, colors))
        parts.append(_error_section(done))
    if truth:
        parts.append("<h2>The same images</h2>" + _pictures(done, truth))
    return html_page(dataset, "\n".join(parts))


def html_page(title: str, body: str) -> str:
    """Returns a self-contained HTML page in the style of this package's reports."""
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def _columns(rows: Sequence[Dict[str, Any]]) -> List[Tuple[str, str, str]]:
    """Returns the columns for which a model has a number, or all columns if there are none."""
    used = [
        column for column in _COLUMNS if any(_number(row, column[1]) is not None for row in rows)
    ]
    return used or list(_COLUMNS)


def _label(row: Dict[str, Any]) -> str:
    return row["name"] + (" (masks: filled boxes)" if row.get("filled_boxes") else "")


def _number(row: Dict[str, Any], where: str) -> Optional[float]:
    value: Any = row
    for key in where.lstrip("-").split(" "):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _text(value: Optional[float], form: str) -> str:
    return "-" if value is None else format(value, form)


def _html_table(rows: Sequence[Dict[str, Any]], colors: Dict[int, str]) -> str:
    columns, best = _columns(rows), {}
    for title, where, _ in columns:
        values = [v for row in rows if (v := _number(row, where)) is not None]
        if len(values) > 1:
            best[title] = min(values) if where.startswith("-") else max(values)
    lines = ["<table><thead><tr><th>model</th>"]
    lines += [f"<th>{title}</th>" for title, _, _ in columns]
    lines.append("</tr></thead><tbody>")
    for row in rows:
        swatch = f'<span class="swatch" style="background:{colors[id(row)]}"></span>'
        lines.append(f"<tr><td>{swatch}{html.escape(_label(row))}</td>")
        if "error" in row:
            reason = html.escape(row["error"])
            lines.append(f'<td class="failed" colspan="{len(columns)}">failed: {reason}</td></tr>')
            continue
        for title, where, form in columns:
            value = _number(row, where)
            mark = ' class="best"' if value is not None and value == best.get(title) else ""
            lines.append(f"<td{mark}>{_text(value, form)}</td>")
        lines.append("</tr>")
    return "".join(lines) + "</tbody></table>"


def _plots(rows: Sequence[Dict[str, Any]], colors: Dict[int, str]) -> str:
    def recall_by_number(axes: Axes) -> None:
        for row in rows:
            curve = row["recall"]
            axes.plot(curve["numbers"], curve["recall_by_number"], color=colors[id(row)])
        axes.set(xscale="log", xlabel="proposals per image", ylabel="recall, mean over IoU, %")

    def recall_by_iou(axes: Axes) -> None:
        for row in rows:
            axes.plot(row["recall"]["ious"], row["recall"]["recall_by_iou"], color=colors[id(row)])
        axes.set(xlabel="IoU", ylabel="recall with 100 proposals, %")

    def precision_by_recall(axes: Axes) -> None:
        for row in rows:
            for name, line in (("precision50", "-"), ("precision75", ":")):
                if "segm" in row:
                    axes.plot(
                        np.linspace(0, 100, 101),
                        100 * np.array(row["segm"][name]),
                        line,
                        color=colors[id(row)],
                    )
        axes.set(xlabel="recall, %", ylabel="precision, %: IoU .5 solid, .75 dotted")

    def speed(axes: Axes) -> None:
        for row in rows:
            score = _number(row, "segm AP")
            score = _number(row, "proposals AR@100") if score is None else score
            if score is not None:
                axes.plot(row["seconds_per_image"], score, "o", color=colors[id(row)])
        axes.set(xscale="log", xlabel="seconds per image", ylabel="mask AP (or AR@100), %")

    plots = (
        ("Recall and number of proposals", recall_by_number),
        ("Recall and overlap", recall_by_iou),
        ("Precision and recall", precision_by_recall),
        ("Score and time", speed),
    )
    drawn = (svg_plot(*plot) for plot in plots)
    return '<div class="plots">' + "".join(filter(None, drawn)) + "</div>"


def svg_plot(title: str, draw: Callable[[Axes], None]) -> str:
    """Returns a plot as SVG, or "" if nothing was drawn into its axes."""
    figure = Figure(figsize=(5.2, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    draw(axes)
    if not axes.lines and not axes.patches:
        return ""
    if axes.lines:
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FormatStrFormatter("%g"))
            axis.set_minor_formatter(NullFormatter())
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    axes.set_title(title, fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]


def _error_section(rows: Sequence[Dict[str, Any]]) -> str:
    """Returns the section of error kinds and oracles, or "" if no model has instances."""
    rows = [row for row in rows if "errors" in row]
    if not rows:
        return ""
    note = (
        "<p>Left: what AP50 would gain if all errors of one kind were corrected (TIDE, Bolya et "
        "al. 2020). The gains do not add up. A prediction finds an object if their IoU is at "
        "least 0.5. It is background if its IoU with every object is at most 0.1."
    )
    if any("oracles" in row for row in rows):
        note += (
            " Right: AP if one step made no mistakes: the classes of the predictions, their "
            "scores (the IoU), the grouping of pixels, or the foreground that is grouped."
        )
    drawn = [svg_plot("Cost of each kind of error", lambda axes: _error_bars(axes, rows))]
    if any("oracles" in row for row in rows):
        drawn.append(svg_plot("AP with oracles", lambda axes: _oracle_bars(axes, rows)))
    plots = '<div class="plots">' + "".join(drawn) + "</div>"
    return f"<h2>Errors</h2>{note}</p>{plots}"


def _error_bars(axes: Axes, rows: Sequence[Dict[str, Any]]) -> None:
    kinds = [kind for kind in rows[0]["errors"] if kind not in _NOT_STACKED]
    places, left = range(len(rows))[::-1], np.zeros(len(rows))
    for kind, color in zip(kinds, _colors(len(kinds))):
        widths = np.array([row["errors"][kind] or 0 for row in rows])
        axes.barh(places, widths, left=left, color=color, label=kind)
        left += widths
    axes.set_yticks(places, [_short(_label(row)) for row in rows])
    axes.set_xlabel("gain in AP50, %")
    axes.legend(fontsize=8, frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.4, -0.16))


def _oracle_bars(axes: Axes, rows: Sequence[Dict[str, Any]]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row.get("oracles", ())))
    bars = {"as predicted": [_number(row, "segm AP") for row in rows]}
    bars.update({name: [(row.get("oracles") or {}).get(name) for row in rows] for name in names})
    height = 0.85 / len(bars)
    for number, ((name, values), color) in enumerate(zip(bars.items(), _colors(len(bars)))):
        places = np.arange(len(rows))[::-1] - number * height
        axes.barh(places, [value or 0 for value in values], height, color=color, label=name)
    middle = np.arange(len(rows))[::-1] - 0.425 + height / 2
    axes.set_yticks(middle, [_short(_label(row)) for row in rows])
    axes.set_xlabel("mask AP, %")
    axes.legend(fontsize=8, frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.4, -0.16))


def _short(name: str) -> str:
    return name if len(name) <= 24 else f"…{name[-23:]}"


def _pictures(rows: Sequence[Dict[str, Any]], truth: Sequence[str]) -> str:
    names = ["ground truth", *(_label(row) for row in rows)]
    lines = ['<div class="wide"><table class="pictures"><tr>']
    lines += [f"<th>{html.escape(name)}</th>" for name in names]
    lines.append("</tr>")
    for number, picture in enumerate(truth):
        cells = [picture, *(row["pictures"][number] for row in rows)]
        lines.append("<tr>" + "".join(f'<td><img src="{cell}" alt=""></td>' for cell in cells))
        lines.append("</tr>")
    note = (
        "<p>The best instances of each model, as many as there are objects. An instance has the "
        "color of the object that it matches (IoU at least 0.5), or gray without a match.</p>"
    )
    return note + "".join(lines) + "</table></div>"


def _colors(count: int) -> List[str]:
    """Returns distinct colors, also for most color-blind people (Okabe and Ito), cyclically."""

    base = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#7a5195", "#6b6b6b"]
    return [base[number % len(base)] for number in range(count)]
