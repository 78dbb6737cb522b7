"""The command line of tools/visualize.py: what a model makes of pictures, one PNG a picture."""

import argparse
import glob
import os
import sys
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data.detection_utils import SizeMismatchError, convert_image_to_rgb
from detectron2.engine import DefaultPredictor
from detectron2.utils.file_io import PathManager
from detectron2.utils.visualizer import Visualizer
from tqdm import tqdm

from rpe_d2.data import PixelLabelMapper
from rpe_d2.modeling.meta_arch.pixel_embedding_net import PixelEmbeddingNet
from rpe_d2.visualization import (
    INSTANCE_LEGEND,
    LOOP_LEGEND,
    InstanceMasks,
    Panel,
    draw_figure,
    image_panel,
    instance_panels,
    label_map,
    loop_panels,
    text_panel,
)

from .errors import USER_ERRORS, one_line
from .files import write_new_file
from .run_setup import check_datasets, load_config

_IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_LOOPS_PER_ROW = 6


def main(argv: Optional[List[str]] = None) -> int:
    """Draws pictures of a data set, or from disk, as the model of a configuration sees them.

    Each PNG shows the image, its ground truth where there is one and the prediction; for a ``PixelEmbeddingNet``
    also its embeddings as colours before the first and after each mean-shift loop, and on the unit sphere. Existing
    files stay: the new one is called ``NAME-2.png`` and so on. A picture that cannot be read is reported and skipped.

    Returns:
        Exit status: 0, 1 where no picture could be read, 2 where a key or a file is at fault, in one line.
    """
    args = _parse(argv)
    try:
        cfg = _config(args)
        items = _dataset_items(args) if args.dataset else _file_items(args.input)
        items = items[: args.num_images]
        output = Path(args.output)
        output.mkdir(parents=True, exist_ok=True)
        predictor = _predictor(cfg)
    except USER_ERRORS as error:
        print("error:", one_line(error), file=sys.stderr)
        return 2

    min_score = args.confidence_threshold
    if min_score is None:
        min_score = 0.1 if isinstance(predictor.model, PixelEmbeddingNet) else 0.5
    metadata = MetadataCatalog.get(args.dataset or next(iter(cfg.DATASETS.TEST), "__unused"))
    # As in training but unresized: the one mapper that delivers masks whatever form the annotations have.
    mapper = PixelLabelMapper(is_train=True, augmentations=[], image_format=cfg.INPUT.FORMAT)
    paths = []
    for item in tqdm(items, desc="pictures", unit="picture"):
        try:
            mapped = mapper(item)
        except (OSError, SyntaxError, ValueError, SizeMismatchError) as error:  # what PIL raises
            tqdm.write(f"skipped {item['file_name']}: {one_line(error)}", file=sys.stderr)
            continue
        content = _draw(predictor, item, mapped, metadata, min_score)
        paths.append(write_new_file(output / f"{Path(item['file_name']).stem}.png", content))
    for path in paths:
        print(path)
    if not paths:
        print(f"error: none of {len(items)} pictures could be read", file=sys.stderr)
        return 1
    return 0


def _parse(argv: Optional[List[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="visualize.py", description="What a model makes of pictures, one PNG a picture."
    )
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--weights", metavar="FILE", help="default: MODEL.WEIGHTS")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--dataset", metavar="NAME", help="a registered data set; shows its ground truth too"
    )
    source.add_argument(
        "--input", nargs="+", metavar="PATH", help="image files, folders or quoted globs"
    )
    parser.add_argument(
        "--num-images",
        type=int,
        metavar="N",
        help="the first N; default: 8 of a data set, all of --input",
    )
    parser.add_argument("--output", required=True, metavar="DIR")
    parser.add_argument(
        "--confidence-threshold",
        type=float,
        metavar="SCORE",
        help="instances below are not drawn; default: 0.5, but 0.1 for PixelEmbeddingNet, whose "
        "instances hardly overlap",
    )
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides, after all flags"
    )
    args = parser.parse_args(argv)
    if args.num_images is None and args.dataset:
        args.num_images = 8
    if args.num_images is not None and args.num_images < 1:
        parser.error(f"--num-images is {args.num_images}; allowed: 1 or more")
    return args


def _config(args: argparse.Namespace) -> CfgNode:
    cfg = load_config(args.config_file, args.opts)
    if args.weights:
        cfg.MODEL.WEIGHTS = args.weights
    # Only the data set that is drawn has to exist.
    if args.dataset:
        if args.dataset not in DatasetCatalog:
            raise ValueError(
                f"--dataset {args.dataset} is not registered; own data: DATASETS.COCO_JSONS "
                '"name=path.json:image_root"'
            )
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (), (args.dataset,)
        check_datasets(cfg)
    cfg.freeze()
    return cfg


def _dataset_items(args: argparse.Namespace) -> List[Dict[str, Any]]:
    items = DatasetCatalog.get(args.dataset)
    if not items:
        raise ValueError(f"--dataset {args.dataset} has no images")
    return items


def _file_items(patterns: List[str]) -> List[Dict[str, Any]]:
    files = []
    for pattern in patterns:
        if os.path.isdir(pattern):
            found = [
                p for p in sorted(Path(pattern).iterdir()) if p.suffix.lower() in _IMAGE_SUFFIXES
            ]
        elif os.path.exists(pattern):
            found = [pattern]
        else:
            found = sorted(
                path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path)
            )
        if not found:
            raise ValueError(f"--input {pattern}: no image there")
        files.extend(found)
    return [{"file_name": str(file)} for file in files]


def _predictor(cfg: CfgNode) -> DefaultPredictor:
    weights = cfg.MODEL.WEIGHTS
    if not weights:
        raise ValueError("no weights: give --weights or MODEL.WEIGHTS")
    if "://" not in weights and not PathManager.isfile(weights):
        raise ValueError(f"weights {weights}: no such file")
    try:
        return DefaultPredictor(cfg)
    except Exception as error:  # unpickling something else may raise anything
        raise ValueError(
            f"{cfg.MODEL.META_ARCHITECTURE} with weights {weights}: {error}"
        ) from error


class _Embeddings(NamedTuple):
    """Of one picture: (D, h, w) before the first and after each loop, (h, w) bool, pixels per cell, (H, W)."""

    loops: List[torch.Tensor]
    foreground: torch.Tensor
    stride: int
    network_size: Tuple[int, int]


@torch.no_grad()
def _draw(
    predictor: DefaultPredictor,
    item: Dict[str, Any],
    mapped: Dict[str, Any],
    metadata: Metadata,
    min_score: float,
) -> bytes:
    """The PNG of one picture: ``item`` of the data set, ``mapped`` at the picture's own size."""
    image = mapped["image"].permute(1, 2, 0).numpy()  # (H, W, C), the network's channel order
    rgb = np.ascontiguousarray(convert_image_to_rgb(image, predictor.input_format))
    network_image = predictor.aug.get_transform(image).apply_image(image)
    inputs = {
        "image": torch.as_tensor(network_image.astype("float32").transpose(2, 0, 1)),
        "height": image.shape[0],
        "width": image.shape[1],
    }
    output = predictor.model([inputs])[0]

    truth = _ground_truth(mapped, metadata)
    predicted = _predicted_masks(output, metadata, min_score)
    ignored = mapped["ignore_mask"].numpy() if "ignore_mask" in mapped else None
    panels = instance_panels(rgb, predicted, truth, ignored, min_score)
    if truth is None and ("sem_seg_file_name" in item or "pan_seg_file_name" in item):
        picture = Visualizer(rgb, metadata, scale=_scale(rgb)).draw_dataset_dict(item).get_image()
        panels.insert(0, image_panel(picture, "ground truth"))
    if predicted is None:
        panels.append(image_panel(_draw_output(rgb, output, metadata, min_score), "prediction"))
    rows = [[image_panel(rgb, "image", f"{rgb.shape[1]} x {rgb.shape[0]} pixels"), *panels]]
    legend = [INSTANCE_LEGEND] if predicted is not None else []
    if isinstance(predictor.model, PixelEmbeddingNet):
        rows = _with_embeddings(rows, predictor.model, inputs, truth, predicted)
        legend.extend(LOOP_LEGEND)
    if legend:
        rows[0].append(text_panel("how to read this", legend))
    return draw_figure(rows, item["file_name"], rgb.shape[:2])


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


def _ground_truth(mapped: Dict[str, Any], metadata: Metadata) -> Optional[InstanceMasks]:
    if "instances" not in mapped:
        return None
    instances = mapped["instances"]
    names = _names(instances.gt_classes.tolist(), metadata)
    return InstanceMasks(instances.gt_masks.tensor.numpy(), names)


def _predicted_masks(
    output: Dict[str, Any], metadata: Metadata, min_score: float
) -> Optional[InstanceMasks]:
    """Instances with masks, or None where the model predicts something else."""
    if "instances" not in output or not output["instances"].has("pred_masks"):
        return None
    instances = output["instances"].to("cpu")
    instances = instances[instances.scores >= min_score]
    names = _names(instances.pred_classes.tolist(), metadata)
    return InstanceMasks(instances.pred_masks.numpy().astype(bool), names)


def _names(classes: List[int], metadata: Metadata) -> List[str]:
    known = metadata.get("thing_classes")
    if known is not None and len(known) == 1:
        return [""] * len(classes)
    return [known[c] if known is not None and c < len(known) else f"class {c}" for c in classes]


def _draw_output(
    rgb: np.ndarray, output: Dict[str, Any], metadata: Metadata, min_score: float
) -> np.ndarray:
    """Boxes, keypoints, panoptic and semantic maps and proposals as Detectron2 draws them; (H, W, 3) uint8."""
    visualizer = Visualizer(rgb, metadata, scale=_scale(rgb))
    if "panoptic_seg" in output:
        segments, info = output["panoptic_seg"]
        return visualizer.draw_panoptic_seg_predictions(segments.cpu(), info).get_image()
    if "instances" in output:
        instances = output["instances"].to("cpu")
        instances = instances[instances.scores >= min_score]
        return visualizer.draw_instance_predictions(instances).get_image()
    if "sem_seg" in output:
        return visualizer.draw_sem_seg(output["sem_seg"].argmax(dim=0).cpu()).get_image()
    boxes = output["proposals"].proposal_boxes.tensor.cpu()[:20]
    return visualizer.overlay_instances(boxes=boxes.numpy()).get_image()


def _scale(rgb: np.ndarray) -> float:
    """By how much Detectron2's visualiser enlarges a small picture, so that its labels do not hide it."""
    return max(1.0, 512 / max(rgb.shape))
