"""Names of files and classes that fonts and formulas do not like."""

import numpy as np
import pytest

from rpe_d2.ops.boundary_scores import boundary_scores
from rpe_d2.visualization import (
    InstanceMasks,
    draw_figure,
    image_panel,
    instance_panels,
    precision_recall_plot,
    text_panel,
)

NAMES = ["$", "a$b$", "$\\frac{1$", "\udcff.png", "名前", "a\nb", "{}%s"]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_any_name_can_be_drawn(name):
    rgb = np.zeros((40, 60, 3), np.uint8)
    masks = np.ones((1, 40, 60), dtype=bool)
    truth = InstanceMasks(masks, [name])
    panels = [image_panel(rgb, name, name), *instance_panels(rgb, truth, truth, None, 0.5)]
    panels.append(text_panel("legend", [name.encode("utf-8", "replace").decode()]))
    assert draw_figure([panels], name, (40, 60)).startswith(b"\x89PNG")
    counts = np.array([[[90, 100, 90, 300], [60, 100, 60, 80], [0, 100, 0, 0]]])
    assert precision_recall_plot(boundary_scores(counts), None, name, 1).startswith(b"\x89PNG")
