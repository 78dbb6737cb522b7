"""The command line of ``rpe-d2 precompute-proposals`` and tools/precompute_proposals.py."""

import argparse
import json
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from rpe_d2.engine.datasets import register_present_datasets
from rpe_d2.engine.run_record import current_commit, hardware, plain_numbers, print_table
from rpe_d2.engine.setup import read_config, use_available_device
from rpe_d2.evaluation.mask_proposal_evaluator import proposal_scores
from rpe_d2.inference.classical_proposals import edge_boxes, require_ximgproc, selective_search
from rpe_d2.inference.predictor import Predictor
from rpe_d2.utils.errors import one_line, one_line_errors
from rpe_d2.utils.files import replacing_file
from rpe_d2.utils.image_files import image_stem
from rpe_d2.utils.images import ImageReader, check_size, to_rgb
from rpe_d2.utils.json_regions import JsonRegions
from rpe_d2.utils.mat_regions import Region, read_mat_regions
from rpe_d2.utils.readable import UnreadableImage
from rpe_d2.utils.worker_signals import leave_signals_to_the_trainer

from .arguments import command_line, number_type, positive
from .proposal_store import ProposalStore

_METHODS = ("selective_search", "edge_boxes", "mat", "json")
_REGIONS = ("mat", "json")  # conversions of regions
_INTERRUPTED = 130
_AREA = number_type("0 or more", lambda value: 0 <= value < float("inf"))


def main(argv: Optional[List[str]] = None) -> int:
    """Computes or converts the proposals of a data set.

    * ``selective_search`` and ``edge_boxes`` write boxes in Detectron2's format of proposal files,
      for ``DATASETS.PROPOSAL_FILES_TRAIN`` and ``_TEST``. ``edge_boxes`` finds the contours with
      the trained contour model of the configuration.
    * ``mat`` converts regions, such as those of MCG and COB, from a folder of MATLAB files with the
      names of the images, and ``json`` those of a file in COCO's results format. Both write COCO's
      results format with RLE masks, for ``DATASETS.PROPOSAL_MASKS_TRAIN`` and ``_TEST``.

    With ``--evaluate FILE``, the average recall is computed as well and written to that file. Boxes
    are evaluated as filled boxes, which the names of the scores say. Finished images are stored in
    ``OUTPUT.partial``; the same command continues after an interruption. Nothing is overwritten.

    Returns:
        Exit status: 0, 2 with a one-line error if an argument or a file is wrong, or 130 after
        Ctrl-C.
    """
    args = _parse(argv)
    start = time.monotonic()
    with one_line_errors():
        cfg = _config(args)
        items = DatasetCatalog.get(args.dataset)
        if not items:
            raise ValueError(f"--dataset {args.dataset} has no images")
        if args.evaluate and Path(args.evaluate).exists():
            raise ValueError(f"--evaluate {args.evaluate} exists already; it is not overwritten")
        method = _method(cfg, args)
        store = ProposalStore(Path(args.output), _header(cfg, args, len(items)))
        remaining = [i for i in items if json.dumps(i["image_id"]) not in store.finished]
        if len(remaining) < len(items):
            finished = len(items) - len(remaining)
            print(f"{finished} of {len(items)} images are finished already", file=sys.stderr)
        try:
            _compute(cfg, method, remaining, store, len(items))
        except KeyboardInterrupt:
            print(f"interrupted; the same command continues from {store.path}", file=sys.stderr)
            return _INTERRUPTED
        counts, seconds = zip(*((len(e["scores"]), e["seconds"]) for e in store.entries()))
        record = None
        if args.evaluate:
            sizes = {item["image_id"]: (item["height"], item["width"]) for item in items}
            results = store.evaluation_results(sizes)
            metrics = proposal_scores(args.dataset, results, method.makes_boxes)
            times = time.monotonic() - start, sum(seconds)
            record = _record(cfg, args, argv, metrics, times, counts)
        store.finish([item["image_id"] for item in items])
        print(f"{args.output}: {sum(counts)} proposals of {len(items)} images")
        if record is not None:
            path = Path(args.evaluate)
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing_file(path) as file:
                file.write(json.dumps(record, indent=1).encode() + b"\n")
            print_table(metrics)
            print(path)
    return 0


def _parse(argv: Optional[List[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Computes the proposals of a data set by selective search or edge boxes, or "
        "converts those of MCG, COB and others."
    )
    parser.add_argument(
        "--config-file",
        required=True,
        metavar="FILE",
        help="configuration that names the data; for edge_boxes, that of the contour model",
    )
    parser.add_argument("--dataset", required=True, metavar="NAME", help="a registered data set")
    parser.add_argument("--method", required=True, choices=_METHODS)
    parser.add_argument(
        "--output", required=True, metavar="FILE", help=".pkl of boxes; mat, json: .json of regions"
    )
    parser.add_argument(
        "--weights", metavar="FILE", help="edge_boxes: the contour model; default: MODEL.WEIGHTS"
    )
    parser.add_argument(
        "--input",
        metavar="PATH",
        help="mat: folder of NAME.mat for each image; json: COCO results with masks",
    )
    parser.add_argument(
        "--max-proposals", type=positive, default=2000, metavar="N", help="per image (2000)"
    )
    parser.add_argument(
        "--min-area",
        type=_AREA,
        metavar="PIXELS",
        help="smallest area of a box (1000 for edge_boxes, as in the paper; 0 otherwise)",
    )
    parser.add_argument(
        "--evaluate", metavar="FILE", help="compute the average recall and write it to this .json"
    )
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides, after all flags"
    )
    args = parser.parse_args(argv)
    if (args.input is not None) != (args.method in _REGIONS):
        parser.error(
            f"--input is for --method mat and json, which need it; --method is {args.method}"
        )
    if args.weights is not None and args.method != "edge_boxes":
        parser.error(f"--weights is for --method edge_boxes; --method is {args.method}")
    if args.min_area is not None and args.method in _REGIONS:
        parser.error(f"--min-area is for boxes; --method is {args.method}")
    for flag, path, suffix in (
        ("--output", args.output, ".json" if args.method in _REGIONS else ".pkl"),
        ("--evaluate", args.evaluate, ".json"),
    ):
        if path is not None and Path(path).suffix != suffix:
            parser.error(f"{flag} is {path}; allowed with --method {args.method}: a {suffix} file")
    return args


def _config(args: argparse.Namespace) -> CfgNode:
    cfg = read_config(args.config_file, args.opts)
    use_available_device(cfg)
    register_present_datasets(cfg, args.dataset)
    if args.dataset not in DatasetCatalog:
        raise ValueError(f"--dataset {args.dataset} is not registered; own data: DATASETS.…")
    if args.weights is not None:
        cfg.MODEL.WEIGHTS = args.weights
    return cfg


class _Method(NamedTuple):
    """A way to get proposals.

    Attributes:
        propose: maps a dataset dict to the proposals that :meth:`ProposalStore.add` takes.
        makes_boxes: whether proposals are boxes, or else masks.
        in_processes: whether data-loading processes can run it.
    """

    propose: Callable[[Dict[str, Any]], Dict[str, Any]]
    makes_boxes: bool
    in_processes: bool


def _method(cfg: CfgNode, args: argparse.Namespace) -> _Method:
    if args.method == "mat":
        if not Path(args.input).is_dir():
            raise ValueError(f"--input {args.input}: no such folder")
        return _Method(_MatRegions(args.input, args.max_proposals), False, True)
    if args.method == "json":
        return _Method(_JsonRegions(args.input, args.max_proposals), False, False)
    require_ximgproc()
    if args.method == "selective_search":
        propose = _SelectiveSearch(cfg, args.max_proposals, args.min_area or 0)
        return _Method(propose, True, True)
    area = 1000 if args.min_area is None else args.min_area
    return _Method(_EdgeBoxes(cfg, args.max_proposals, area), True, False)


class _SelectiveSearch:
    def __init__(self, cfg: CfgNode, limit: int, min_area: float):
        self._reader = ImageReader.from_config(cfg)
        self._options = limit, min_area

    def __call__(self, item: Dict[str, Any]) -> Dict[str, Any]:
        image = to_rgb(self._reader.read(item["file_name"]))
        check_size(item, image.shape[:2])
        return selective_search(image[:, :, ::-1], *self._options)._asdict()


class _EdgeBoxes:
    def __init__(self, cfg: CfgNode, limit: int, min_area: float):
        # Thinned maps have no direction.
        cfg.MODEL.BOUNDARY.THIN = False
        self._predictor = Predictor(cfg)
        self._model = cfg.MODEL.META_ARCHITECTURE
        self._options = limit, min_area

    def __call__(self, item: Dict[str, Any]) -> Dict[str, Any]:
        image = self._predictor.reader(item["file_name"])
        check_size(item, image.shape[:2])
        output = self._predictor(image)
        if "boundaries" not in output:
            raise ValueError(
                f"MODEL.META_ARCHITECTURE is {self._model}, which finds no contours; allowed with "
                "--method edge_boxes: a contour model, as in boundary/bsds_R_18.yaml"
            )
        return edge_boxes(output["boundaries"], *self._options)._asdict()


class _MatRegions:
    def __init__(self, folder: str, limit: int):
        self._folder = Path(folder)
        self._limit = limit

    def __call__(self, item: Dict[str, Any]) -> Dict[str, Any]:
        path = str(self._folder / f"{image_stem(item['file_name'])}.mat")
        try:
            regions = read_mat_regions(path, self._limit)
        except (ValueError, OSError) as error:
            raise UnreadableImage(one_line(error)) from error
        size = [item["height"], item["width"]]
        if regions and regions[0].rle["size"] != size:
            raise UnreadableImage(
                f"{path} is for an image of {regions[0].rle['size']}; {item['file_name']} has "
                f"{size} (height, width)"
            )
        return _as_lists(regions)


class _JsonRegions:
    def __init__(self, path: str, limit: int):
        self._regions = JsonRegions(path)
        self._limit = limit

    def __call__(self, item: Dict[str, Any]) -> Dict[str, Any]:
        size = item["height"], item["width"]
        return _as_lists(self._regions.of_image(item["image_id"], size, self._limit))


def _as_lists(regions: List[Region]) -> Dict[str, Any]:
    return {
        "rles": [region.rle for region in regions],
        "scores": [region.score for region in regions],
    }


class _Timed(Dataset):
    """The proposals of images, with the id of the image and the CPU seconds of a process."""

    def __init__(self, items: List[Dict[str, Any]], propose: Callable[..., Dict[str, Any]]):
        self._items = items
        self._propose = propose

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Tuple[Any, Dict[str, Any], float]:
        leave_signals_to_the_trainer()
        start = time.process_time()
        proposals = self._propose(self._items[index])
        return self._items[index]["image_id"], proposals, time.process_time() - start


def _compute(
    cfg: CfgNode, method: _Method, items: List[Dict[str, Any]], store: ProposalStore, total: int
) -> None:
    workers = cfg.DATALOADER.NUM_WORKERS if method.in_processes else 0
    loader = DataLoader(
        _Timed(items, method.propose),
        batch_size=None,
        num_workers=min(workers, len(items)),
        collate_fn=_unchanged,
    )
    bar = tqdm(
        loader, desc="images", unit="image", initial=total - len(items), total=total, disable=None
    )
    for image_id, proposals, seconds in bar:
        store.add(image_id, proposals, seconds)


def _unchanged(values: Any) -> Any:
    return values


def _header(cfg: CfgNode, args: argparse.Namespace, count: int) -> Dict[str, Any]:
    """Describes everything that the output depends on."""
    weights = Path(cfg.MODEL.WEIGHTS) if args.method == "edge_boxes" else None
    is_file = weights is not None and weights.is_file()
    return {
        "--dataset": args.dataset,
        "number of images": count,
        "--method": args.method,
        "--max-proposals": args.max_proposals,
        "--min-area": args.min_area,
        "--input": args.input,
        "configuration": [args.config_file, *args.opts],
        "weights": [str(weights), weights.stat().st_mtime] if is_file else None,
    }


def _record(
    cfg: CfgNode,
    args: argparse.Namespace,
    argv: Optional[List[str]],
    metrics: Dict[str, Any],
    seconds: Tuple[float, float],
    counts: Tuple[int, ...],
) -> Dict[str, Any]:
    """Returns the content of the file of ``--evaluate``.

    The CPU time is that of all images, also of those that an interrupted run has finished.
    """
    device = cfg.MODEL.DEVICE if args.method == "edge_boxes" else "cpu"
    return {
        "title": f"{args.method} on {args.dataset}",
        "config": args.config_file,
        "overrides": list(args.opts),
        "command": command_line("tools/precompute_proposals.py", argv),
        "method": args.method,
        "dataset": args.dataset,
        "seed": 0,
        "iterations": 0,
        "commit": current_commit(),
        "hardware": hardware(device),
        "versions": {"torch": torch.__version__},
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seconds": round(seconds[0], 1),
        "cpu_seconds": round(seconds[1], 1),
        "cpu_seconds_per_image": round(seconds[1] / len(counts), 3),
        "proposals_per_image": round(sum(counts) / len(counts), 1),
        "metrics": plain_numbers(metrics),
    }


if __name__ == "__main__":
    sys.exit(main())
