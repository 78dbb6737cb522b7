"""The command line of ``rpe-d2 compare`` and tools/compare.py."""

import argparse
import base64
import hashlib
import json
import os
import statistics
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import Instances
from pycocotools import mask as mask_util
from pycocotools.coco import COCO
from torch import nn
from tqdm import tqdm

from rpe_d2.engine.checkpoint import ModelCheckpointer
from rpe_d2.engine.run_record import current_commit, hardware, plain_numbers
from rpe_d2.engine.setup import check_datasets, load_config
from rpe_d2.engine.trainer import Trainer
from rpe_d2.evaluation.boundary_ap_evaluator import boundary_metrics
from rpe_d2.evaluation.coco_scores import instance_scores, recall_curves
from rpe_d2.evaluation.error_analysis import error_analysis
from rpe_d2.evaluation.ground_truth import coco_ground_truth, instance_results
from rpe_d2.evaluation.mask_proposal_evaluator import (
    proposal_ground_truth,
    proposal_metrics,
    proposal_results,
)
from rpe_d2.inference.predictor import with_instances
from rpe_d2.utils.errors import USER_ERRORS, one_line, one_line_errors
from rpe_d2.utils.files import replacing_file
from rpe_d2.utils.flops import inference_flops
from rpe_d2.utils.images import ImageReader, to_rgb
from rpe_d2.utils.json_text import parse_json
from rpe_d2.visualization import at_most, draw_instances, instance_colors
from rpe_d2.visualization.instances import mask_iou, match_by_iou
from rpe_d2.visualization.report import comparison_page, comparison_table

from .arguments import command_line, positive
from .compare_oracles import oracle_scores

# Part of the key of a row, so that rows of an older version are not reused.
_VERSION = 2
_ROWS = "rows"
_PICTURE_SIDE = 420
# Number of images with drawings in a row. Rows are reused, so it does not depend on --pictures.
_MOST_PICTURES = 24
_UNMATCHED_GRAY = 0.6
_TIMED_IMAGES = 50


def main(argv: Optional[List[str]] = None) -> int:
    """Evaluates models on one data set; writes ``index.html``, ``compare.json`` and ``compare.md``.

    A model is any Detectron2 configuration, with its weights after "=" or in MODEL.WEIGHTS.
    Finished rows stay in the output folder and are reused while configuration, weights, data set
    and number of images are the same. If a model fails, its row gives the reason and the comparison
    continues. "command" in compare.json is the most recent call.

    Returns:
        Exit status: 0, 1 if a model failed, or 2 with a one-line error if an argument is wrong.
    """
    args = _parse(argv)
    args.command = command_line("tools/compare.py", argv)
    with one_line_errors():
        output = Path(args.output)
        (output / _ROWS).mkdir(parents=True, exist_ok=True)
        configs = [_load(model, args) for model in args.models]
        dataset = args.dataset or _first_dataset(configs)
        if dataset not in DatasetCatalog:
            raise ValueError(
                f"--dataset {dataset} is not registered; own data: DATASETS.COCO_JSONS "
                '"name=path.json:image_root"'
            )
        data = _Data(dataset, args.num_images)
        rows = []
        for name, (cfg, error) in zip(_names(args.models), configs):
            rows.append(_row(name, cfg, error, data, output, args.oracles))
            # Written after every model, so that an interrupted comparison shows the finished rows.
            _write(output, args, data, _reader(configs), rows)
    print(comparison_table(rows))
    print(output / "index.html")
    return 1 if any("error" in row for row in rows) else 0


def _parse(argv: Optional[List[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Compares several models on one data set and writes one HTML page."
    )
    parser.add_argument(
        "models", nargs="+", metavar="CONFIG[=WEIGHTS]", help="Detectron2 configurations"
    )
    parser.add_argument(
        "--dataset", metavar="NAME", help="default: DATASETS.TEST of the first configuration"
    )
    parser.add_argument("--output", required=True, metavar="DIR")
    parser.add_argument(
        "--num-images", type=positive, metavar="N", help="only the first N images; default: all"
    )
    parser.add_argument(
        "--pictures",
        type=positive,
        default=6,
        metavar="N",
        help=f"images that are shown with their predictions, at most {_MOST_PICTURES} (6)",
    )
    parser.add_argument(
        "--oracles",
        action="store_true",
        help="also evaluate the models with steps that make no mistakes; takes twice as long",
    )
    parser.add_argument(
        "--opts", nargs="+", default=[], metavar="KEY VALUE", help="overrides of all configurations"
    )
    return parser.parse_args(argv)


def _load(model: str, args: argparse.Namespace) -> Tuple[Optional[CfgNode], Optional[str]]:
    """Returns the configuration with its weights, or None and the reason why it cannot be read."""
    path, _, weights = model.partition("=")
    try:
        cfg = load_config(path, args.opts)
        if weights:
            cfg.MODEL.WEIGHTS = weights
        return cfg, None
    except USER_ERRORS as error:
        return None, one_line(error)


def _first_dataset(configs: List[Tuple[Optional[CfgNode], Optional[str]]]) -> str:
    for cfg, _ in configs:
        if cfg is not None and cfg.DATASETS.TEST:
            return cfg.DATASETS.TEST[0]
    raise ValueError("no configuration names a data set in DATASETS.TEST; give --dataset")


def _names(models: List[str]) -> List[str]:
    """Returns the names of the rows.

    A name is the shortest unique part of the path of the configuration. If a configuration has
    several weights, the shortest unique part of their path follows.
    """
    configs, weights = zip(
        *(model.split("=", 1) if "=" in model else (model, "") for model in models)
    )
    config_names = _shortest(configs)
    weight_names = _shortest([path for path in weights if path])
    names = []
    for config, path in zip(configs, weights):
        several = len({w for c, w in zip(configs, weights) if c == config}) > 1
        name = config_names[config]
        names.append(f"{name}, {weight_names[path]}" if several and path else name)
    return names


def _shortest(paths: Sequence[str]) -> Dict[str, str]:
    """Returns, by path, the fewest trailing parts without suffix that make all paths unique."""
    parts = {path: Path(path).with_suffix("").parts for path in paths}
    for count in range(1, max(map(len, parts.values()), default=1) + 1):
        names = {path: "/".join(part[-count:]) for path, part in parts.items()}
        if len(set(names.values())) == len(names):
            break
    return names


class _Data:
    """The images of a data set with their ground truth."""

    def __init__(self, name: str, num_images: Optional[int]):
        self.name = name
        self.items = DatasetCatalog.get(name)[:num_images]
        self.metadata = MetadataCatalog.get(name)
        if not any("annotations" in item for item in self.items):
            raise ValueError(f"--dataset {name} has no annotated instances")
        ids = [item["image_id"] for item in self.items]
        self.truth = _only(coco_ground_truth(name), ids)
        self.proposal_truth = _only(proposal_ground_truth(name), ids)
        self.fingerprint = hashlib.sha256(
            json.dumps([name, self.truth.dataset["annotations"], ids], default=str).encode()
        ).hexdigest()


def _only(truth: COCO, image_ids: List[Any]) -> COCO:
    """Returns the ground truth of the given images."""
    chosen = set(image_ids)
    part = COCO()
    part.dataset = {
        **truth.dataset,
        "images": [image for image in truth.dataset["images"] if image["id"] in chosen],
        "annotations": [a for a in truth.anns.values() if a["image_id"] in chosen],
    }
    part.createIndex()
    return part


# ---- One model


def _row(
    name: str,
    cfg: Optional[CfgNode],
    error: Optional[str],
    data: _Data,
    output: Path,
    oracles: bool,
) -> Dict[str, Any]:
    """Returns the row of a model, read from the output folder or measured."""
    if cfg is None:
        return {"name": name, "error": error}
    try:
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (), (data.name,)
        cfg.DATALOADER.NUM_WORKERS = 0
        key = _key(cfg, data, oracles)
        path = output / _ROWS / f"{key}.json"
        if path.exists():
            print(f"{name}: read from {path}", file=sys.stderr)
            return {**parse_json(path.read_text(), path), "name": name}
        row = _measure(name, cfg, data, oracles)
    except Exception as failure:  # any error, because the other models do not depend on it
        return {"name": name, "error": one_line(failure)}
    with replacing_file(path) as file:
        file.write(json.dumps(row).encode())
    return row


def _key(cfg: CfgNode, data: _Data, oracles: bool) -> str:
    """Returns a hash of everything that a row depends on."""
    weights = cfg.MODEL.WEIGHTS
    if not weights:
        raise ValueError("no weights: give CONFIG=WEIGHTS or MODEL.WEIGHTS")
    if not os.path.isfile(weights):
        raise ValueError(f"weights {weights}: no such file")
    digest = hashlib.sha256(f"{_VERSION} {oracles}".encode())
    with open(weights, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    plain = cfg.clone()
    plain.defrost()
    plain.MODEL.WEIGHTS = plain.OUTPUT_DIR = ""
    digest.update(plain.dump().encode())
    digest.update(data.fingerprint.encode())
    return digest.hexdigest()[:16]


def _measure(name: str, cfg: CfgNode, data: _Data, oracles: bool) -> Dict[str, Any]:
    """Evaluates and times a model on the images of a data set."""
    check_datasets(cfg)
    model = build_model(cfg).eval()
    ModelCheckpointer(model, complete=True).load(cfg.MODEL.WEIGHTS)
    instances, proposals, pictures, seconds = [], [], [], []
    filled_boxes = has_instances = False
    loader, reader = Trainer.build_test_loader(cfg, data.name), _reader([(cfg, None)])
    count = len(data.items)
    with torch.no_grad():
        for number, batch in enumerate(tqdm(loader, desc=name, unit="image", total=count)):
            if number == count:
                break
            (item,) = batch
            start = time.perf_counter()
            (output,) = model(batch)
            if torch.cuda.is_available() and cfg.MODEL.DEVICE.startswith("cuda"):
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
            if "instances" in output:
                has_instances = True
                results = instance_results(output, item["image_id"], data.metadata)
                instances += _with_masks(results, item)
            if "instances" not in output and "proposals" not in output:
                raise ValueError("the model predicts neither instances nor proposals")
            results, filled = proposal_results(output, item["image_id"])
            proposals += results
            filled_boxes |= filled
            if number < _MOST_PICTURES:
                found = with_instances(output)["instances"]
                pictures.append(_picture(data, reader, number, found))
            if number == 0:
                first = item
        gflops = _gflops(name, model, first)
    row: Dict[str, Any] = {
        "name": name,
        "images": count,
        "seconds_per_image": statistics.median(seconds[1:_TIMED_IMAGES] or seconds),
        "parameters_million": sum(p.numel() for p in model.parameters()) / 1e6,
        "gflops": gflops,
        "hardware": hardware(cfg.MODEL.DEVICE),
        "commit": current_commit(),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "filled_boxes": filled_boxes,
        "proposals": _finite(proposal_metrics(data.proposal_truth, proposals, "segm")),
        "box_proposals": _finite(proposal_metrics(data.proposal_truth, proposals, "bbox")),
        "recall": recall_curves(data.proposal_truth, proposals),
        "pictures": pictures,
    }
    if has_instances:
        limit = max(100, cfg.TEST.DETECTIONS_PER_IMAGE)
        row["segm"] = _finite(instance_scores(data.truth, instances, limit, "segm"))
        row["bbox"] = _finite(instance_scores(data.truth, instances, limit, "bbox"))
        row["boundary"] = _finite(boundary_metrics(data.truth, instances, limit))
        errors = error_analysis(data.truth, instances, limit)
        counts = errors.pop("counts")
        row["errors"] = {**_finite(errors), "counts": counts}
        if oracles:
            parts = data.items, data.truth, data.metadata, instances, limit
            row["oracles"] = _finite(oracle_scores(model, cfg, *parts))
    return row


def _gflops(name: str, model: nn.Module, item: Dict[str, Any]) -> Optional[float]:
    """Returns the GFLOPs of an inference, or None if the model cannot be traced."""
    try:
        return inference_flops(model, [item]) / 1e9
    except Exception as failure:  # tracing may raise any error, and the other results are valid
        print(f"{name}: GFLOPs could not be counted: {one_line(failure)}", file=sys.stderr)
        return None


def _with_masks(results: List[Dict[str, Any]], item: Dict[str, Any]) -> List[Dict[str, Any]]:
    """Returns COCO results with masks; a result without a mask gets its filled box."""
    if not results or "segmentation" in results[0]:
        return results
    boxes = np.array([result["bbox"] for result in results], np.float64)
    masks = mask_util.frPyObjects(boxes, item["height"], item["width"])
    return [{**result, "segmentation": mask} for result, mask in zip(results, masks)]


def _finite(scores: Dict[str, Any]) -> Dict[str, Any]:
    """Rounds numbers and replaces those that are not finite by None; keeps curves unchanged."""
    plain = plain_numbers({k: v for k, v in scores.items() if not isinstance(v, list)})
    return {**plain, **{k: v for k, v in scores.items() if isinstance(v, list)}}


# ---- Drawings of images


def _reader(configs: List[Tuple[Optional[CfgNode], Optional[str]]]) -> ImageReader:
    """Returns the reader of the first configuration that could be read, for drawings."""
    for cfg, _ in configs:
        if cfg is not None:
            return ImageReader.from_config(cfg)
    return ImageReader("RGB")


def _picture(
    data: _Data, reader: ImageReader, number: int, instances: Optional[Instances] = None
) -> str:
    """Draws an image with its ground truth, or with equally many predictions of the highest scores.

    A prediction has the color of the object that it matches.

    Returns:
        A JPEG as a data URL.
    """
    item = data.items[number]
    image = to_rgb(reader.read(item["file_name"]))
    truth = _true_masks(data, item)
    colors = instance_colors(max(len(truth), 1))
    if instances is None:
        masks = truth
    else:
        masks = _best_masks(instances.to("cpu"), max(len(truth), 1), image.shape[:2])
        match = np.full(len(masks), -1)
        if len(masks) and len(truth):
            match = match_by_iou(mask_iou(masks, truth))
        colors = np.where((match >= 0)[:, None], colors[match], _UNMATCHED_GRAY)
    # Small images are enlarged first, so that outlines stay thin.
    factor = max(1, _PICTURE_SIDE // max(image.shape[:2]))
    image = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
    masks = masks.repeat(factor, axis=1).repeat(factor, axis=2)
    drawn = draw_instances(image, masks, colors[: len(masks)], [""] * len(masks))
    drawn = at_most(drawn, _PICTURE_SIDE)
    encoded = cv2.imencode(".jpg", drawn[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode("ascii")


def _best_masks(instances: Instances, count: int, size: Tuple[int, int]) -> np.ndarray:
    """Returns masks (count, H, W) bool of the instances with the highest scores.

    Instances without masks get their filled boxes.
    """
    best = instances[torch.argsort(instances.scores, descending=True, stable=True)[:count]]
    if best.has("pred_masks"):
        return best.pred_masks.numpy().astype(bool)
    masks = np.zeros((len(best), *size), bool)
    for mask, (x0, y0, x1, y1) in zip(masks, best.pred_boxes.tensor.round().int().tolist()):
        mask[max(y0, 0) : y1, max(x0, 0) : x1] = True
    return masks


def _true_masks(data: _Data, item: Dict[str, Any]) -> np.ndarray:
    """Returns the masks (R, H, W) bool of the objects of an image, without crowds."""
    # In a list, because pycocotools takes text for a list of ids.
    ids = data.truth.getAnnIds(imgIds=[item["image_id"]], iscrowd=False)
    annotations = data.truth.loadAnns(ids)
    size = item["height"], item["width"]
    masks = [data.truth.annToMask(annotation).astype(bool) for annotation in annotations]
    return np.array(masks, bool).reshape(-1, *size)


# ---- The page


def _write(
    output: Path,
    args: argparse.Namespace,
    data: _Data,
    reader: ImageReader,
    rows: List[Dict[str, Any]],
) -> None:
    shown = min(args.pictures, _MOST_PICTURES, len(data.items))
    pictures = [_picture(data, reader, number) for number in range(shown)]
    page = comparison_page(data.name, len(data.items), rows, pictures)
    without_pictures = [{k: v for k, v in row.items() if k != "pictures"} for row in rows]
    content = {
        "dataset": data.name,
        "images": len(data.items),
        "command": args.command,
        "rows": without_pictures,
    }
    for name, text in (
        ("index.html", page),
        ("compare.json", json.dumps(content, indent=1) + "\n"),
        ("compare.md", comparison_table(rows) + "\n"),
    ):
        with replacing_file(output / name) as file:
            file.write(text.encode())
