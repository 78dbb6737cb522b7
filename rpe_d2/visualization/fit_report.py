"""The page that ``rpe-d2 fit`` writes: data, settings, curve, scores and pictures."""

import base64
import html
from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

import cv2
import numpy as np
from matplotlib.axes import Axes

from .report import html_page, svg_plot

__all__ = ["Example", "comparison_page", "fit_page"]

_SCORES = ("S@0.5", "S@0.75", "S", "F1@0.5", "PQ", "AJI", "AJI+", "SBD", "|DiC|", "pred", "true")
# Longer side of the pictures in pixels.
_SIDE = 420
_TRUE, _PRED = (0, 158, 115), (213, 94, 0)  # RGB


class Example(NamedTuple):
    """A held-out image with its true and its predicted objects.

    Attributes:
        name: file name.
        score: S, in 0-1.
        image: (H, W, 3) uint8 RGB.
        target: (H, W) label map.
        pred: (H, W) label map.
    """

    name: str
    score: float
    image: np.ndarray
    target: np.ndarray
    pred: np.ndarray


def fit_page(
    state: Dict[str, Any],
    losses: Sequence[Tuple[int, float]],
    examples: Sequence[Example],
    advice: Sequence[str],
) -> str:
    """Creates a self-contained HTML page.

    Args:
        state: content of ``fit.json``.
        losses: iterations and total losses of the training.
        examples: held-out images, the worst first.
        advice: what may help next, one sentence each.
    """
    title = f"rpe-d2 fit: {state['arguments']['data']}"
    count = state["images"]
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p>{count['train']} images to train on, {count['held_out']} held out. "
        f"<code>{html.escape(state['command'])}</code></p>",
        "<h2>Scores on the held-out images</h2>",
        _scores_table(state["scores"]),
        "<p>S: TP / (TP + FP + FN) of pairs with an IoU of at least 0.5, 0.75, and the mean over "
        "0.5 to 0.95. The settings of prediction were chosen on the same images.</p>",
        "<h2>What may help next</h2><ul>",
        *(f"<li>{html.escape(text)}</li>" for text in advice),
        "</ul>",
        "<h2>Pictures</h2>",
        "<p>Held-out images, the worst first. Green: true outlines. Orange: predicted ones.</p>",
        _pictures(examples),
        "<h2>Training</h2>",
        f'<div class="plots">{svg_plot("Total loss", lambda axes: _curve(axes, losses))}</div>',
        "<h2>The data</h2>",
        _measures_table(state["measures"]),
        "<h2>Settings and their reasons</h2>",
        _settings_table(state),
        "<h2>Settings of prediction that were tried</h2>",
        _tried_table(state["tuned"]["tried"]),
    ]
    return html_page(title, "\n".join(parts))


def comparison_page(states: Dict[str, Dict[str, Any]], minutes: float) -> str:
    """Creates an HTML page that compares the models of ``rpe-d2 fit --compare``.

    Args:
        states: content of ``fit.json`` of each model. Its own page is ``MODEL/report.html``.
        minutes: what each model was given.
    """
    first = next(iter(states.values()))
    title = f"rpe-d2 fit --compare: {first['arguments']['data']}"
    rows = []
    for model, state in states.items():
        steps = next(s["value"] for s in state["settings"] if s["key"] == "SOLVER.MAX_ITER")
        cells = [*_score_cells(state["scores"]), f"{steps}", f"{state['cpu_seconds'] / 60:.1f}"]
        link = f'<a href="{model}/report.html">{model}</a>'
        rows.append(f"<tr><td>{link}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    names = ["model", *map(html.escape, _SCORES), "training steps", "CPU minutes"]
    head = "".join(f"<th>{name}</th>" for name in names)
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p>{minutes:g} minutes for each model. {first['images']['train']} images to train on, "
        f"{first['images']['held_out']} held out. <code>{html.escape(first['command'])}</code></p>",
        "<h2>Scores on the held-out images</h2>",
        f'<div class="wide"><table><tr>{head}</tr>{"".join(rows)}</table></div>',
        "<p>The settings of prediction were chosen on the same images. CPU minutes are those of "
        "all processes, including the choice of settings and the evaluation.</p>",
    ]
    return html_page(title, "\n".join(parts))


def _scores_table(scores: Dict[str, Any]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in _SCORES)
    body = "".join(f"<td>{cell}</td>" for cell in _score_cells(scores))
    return f'<div class="wide"><table><tr>{head}</tr><tr>{body}</tr></table></div>'


def _score_cells(scores: Dict[str, Any]) -> List[str]:
    cells = []
    for name in _SCORES:
        value = scores.get(name)
        digits = 0 if name in ("pred", "true") else 3
        cells.append("-" if value is None else f"{value:.{digits}f}")
    return cells


def _measures_table(measures: Dict[str, Any]) -> str:
    sizes = " / ".join(f"{diameter:.0f}" for diameter in measures["diameters"])
    rows = {
        "images to train on": measures["images"],
        "objects": measures["objects"],
        "classes": ", ".join(measures["classes"]),
        "median size of the images, px": f"{measures['width']:.0f} x {measures['height']:.0f}",
        "most objects in an image": measures["most_objects"],
        "diameters (1, 10, 50, 90, 99 %), px": sizes,
        "objects that touch another one": f"{100 * measures['touching']:.0f} %",
        "median ratio of the axes of objects": f"{measures['elongation']:.1f}",
        "colors": "gray" if measures["is_gray"] else "yes",
    }
    cells = "".join(
        f"<tr><td>{name}</td><td>{html.escape(str(value))}</td></tr>"
        for name, value in rows.items()
    )
    return f'<div class="wide"><table>{cells}</table></div>'


def _settings_table(state: Dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(setting['key'])}</td><td>{html.escape(str(setting['value']))}</td>"
        f'<td class="text">{html.escape(setting["reason"])}</td></tr>'
        for setting in state["settings"]
    )
    return f'<div class="wide"><table>{rows}</table></div>'


def _tried_table(tried: Sequence[Tuple[Sequence[Any], float, float]]) -> str:
    rows = []
    for opts, min_score, score in tried:
        pairs = [f"{key} {value}" for key, value in zip(opts[::2], opts[1::2])]
        name = html.escape(", ".join(pairs) or "as trained")
        rows.append(f"<tr><td>{name}</td><td>{min_score:g}</td><td>{score:.3f}</td></tr>")
    head = "<tr><th>settings</th><th>best TEST.MIN_SCORE</th><th>S</th></tr>"
    return f'<div class="wide"><table>{head}{"".join(rows)}</table></div>'


def _pictures(examples: Sequence[Example]) -> str:
    cells = []
    for example in examples:
        name = html.escape(example.name)
        cells.append(
            f'<figure><img src="{_data_url(_drawn(example))}" alt="{name}">'
            f"<figcaption>{name}: S {example.score:.3f}</figcaption></figure>"
        )
    return f'<div class="plots">{"".join(cells)}</div>'


def _drawn(example: Example) -> np.ndarray:
    """Draws the outlines of both label maps over the image."""
    height, width = example.target.shape
    scale = min(_SIDE / max(height, width), 4.0)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    shrinks = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    picture = np.ascontiguousarray(cv2.resize(example.image, size, interpolation=shrinks))
    for labels, color in ((example.target, _TRUE), (example.pred, _PRED)):
        labels = cv2.resize(labels.astype(np.float64), size, interpolation=cv2.INTER_NEAREST)
        picture[_edges(labels)] = color
    return picture


def _edges(labels: np.ndarray) -> np.ndarray:
    """Returns the pixels (H, W) of objects beside another label below or to the right."""
    edges = np.zeros(labels.shape, bool)
    down, right = labels[:-1] != labels[1:], labels[:, :-1] != labels[:, 1:]
    edges[:-1] |= down
    edges[1:] |= down & (labels[:-1] == 0)
    edges[:, :-1] |= right
    edges[:, 1:] |= right & (labels[:, :-1] == 0)
    return edges & (labels > 0)


def _data_url(picture: np.ndarray) -> str:
    _, png = cv2.imencode(".png", picture[:, :, ::-1])
    return "data:image/png;base64," + base64.b64encode(png.tobytes()).decode()


def _curve(axes: Axes, losses: Sequence[Tuple[int, float]]) -> None:
    iterations, values = zip(*losses) if losses else ((), ())
    axes.plot(iterations, values, "." if len(losses) < 3 else "-", color="#0072B2")
    axes.set(xlabel="iteration", ylabel="total loss")
