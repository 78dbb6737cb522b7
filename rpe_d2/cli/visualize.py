"""The command line of tools/visualize.py: data sets and what a model makes of them, one PNG a picture."""

import argparse
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.engine import DefaultPredictor
from detectron2.utils.env import seed_all_rng
from detectron2.utils.visualizer import Visualizer
from tqdm import tqdm

from rpe_d2.data import BoundaryMapper, NameUnreadable, PixelLabelMapper, UnreadableImage
from rpe_d2.engine.run_classes import class_names, drawing_metadata
from rpe_d2.engine.setup import check_datasets
from rpe_d2.inference.predictor import (
    add_predictor_arguments,
    build_predictor,
    check_needs_only_pictures,
    find_images,
    predictor_config,
    with_instances,
)
from rpe_d2.modeling.meta_arch.boundary_embedding_net import BoundaryEmbeddingNet
from rpe_d2.modeling.meta_arch.pixel_embedding_net import PixelEmbeddingNet
from rpe_d2.ops.color import METHODS
from rpe_d2.utils.errors import one_line_errors
from rpe_d2.utils.files import make_writable_folder, write_new_file
from rpe_d2.visualization import (
    BOUNDARY_LEGEND,
    INSTANCE_LEGEND,
    LOOP_LEGEND,
    InstanceMasks,
    Panel,
    annotator_panels,
    boundary_panel,
    draw_classes,
    draw_figure,
    image_panel,
    instance_panels,
    label_map,
    level_panels,
    loop_panels,
    panoptic_quality,
    text_panel,
)

from .stored_predictions import StoredPredictions, UnusableMask

_LOOPS_PER_ROW = 6
# What is drawn beside the picture.
_SOURCES = ("model", "annotation", "dataloader")


def main(argv: Optional[List[str]] = None) -> int:
    """Draws pictures of a data set, or from disk.

    By default each PNG shows the image, its ground truth where there is one and what the
    configuration's model predicts; for a ``PixelEmbeddingNet`` also its embeddings as colours
    before the first and after each mean-shift loop, and on the unit sphere; for a
    ``BoundaryEmbeddingNet`` the embeddings and outputs of its levels. ``--source annotation`` draws
    a data set without a model, ``--source dataloader`` as training gets it, augmented;
    ``--predictions`` the stored predictions of an evaluation, with ``--worst`` the images in which
    they are worst. Existing files stay: the new one is called ``NAME-2.png`` and so on. A picture
    that cannot be read is reported and skipped.

    Returns:
        Exit status: 0, 1 where no picture could be read, 2 where a key or a file is at fault, in
            one line.
    """
    args = _parse(argv)
    with one_line_errors():
        cfg = _config(args)
        if args.dataset:
            items = DatasetCatalog.get(args.dataset)
        else:
            items = [{"file_name": file} for file in find_images(args.input)]
        if not items:
            raise ValueError(f"--dataset {args.dataset} has no images")
        output = Path(args.output)
        make_writable_folder("--output", output)
        stored = _stored_predictions(cfg, args, items)
        draw = _drawer(cfg, args, stored)
        augmentations = {} if args.source == "dataloader" else {"augmentations": []}
        # As in training, unresized unless asked for: the mapper that delivers masks whatever form
        # annotations have.
        kind = BoundaryMapper if "boundary_file_name" in items[0] else PixelLabelMapper
        mapper = NameUnreadable(kind(cfg, is_train=True, **augmentations))

    with one_line_errors((OSError, UnusableMask)):
        if args.worst:
            items = _worst_first(cfg, stored, items)
        items = items[: args.num_images]
        if args.source == "dataloader":
            seed_all_rng(max(cfg.SEED, 0))
        paths = []
        for item in tqdm(items, desc="pictures", unit="picture"):
            try:
                mapped = mapper(item)
            except UnreadableImage as error:
                tqdm.write(f"skipped {error}", file=sys.stderr)
                continue
            name = f"{Path(item['file_name']).stem}.png"
            paths.append(write_new_file(output / name, draw(item, mapped)))
    for path in paths:
        print(path)
    if not paths:
        print(f"error: none of {len(items)} pictures could be read", file=sys.stderr)
        return 1
    return 0


def _parse(argv: Optional[List[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="visualize.py",
        description="Data sets and what a model makes of them, one PNG a picture.",
    )
    add_predictor_arguments(parser)
    pictures = parser.add_mutually_exclusive_group(required=True)
    pictures.add_argument(
        "--dataset", metavar="NAME", help="a registered data set; shows its ground truth too"
    )
    pictures.add_argument(
        "--input", nargs="+", metavar="PATH", help="image files, folders or quoted globs"
    )
    parser.add_argument(
        "--source",
        choices=_SOURCES,
        default="model",
        help="annotation: the data set as it is; dataloader: as training gets it, augmented; both without a model",
    )
    parser.add_argument(
        "--predictions",
        metavar="FILE",
        help="draw these instead of running a model: coco_instances_results.json of an evaluation of --dataset",
    )
    parser.add_argument(
        "--worst",
        action="store_true",
        help="with --predictions: the images of the lowest panoptic quality first",
    )
    parser.add_argument(
        "--projection",
        choices=METHODS,
        default="random",
        help="how a BoundaryEmbeddingNet's embeddings become colours: three fixed directions, or those of largest variance",
    )
    parser.add_argument(
        "--num-images",
        type=int,
        metavar="N",
        help="the first N; default: 8 of a data set, all of --input",
    )
    args = parser.parse_args(argv)
    if not args.dataset and (args.source != "model" or args.predictions):
        parser.error("--source and --predictions need --dataset")
    if args.worst and not args.predictions:
        parser.error("--worst needs --predictions")
    if args.num_images is None and args.dataset:
        args.num_images = 8
    if args.num_images is not None and args.num_images < 1:
        parser.error(f"--num-images is {args.num_images}; allowed: 1 or more")
    return args


def _config(args: argparse.Namespace) -> CfgNode:
    cfg = predictor_config(args, args.dataset)
    # Only the data set that is drawn has to exist.
    if args.dataset:
        if args.dataset not in DatasetCatalog:
            raise ValueError(
                f"--dataset {args.dataset} is not registered; own data: DATASETS.COCO_JSONS "
                '"name=path.json:image_root"'
            )
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (), (args.dataset,)
        if args.source == "model" and not args.predictions:
            check_datasets(cfg)
    cfg.freeze()
    return cfg


def _metadata(cfg: CfgNode, args: argparse.Namespace) -> Metadata:
    return drawing_metadata(cfg, args.config_file, args.dataset)


def _stored_predictions(
    cfg: CfgNode, args: argparse.Namespace, items: List[Dict[str, Any]]
) -> Optional[StoredPredictions]:
    """Those of ``--predictions``, if there are any.

    Raises:
        ValueError: they are not in COCO's format or of other images or categories, or the data set
            is not of a kind that they belong to.
    """
    if not args.predictions:
        return None
    needed = ["image_id", "annotations"] if args.worst else ["image_id"]
    missing = [key for key in needed if not all(key in item for item in items)]
    if missing:
        raise ValueError(
            f"--dataset {args.dataset} has images without {missing[0]}; allowed with --predictions"
            f"{' --worst' if args.worst else ''}: data sets of instances"
        )
    image_ids = [item["image_id"] for item in items]
    return StoredPredictions(
        args.predictions, _metadata(cfg, args), image_ids, args.confidence_threshold
    )


def _drawer(
    cfg: CfgNode, args: argparse.Namespace, stored: Optional[StoredPredictions]
) -> Callable[[Dict[str, Any], Dict[str, Any]], bytes]:
    """From an item of the data set and what the mapper made of it to a PNG."""
    metadata = _metadata(cfg, args)
    min_score = args.confidence_threshold
    if args.source != "model":
        return lambda item, mapped: _draw_stored(cfg, item, mapped, metadata, None, min_score)
    if stored:
        return lambda item, mapped: _draw_stored(cfg, item, mapped, metadata, stored, min_score)
    check_needs_only_pictures(cfg)
    predictor = build_predictor(cfg)
    if isinstance(predictor.model, BoundaryEmbeddingNet):
        return lambda item, mapped: _draw_boundaries(predictor, item, mapped, args.projection)
    return lambda item, mapped: _draw(predictor, item, mapped, metadata, min_score)


def _worst_first(
    cfg: CfgNode, stored: StoredPredictions, items: List[Dict[str, Any]]
) -> List[Dict[str, Any]]:
    """Items by rising panoptic quality of their stored predictions; unreadable ones are left out."""
    mapper = NameUnreadable(PixelLabelMapper(cfg, is_train=True, augmentations=[]))
    scored = []
    for index, item in enumerate(tqdm(items, desc="comparing", unit="picture")):
        try:
            truth = mapper(item)["instances"].gt_masks.tensor.numpy()
        except UnreadableImage as error:
            tqdm.write(f"skipped {error}", file=sys.stderr)
            continue
        quality = panoptic_quality(stored.masks(item, truth.shape[1:]).masks, truth)
        scored.append((quality, index))
    return [items[index] for _, index in sorted(scored)]


def _draw_stored(
    cfg: CfgNode,
    item: Dict[str, Any],
    mapped: Dict[str, Any],
    metadata: Metadata,
    stored: Optional[StoredPredictions],
    min_score: float,
) -> bytes:
    """The PNG of one picture without a model: ground truth and, where there are any, stored predictions."""
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


def _rgb(mapped: Dict[str, Any], image_format: str) -> np.ndarray:
    image = mapped["image"].permute(1, 2, 0).numpy()  # (H, W, C), the network's channel order
    return np.ascontiguousarray(convert_image_to_rgb(image, image_format))


@torch.no_grad()
def _draw(
    predictor: DefaultPredictor,
    item: Dict[str, Any],
    mapped: Dict[str, Any],
    metadata: Metadata,
    min_score: float,
) -> bytes:
    """The PNG of one picture: ``item`` of the data set, ``mapped`` at the picture's own size."""
    rgb = _rgb(mapped, predictor.input_format)
    inputs = _network_input(predictor, mapped)
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
    if isinstance(predictor.model, PixelEmbeddingNet):
        rows = _with_embeddings(rows, predictor.model, inputs, truth, predicted)
        legend.extend(LOOP_LEGEND)
    if legend:
        rows[0].append(text_panel("how to read this", legend))
    return draw_figure(rows, item["file_name"], rgb.shape[:2])


def _network_input(predictor: DefaultPredictor, mapped: Dict[str, Any]) -> Dict[str, Any]:
    image = mapped["image"].permute(1, 2, 0).numpy()  # (H, W, C), the network's channel order
    network_image = predictor.aug.get_transform(image).apply_image(image)
    return {
        "image": torch.as_tensor(network_image.astype("float32").transpose(2, 0, 1)),
        "height": image.shape[0],
        "width": image.shape[1],
    }


@torch.no_grad()
def _draw_boundaries(
    predictor: DefaultPredictor, item: Dict[str, Any], mapped: Dict[str, Any], projection: str
) -> bytes:
    """The PNG of one picture and its boundaries: what was drawn, what is found, and what each level says."""
    model, rgb = predictor.model, _rgb(mapped, predictor.input_format)
    inputs = _network_input(predictor, mapped)
    found = model([inputs])[0]["boundaries"].cpu().numpy()
    maps, scores = model.predict_levels(inputs)
    first = [image_panel(rgb, "image", f"{rgb.shape[1]} x {rgb.shape[0]} pixels")]
    truth = None
    if "boundaries" in mapped:
        annotations = mapped["boundaries"].numpy()
        first += annotator_panels(annotations)
        truth = annotations.mean(axis=0)
    scales = ", ".join(f"{scale:g}" for scale in model.test_scales)
    note = f"mean of the outputs, sizes {scales}{', thinned' if model.thin else ''}"
    first.append(boundary_panel(found, "boundaries", note))
    first.append(text_panel("how to read this", BOUNDARY_LEGEND))
    names = model.boundary_head.level_names
    levels = level_panels(maps.embeddings[0], scores, names, projection, truth)
    return draw_figure([first, *levels], item["file_name"], rgb.shape[:2])


def _with_embeddings(
    rows: List[List[Panel]],
    model: PixelEmbeddingNet,
    inputs: Dict[str, Any],
    truth: Optional[InstanceMasks],
    predicted: InstanceMasks,
) -> List[List[Panel]]:
    maps, (network_size,) = model.predict_maps([inputs])
    loops = model.embeddings_per_loop(maps, 0, network_size)
    height, width = loops[0].shape[1:]
    background = maps.logits[0].softmax(dim=0)[-1, :height, :width]
    labelled, kind = (predicted, "prediction") if truth is None else (truth, "ground truth")
    spheres, colors = loop_panels(
        loops,
        1 - background >= model.grouping.foreground_threshold,
        label_map(labelled.masks),
        kind,
        maps.stride,
        network_size,
    )
    rows = [rows[0] + spheres]
    return rows + [colors[i : i + _LOOPS_PER_ROW] for i in range(0, len(colors), _LOOPS_PER_ROW)]


def _truth_panels(
    rgb: np.ndarray,
    mapped: Dict[str, Any],
    metadata: Metadata,
    panoptic_item: Optional[Dict[str, Any]] = None,
) -> List[Panel]:
    """The annotation of whole pictures, where there is one: panoptic, or a map of classes."""
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
    """Instances with masks, or None where the model predicts something else."""
    if "instances" not in output or not output["instances"].has("pred_masks"):
        return None
    instances = output["instances"].to("cpu")
    instances = instances[instances.scores >= min_score]
    names = class_names(instances.pred_classes.tolist(), metadata)
    return InstanceMasks(instances.pred_masks.numpy().astype(bool), names)


def _draw_output(
    rgb: np.ndarray, output: Dict[str, Any], metadata: Metadata, min_score: float
) -> np.ndarray:
    """Boxes, keypoints, panoptic and semantic maps as Detectron2 draws them; (H, W, 3) uint8."""
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
    """By how much Detectron2's visualiser enlarges a small picture, so that its labels do not hide it."""
    return max(1.0, 512 / max(rgb.shape))
