"""Drawing of images and reports, from arrays to the contents of image files."""

from .contours import (
    BOUNDARY_LEGEND,
    angle_panels,
    annotator_panels,
    boundary_panel,
    contour_angles,
    level_panels,
)
from .embeddings import EMBEDDING_LEGEND, embedding_panels
from .figure import Panel, at_most, counted, draw_figure, image_panel, text_panel
from .instances import (
    INSTANCE_LEGEND,
    InstanceMasks,
    draw_instances,
    instance_colors,
    instance_panels,
    label_map,
    panoptic_quality,
)
from .loops import LOOP_LEGEND, labels_of_cells, loop_panels
from .precision_recall import precision_recall_plot
from .semantic import Visualizer, class_colors, draw_classes

__all__ = [
    "BOUNDARY_LEGEND",
    "EMBEDDING_LEGEND",
    "INSTANCE_LEGEND",
    "InstanceMasks",
    "LOOP_LEGEND",
    "Panel",
    "Visualizer",
    "angle_panels",
    "annotator_panels",
    "at_most",
    "boundary_panel",
    "class_colors",
    "contour_angles",
    "counted",
    "draw_classes",
    "draw_figure",
    "draw_instances",
    "embedding_panels",
    "image_panel",
    "instance_colors",
    "instance_panels",
    "label_map",
    "labels_of_cells",
    "level_panels",
    "loop_panels",
    "panoptic_quality",
    "precision_recall_plot",
    "text_panel",
]
