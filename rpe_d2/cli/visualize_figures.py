"""Figures of ``rpe-d2 visualize``: one PNG per image."""

from typing import Any, Dict, List, Optional, Tuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import Metadata
from detectron2.data.detection_utils import convert_image_to_rgb
from torch import nn

from rpe_d2.engine.run_classes import class_names
from rpe_d2.inference.predictor import Predictor, with_instances
from rpe_d2.visualization import (
    BOUNDARY_LEGEND,
    EMBEDDING_LEGEND,
    INSTANCE_LEGEND,
    LOOP_LEGEND,
    InstanceMasks,
    Panel,
    Visualizer,
    angle_panels,
    annotator_panels,
    boundary_panel,
    draw_classes,
    draw_figure,
    embedding_panels,
    image_panel,
    instance_panels,
    label_map,
    labels_of_cells,
    level_panels,
    loop_panels,
    panoptic_quality,
    text_panel,
)

from .stored_predictions import StoredPredictions

_LOOPS_PER_ROW = 6


def draw_stored(
    cfg: CfgNode,
    item: Dict[str, Any],
    mapped: Dict[str, Any],
    metadata: Metadata,
    stored: Optional[StoredPredictions],
    min_score: float,
) -> bytes:
    """Draws the ground truth of an image and, if there are any, stored predictions; runs no model.

    Args:
        cfg: configuration, for the channel order of ``mapped``.
        item: the image's dict in the data set.
        mapped: what the mapper returns for ``item``.
        metadata: metadata with the names of the classes.
        stored: predictions, or None.
        min_score: threshold that is stated in the figure.

    Returns:
        The content of a PNG.
    """
    rgb = _rgb(mapped, cfg.INPUT.FORMAT)
    image_only = image_panel(rgb, "image", f"{rgb.shape[1]} x {rgb.shape[0]} pixels")
    if "boundaries" in mapped:
        panels = annotator_panels(mapped["boundaries"].numpy(), one_by_one=True)
        return draw_figure([[image_only, *panels]], item["file_name"], rgb.shape[:2])
    truth = _ground_truth(mapped, metadata)
    predicted = stored.masks(item, rgb.shape[:2]) if stored else None
    ignored = mapped["ignore_mask"].numpy() if "ignore_mask" in mapped else None
    heading = item["file_name"]
    if truth and predicted:
        quality = panoptic_quality(predicted.masks, truth.masks)
        heading += f"   panoptic quality {100 * quality:.1f}"
    panels = _truth_panels(rgb, mapped, metadata)
    panels += instance_panels(rgb, predicted, truth, ignored, min_score)
    row = [image_only, *panels]
    if stored:
        row.append(text_panel("how to read this", [INSTANCE_LEGEND]))
    return draw_figure([row], heading, rgb.shape[:2])


def _image(mapped: Dict[str, Any]) -> np.ndarray:
    return mapped["image"].permute(1, 2, 0).numpy()  # (H, W, C), the channel order of the network


def _rgb(mapped: Dict[str, Any], image_format: str) -> np.ndarray:
    rgb = convert_image_to_rgb(_image(mapped), image_format)
    return np.ascontiguousarray(rgb.clip(0, 255).astype(np.uint8))


class PixelOutside(ValueError):
    """A pixel is outside the image. The message is one line."""


@torch.no_grad()
def draw_prediction(
    predictor: Predictor,
    item: Dict[str, Any],
    mapped: Dict[str, Any],
    metadata: Metadata,
    min_score: float,
    pixel: Optional[Tuple[int, int]] = None,
) -> bytes:
    """Runs a model on an image and draws what it predicts.

    The kinds of panels depend on the output of the model. For a model that groups embeddings,
    panels with its embeddings before the first and after each mean-shift loop are added.

    Args:
        predictor: the model.
        item: the image's dict in the data set.
        mapped: what the mapper returns for ``item``, at the size of the file.
        metadata: metadata with the names of the classes.
        min_score: instances with a lower score are left out.
        pixel: x and y of the pixel whose kernel is drawn, for a model that groups embeddings. None:
            one in the largest object.

    Returns:
        The content of a PNG.

    Raises:
        PixelOutside: The pixel is outside the image.
    """
    rgb = _rgb(mapped, predictor.input_format)
    inputs = predictor.network_input(_image(mapped))
    output = with_instances(predictor.model([inputs])[0])

    truth = _ground_truth(mapped, metadata)
    predicted = _predicted_masks(output, metadata, min_score)
    ignored = mapped["ignore_mask"].numpy() if "ignore_mask" in mapped else None
    panels = _truth_panels(rgb, mapped, metadata, item.get("pan_seg_file_name") and item)
    if predicted is None or "panoptic_seg" in output:
        picture = _draw_output(rgb, output, metadata, min_score)
        kind = "panoptic prediction" if "panoptic_seg" in output else "prediction"
        panels.append(image_panel(picture, kind))
    panels += instance_panels(rgb, predicted, truth, ignored, min_score)
    rows = [[image_panel(rgb, "image", f"{rgb.shape[1]} x {rgb.shape[0]} pixels"), *panels]]
    legend = [INSTANCE_LEGEND] if predicted is not None else []
    if hasattr(predictor.model, "embeddings_per_loop"):
        rows = _with_embeddings(rows, predictor.model, inputs, truth, predicted, pixel)
        legend.extend(LOOP_LEGEND)
    if legend:
        rows[0].append(text_panel("how to read this", legend))
    return draw_figure(rows, item["file_name"], rgb.shape[:2])


@torch.no_grad()
def draw_boundaries(
    predictor: Predictor, item: Dict[str, Any], mapped: Dict[str, Any], projection: str
) -> bytes:
    """Runs a contour model on an image and draws its prediction and the output of each level.

    Args:
        predictor: the model, which has ``predict_levels``.
        item: the image's dict in the data set.
        mapped: what the mapper returns for ``item``, at the size of the file.
        projection: projection of embeddings to colors, one of ``rpe_d2.ops.color.METHODS``.

    Returns:
        The content of a PNG.
    """
    model, rgb = predictor.model, _rgb(mapped, predictor.input_format)
    inputs = predictor.network_input(_image(mapped))
    pred = model([inputs])[0]["boundaries"].cpu().numpy()
    maps, scores = model.predict_levels(inputs)
    first = [image_panel(rgb, "image", f"{rgb.shape[1]} x {rgb.shape[0]} pixels")]
    truth = None
    if "boundaries" in mapped:
        annotations = mapped["boundaries"].numpy()
        first += annotator_panels(annotations)
        truth = annotations.mean(axis=0)
    scales = ", ".join(f"{scale:g}" for scale in model.test_scales)
    note = f"mean of the outputs, sizes {scales}{', thinned' if model.thin else ''}"
    first.append(boundary_panel(pred, "boundaries", note))
    first.append(text_panel("how to read this", BOUNDARY_LEGEND))
    names = model.boundary_head.level_names
    levels = level_panels(maps.embeddings[0], scores, names, projection, truth)
    if truth is not None and truth.shape == maps.embeddings.shape[-2:]:
        levels.append(angle_panels(maps.embeddings[0][-1], truth))
    return draw_figure([first, *filter(None, levels)], item["file_name"], rgb.shape[:2])


def _with_embeddings(
    rows: List[List[Panel]],
    model: nn.Module,
    inputs: Dict[str, Any],
    truth: Optional[InstanceMasks],
    predicted: InstanceMasks,
    pixel: Optional[Tuple[int, int]] = None,
) -> List[List[Panel]]:
    """Adds panels with the embeddings of each loop, on the sphere and as colors.

    Args:
        rows: the panels so far.
        model: has ``predict_maps`` and ``embeddings_per_loop``.
        inputs: input of the model.
        truth: annotated objects, if there are any.
        predicted: predicted objects.
        pixel: x and y of the pixel whose kernel is drawn. None: one in the largest object.
    """
    (maps,) = model.predict_maps([inputs])
    maps = maps.unpadded()
    loops = model.embeddings_per_loop(maps)
    labeled, kind = (predicted, "prediction") if truth is None else (truth, "ground truth")
    spheres, colors = loop_panels(
        loops,
        model.grouping.foreground(maps) >= model.grouping.foreground_threshold,
        label_map(labeled.masks),
        kind,
        maps.stride,
        maps.image_size,
    )
    # Embeddings that are not shifted are not on a sphere.
    rows = [rows[0] + (spheres if model.mean_shift is not None else [])]
    rows += [colors[i : i + _LOOPS_PER_ROW] for i in range(0, len(colors), _LOOPS_PER_ROW)]
    if len(loops) > 1 and len(loops[0]) > 1:
        labels = labels_of_cells(label_map(labeled.masks), maps.stride, maps.image_size)
        cell = None
        if pixel is not None:
            (x, y), width, height = pixel, inputs["width"], inputs["height"]
            if not (0 <= x < width and 0 <= y < height):
                raise PixelOutside(
                    f"--pixel is {x} {y}; allowed: inside the image of {width} x {height} pixels"
                )
            cell = y * labels.shape[0] // height, x * labels.shape[1] // width
        encoded = embedding_panels(*loops[:2], labels, float(model.mean_shift.bandwidth), cell)
        rows += [[*encoded, text_panel("how to read this", EMBEDDING_LEGEND)]] if encoded else []
    return rows


def _truth_panels(
    rgb: np.ndarray,
    mapped: Dict[str, Any],
    metadata: Metadata,
    panoptic_item: Optional[Dict[str, Any]] = None,
) -> List[Panel]:
    """Returns panels of annotations of whole images, panoptic or semantic, if there are any."""
    if panoptic_item:
        visualizer = Visualizer(rgb, metadata, scale=_scale(rgb))
        drawn = visualizer.draw_dataset_dict(panoptic_item).get_image()
        return [image_panel(drawn, "panoptic ground truth")]
    if "sem_seg" in mapped:
        drawn = draw_classes(rgb, mapped["sem_seg"], metadata, _scale(rgb))
        return [
            image_panel(drawn, "classes, ground truth" if "instances" in mapped else "ground truth")
        ]
    return []


def _ground_truth(mapped: Dict[str, Any], metadata: Metadata) -> Optional[InstanceMasks]:
    if "instances" not in mapped:
        return None
    instances = mapped["instances"]
    names = class_names(instances.gt_classes.tolist(), metadata)
    return InstanceMasks(instances.gt_masks.tensor.numpy(), names)


def _predicted_masks(
    output: Dict[str, Any], metadata: Metadata, min_score: float
) -> Optional[InstanceMasks]:
    """Returns the predicted masks, or None if the model does not predict masks."""
    if "instances" not in output or not output["instances"].has("pred_masks"):
        return None
    instances = output["instances"].to("cpu")
    instances = instances[instances.scores >= min_score]
    names = class_names(instances.pred_classes.tolist(), metadata)
    return InstanceMasks(instances.pred_masks.numpy().astype(bool), names)


def _draw_output(
    rgb: np.ndarray, output: Dict[str, Any], metadata: Metadata, min_score: float
) -> np.ndarray:
    """Draws boxes, keypoints, panoptic or semantic maps as Detectron2 does; (H, W, 3) uint8."""
    if "sem_seg" in output and not {"panoptic_seg", "instances"} & set(output):
        return draw_classes(rgb, output["sem_seg"].argmax(dim=0), metadata, _scale(rgb))
    visualizer = Visualizer(rgb, metadata, scale=_scale(rgb))
    if "panoptic_seg" in output:
        segments, info = output["panoptic_seg"]
        return visualizer.draw_panoptic_seg_predictions(segments.cpu(), info).get_image()
    instances = output["instances"].to("cpu")
    instances = instances[instances.scores >= min_score]
    return visualizer.draw_instance_predictions(instances).get_image()


def _scale(rgb: np.ndarray) -> float:
    """Returns the factor by which Detectron2's visualizer enlarges an image.

    Small images are enlarged so that the labels do not hide them.
    """
    return max(1.0, 512 / max(rgb.shape))
