"""Pictures and reports: arrays in, pictures out."""

from .figure import Panel, draw_figure, image_panel, text_panel
from .instances import (
    INSTANCE_LEGEND,
    InstanceMasks,
    draw_instances,
    instance_colors,
    instance_panels,
    label_map,
    panoptic_quality,
)
from .loops import LOOP_LEGEND, loop_panels
from .precision_recall import precision_recall_plot

__all__ = [
    "INSTANCE_LEGEND",
    "InstanceMasks",
    "LOOP_LEGEND",
    "Panel",
    "draw_figure",
    "draw_instances",
    "image_panel",
    "instance_colors",
    "instance_panels",
    "label_map",
    "loop_panels",
    "panoptic_quality",
    "precision_recall_plot",
    "text_panel",
]
