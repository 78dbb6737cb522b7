"""Pictures and reports: arrays in, pictures out."""

from .figure import Panel, draw_figure, image_panel, text_panel
from .instances import INSTANCE_LEGEND, InstanceMasks, instance_colors, instance_panels, label_map
from .loops import LOOP_LEGEND, loop_panels

__all__ = [
    "INSTANCE_LEGEND",
    "InstanceMasks",
    "LOOP_LEGEND",
    "Panel",
    "draw_figure",
    "image_panel",
    "instance_colors",
    "instance_panels",
    "label_map",
    "loop_panels",
    "text_panel",
]
