"""The command line of ``rpe-d2 visualize`` and tools/visualize.py."""

import argparse
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata
from detectron2.utils.env import seed_all_rng
from tqdm import tqdm

from rpe_d2.data import BoundaryMapper, NameUnreadable, PixelLabelMapper, UnreadableImage
from rpe_d2.engine.run_classes import drawing_metadata
from rpe_d2.engine.run_errors import TooFewValues
from rpe_d2.engine.setup import check_datasets
from rpe_d2.inference.predictor import (
    Predictor,
    add_predictor_arguments,
    check_needs_only_pictures,
    find_images,
    planes_of,
    predictor_config,
    separate_overrides,
)
from rpe_d2.ops.color import METHODS
from rpe_d2.utils.errors import one_line_errors
from rpe_d2.utils.files import make_writable_folder, write_new_file
from rpe_d2.utils.image_files import image_stem
from rpe_d2.utils.images import ImageReader
from rpe_d2.visualization import panoptic_quality

from .stored_predictions import StoredPredictions, UnusableMask
from .visualize_figures import PixelOutside, draw_boundaries, draw_prediction, draw_stored

_SOURCES = ("model", "annotation", "dataloader")


def main(argv: Optional[List[str]] = None) -> int:
    """Draws images of a data set or from disk.

    By default each PNG shows the image, its ground truth if there is one, and the predictions of
    the model. A model that groups embeddings also shows them as colors and on the unit sphere,
    before the first and after each mean-shift loop. A contour model also shows the embeddings and
    outputs of its levels. ``--source annotation`` draws a data set without a model, and ``--source
    dataloader`` draws the augmented input of training. ``--predictions`` draws the stored
    predictions of an evaluation; with ``--worst``, the images of the lowest panoptic quality come
    first.

    Nothing is overwritten; a new file is called ``NAME-2.png`` and so on. Images that cannot be
    read are reported and skipped.

    Returns:
        Exit status: 0, 1 if no image could be read, or 2 with a one-line error if a key or a file
        is wrong.
    """
    args = _parse(argv)
    with one_line_errors():
        cfg = _config(args)
        if args.dataset:
            items = DatasetCatalog.get(args.dataset)
        else:
            files = planes_of(ImageReader.from_config(cfg), find_images(args.input))
            items = [{"file_name": file} for file in files]
        if not items:
            raise ValueError(f"--dataset {args.dataset} has no images")
        output = Path(args.output)
        make_writable_folder("--output", output)
        stored = _stored_predictions(cfg, args, items)
        draw = _drawer(cfg, args, stored)
        augmentations = {} if args.source == "dataloader" else {"augmentations": []}
        # The training mapper returns masks for every format of annotations. Without
        # augmentations it keeps the size of the image.
        kind = BoundaryMapper if "boundary_file_name" in items[0] else PixelLabelMapper
        mapper = NameUnreadable(kind(cfg, is_train=True, **augmentations))

    with one_line_errors((OSError, UnusableMask, PixelOutside)):
        if args.worst:
            items = _worst_first(cfg, stored, items)
        items = items[: args.num_images]
        if args.source == "dataloader":
            seed_all_rng(max(cfg.SEED, 0))
        paths = []
        for item in tqdm(items, desc="images", unit="image"):
            try:
                picture = draw(item, mapper(item))
            except UnreadableImage as error:
                tqdm.write(f"skipped {error}", file=sys.stderr)
                continue
            except TooFewValues as error:
                tqdm.write(f"skipped {item['file_name']}: {error}", file=sys.stderr)
                continue
            name = f"{image_stem(item['file_name'])}.png"
            paths.append(write_new_file(output / name, picture))
    for path in paths:
        print(path)
    if not paths:
        print(f"error: none of {len(items)} images could be read", file=sys.stderr)
        return 1
    return 0


def _parse(argv: Optional[List[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Draws ground truth and the predictions of a model, one PNG per image.",
    )
    add_predictor_arguments(parser)
    pictures = parser.add_mutually_exclusive_group(required=True)
    pictures.add_argument(
        "--dataset", metavar="NAME", help="a registered data set; its ground truth is shown too"
    )
    pictures.add_argument(
        "--input", nargs="+", metavar="PATH", help="image files, folders or quoted globs"
    )
    parser.add_argument(
        "--source",
        choices=_SOURCES,
        default="model",
        help="annotation: ground truth of the data set; dataloader: the augmented input of "
        "training; neither needs a model",
    )
    parser.add_argument(
        "--predictions",
        metavar="FILE",
        help="draw coco_instances_results.json of an evaluation of --dataset instead of running a "
        "model",
    )
    parser.add_argument(
        "--worst",
        action="store_true",
        help="with --predictions: start with the images of the lowest panoptic quality",
    )
    parser.add_argument(
        "--projection",
        choices=METHODS,
        default="random",
        help="projection of a contour model's embeddings to colors: three fixed random "
        "directions, or those of the largest variance",
    )
    parser.add_argument(
        "--pixel",
        type=int,
        nargs=2,
        metavar=("X", "Y"),
        help="pixel of the images whose mean-shift kernel is drawn; default: one in the largest "
        "object",
    )
    parser.add_argument(
        "--num-images",
        type=int,
        metavar="N",
        help="only the first N images; default: 8 of a data set, all of --input",
    )
    args = parser.parse_args(argv)
    separate_overrides(args)
    if args.input == []:
        parser.error("argument --input: expected at least one path before KEY VALUE overrides")
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
    # Only the data set that is drawn must exist.
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
    """Loads the file of ``--predictions``, if there is one.

    Raises:
        ValueError: If it is not in COCO's format, has other images or categories than the data set,
            or if the data set has no instances.
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
    """Returns a function from an item of the data set and the output of the mapper to a PNG."""
    metadata = _metadata(cfg, args)
    min_score = args.confidence_threshold
    if args.source != "model":
        return lambda item, mapped: draw_stored(cfg, item, mapped, metadata, None, min_score)
    if stored:
        return lambda item, mapped: draw_stored(cfg, item, mapped, metadata, stored, min_score)
    check_needs_only_pictures(cfg)
    predictor = Predictor(cfg)
    if hasattr(predictor.model, "predict_levels"):
        return lambda item, mapped: draw_boundaries(predictor, item, mapped, args.projection)
    return lambda item, mapped: draw_prediction(
        predictor, item, mapped, metadata, min_score, args.pixel and tuple(args.pixel)
    )


def _worst_first(
    cfg: CfgNode, stored: StoredPredictions, items: List[Dict[str, Any]]
) -> List[Dict[str, Any]]:
    """Sorts items by the panoptic quality of their predictions; leaves out unreadable images."""
    mapper = NameUnreadable(PixelLabelMapper(cfg, is_train=True, augmentations=[]))
    scored = []
    for index, item in enumerate(tqdm(items, desc="comparing", unit="image")):
        try:
            truth = mapper(item)["instances"].gt_masks.tensor.numpy()
        except UnreadableImage as error:
            tqdm.write(f"skipped {error}", file=sys.stderr)
            continue
        quality = panoptic_quality(stored.masks(item, truth.shape[1:]).masks, truth)
        scored.append((quality, index))
    return [items[index] for _, index in sorted(scored)]
