"""The command line of tools/refine_masks.py: masks and label maps of any model, refined by propagation."""

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import cv2
import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.config import CfgNode
from detectron2.data.detection_utils import read_image
from detectron2.engine import DefaultPredictor
from detectron2.structures import Instances
from tqdm import tqdm

from rpe_d2.engine.setup import read_config, use_available_device
from rpe_d2.inference.predictor import IMAGE_SUFFIXES, build_predictor
from rpe_d2.utils.errors import one_line, one_line_errors
from rpe_d2.utils.files import replacing_file, write_new_file
from rpe_d2.utils.readable import UNREADABLE
from rpe_d2.visualization import draw_instances, instance_colors
from rpe_d2.visualization.figure import Panel, draw_figure, image_panel

from .stored_predictions import UnusableMask, decode_mask

# Of a label map: pixels without a label.
UNLABELLED = 255
_PARTIAL = ".partial"  # suffix of the file in which finished images wait
_ANEW = "delete it, or name another --output, to start anew"
_HEADER = "refine_masks.json"  # in a folder of refined maps: what they were made from
_MASKS_AT_ONCE = 128


def main(argv: Optional[List[str]] = None) -> int:
    """Refines COCO results (a JSON file) or label maps (a folder of PNGs) with a trained SPNRefiner.

    The output has the format of the input: results with the same entries in the same order, their masks and boxes
    refined; or a PNG for each PNG, of 8-bit labels. Labels that a map does not have are not introduced; 255 means unlabelled and
    stays, or, with ``--sparse``, takes the label that reaches it along the picture's regions.

    A run that was interrupted goes on where it was when it is started again with the same input, configuration and
    weights. Nothing is overwritten.

    Returns:
        Exit status: 0, 2 where a key or a file is at fault, in one line.
    """
    args = _parse(argv)
    with one_line_errors():
        source, output = Path(args.input), Path(args.output)
        if not source.exists():
            raise ValueError(f"--input {source}: no such file or folder")
        if output.resolve() == source.resolve():
            raise ValueError(f"--output {output} is the input, which is not overwritten")
        work = _LabelMaps(args) if source.is_dir() else _Results(args)
        cfg = read_config(args.config_file, args.opts)
        use_available_device(cfg)
        if args.weights:
            cfg.MODEL.WEIGHTS = args.weights
        if cfg.MODEL.META_ARCHITECTURE != "SPNRefiner":
            raise ValueError(
                f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}; allowed: SPNRefiner, as in "
                "configs/spn/refiner_shapes.yaml"
            )
        refiner = _Refiner(build_predictor(cfg), args.sparse)
        work.refine(refiner, _header(cfg, args, work.digest), args.pictures)
    return 0


def _parse(argv: Optional[List[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="refine_masks.py", description="Refines masks that any model has made."
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="of an SPNRefiner")
    parser.add_argument("--weights", metavar="FILE", help="default: MODEL.WEIGHTS")
    parser.add_argument(
        "--input",
        required=True,
        metavar="PATH",
        help="COCO results (JSON), or a folder of PNGs with a label in every pixel",
    )
    parser.add_argument(
        "--images", required=True, metavar="DIR", help="the pictures; of maps, with the same names"
    )
    parser.add_argument(
        "--annotations",
        metavar="FILE",
        help="COCO JSON that names the pictures of the results' image_ids; not needed where the results have file_name",
    )
    parser.add_argument("--output", required=True, metavar="PATH", help="a new file, or a folder")
    parser.add_argument(
        "--sparse", action="store_true", help="label maps: spread labels to unlabelled (255) pixels"
    )
    parser.add_argument(
        "--keep",
        type=int,
        metavar="N",
        help="with --sparse: an experiment on complete maps, of which only N random labels are used; prints how much of "
        "the rest is found",
    )
    parser.add_argument(
        "--pictures",
        metavar="DIR",
        help="also draw each picture with what was there and what was found",
    )
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides, after all flags"
    )
    args = parser.parse_args(argv)
    if args.keep is not None and not (args.sparse and args.keep > 0):
        parser.error(f"--keep is {args.keep}; allowed: 1 or more, with --sparse")
    return args


class _Refiner:
    """The model, on pictures as they are on the disk."""

    def __init__(self, predictor: DefaultPredictor, sparse: bool):
        self._predictor = predictor
        self._model = predictor.model
        self._format = predictor.input_format
        self._sparse = sparse

    def item(self, file: Path) -> Dict[str, Any]:
        """The model's input for one picture.

        Raises:
            ValueError: it cannot be read.
        """
        try:
            picture = read_image(str(file), format=self._format)
        except UNREADABLE as error:
            raise ValueError(f"{file}: {one_line(error)}") from error
        height, width = picture.shape[:2]
        picture = self._predictor.aug.get_transform(picture).apply_image(picture)
        image = torch.as_tensor(picture.astype("float32").transpose(2, 0, 1))
        return {"image": image, "height": height, "width": width}

    def masks(self, item: Dict[str, Any], masks: np.ndarray) -> np.ndarray:
        """(R, H, W) bool from (R, H, W) bool."""
        parts = []
        for start in range(0, len(masks), _MASKS_AT_ONCE):
            part = torch.from_numpy(masks[start : start + _MASKS_AT_ONCE])
            instances = Instances(tuple(part.shape[1:]), pred_masks=part)
            found = self._model([{**item, "instances": instances}])[0]["instances"]
            parts.append(found.pred_masks.cpu().numpy())
        return np.concatenate(parts)

    def labels(self, item: Dict[str, Any], labels: np.ndarray) -> np.ndarray:
        """(H, W) uint8 from (H, W) uint8."""
        present = np.setdiff1d(labels, [UNLABELLED])
        if len(present) == 0:
            return labels
        scores = torch.from_numpy(labels == present[:, None, None]).float()
        key = "sparse_labels" if self._sparse else "sem_seg"
        found = self._model([{**item, key: scores}])[0][key].argmax(dim=0).cpu().numpy()
        found = present[found].astype(np.uint8)
        unlabelled = labels == UNLABELLED
        return (
            np.where(unlabelled, found, labels)
            if self._sparse
            else np.where(unlabelled, labels, found)
        )


# ---- What results were made from


def _header(cfg: CfgNode, args: argparse.Namespace, digest: str) -> Dict[str, Any]:
    """What the results depend on; only a run with the same goes on where another one was interrupted."""
    weights = Path(cfg.MODEL.WEIGHTS)
    rest = cfg.clone()
    rest.defrost()
    rest.MODEL.WEIGHTS = ""
    return {
        "input": digest,
        "configuration": hashlib.sha256(rest.dump().encode()).hexdigest(),
        "weights": [str(weights), weights.stat().st_mtime if weights.is_file() else None],
        "--sparse": args.sparse,
        "--keep": args.keep,
    }


def _check_header(path: Path, found: str, header: Dict[str, Any]) -> None:
    """Raises ValueError where the file ``path`` has another header."""
    try:
        content = json.loads(found)
        others = [name for name in header if content.get(name) != header[name]]
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} is no file of an interrupted run; {_ANEW}") from error
    if others:
        raise ValueError(f"{path} is of a run with another {', '.join(others)}; {_ANEW}")


# ---- COCO results


class _Results:
    """A file of COCO results, and how far it is refined."""

    def __init__(self, args: argparse.Namespace):
        self.source, self.output = Path(args.input), Path(args.output)
        self.images = Path(args.images)
        if args.sparse:
            raise ValueError(f"--sparse is for label maps; --input {self.source} is a file")
        if self.output.exists():
            raise ValueError(f"--output {self.output} exists already; it is not overwritten")
        content = self.source.read_bytes()
        self.digest = hashlib.sha256(content).hexdigest()
        self.results = _parsed(self.source, content)
        self.files = _files(self.results, args)
        self.partial = self.output.with_name(self.output.name + _PARTIAL)

    def refine(self, refiner: _Refiner, header: Dict[str, Any], pictures: Optional[str]) -> None:
        """Refines what is left and writes the output."""
        finished = self._finished(header)
        self.output.parent.mkdir(parents=True, exist_ok=True)
        indices: Dict[Any, List[int]] = {}
        for index, result in enumerate(self.results):
            indices.setdefault(result["image_id"], []).append(index)
        with open(self.partial, "a" if finished is not None else "w") as file:
            if finished is None:
                finished = {}
                _append(file, header)
            left = [image_id for image_id in indices if str(image_id) not in finished]
            progress = tqdm(
                left, desc="images", unit="image", initial=len(finished), total=len(indices)
            )
            for image_id in progress:
                refined = self._refined(image_id, indices[image_id], refiner, pictures)
                finished[str(image_id)] = refined
                _append(file, {"image_id": str(image_id), "refined": refined})
        for image_id, index in indices.items():
            for place, refined in zip(index, finished[str(image_id)]):
                self.results[place] = {**self.results[place], **refined}
        with replacing_file(self.output) as file:
            file.write(json.dumps(self.results).encode())
        self.partial.unlink()
        print(f"{self.output}: {len(self.results)} masks of {len(indices)} images")

    def _refined(
        self, image_id: Any, index: List[int], refiner: _Refiner, pictures: Optional[str]
    ) -> List[Dict[str, Any]]:
        item = refiner.item(self.files[image_id])
        size = item["height"], item["width"]
        masks = np.stack([self._mask(place, size) for place in index])
        refined_masks = refiner.masks(item, masks)
        if pictures:
            _draw_masks(Path(pictures), self.files[image_id], masks, refined_masks)
        found = []
        for place, mask in zip(index, refined_masks):
            rle = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
            refined = {"segmentation": {**rle, "counts": rle["counts"].decode("ascii")}}
            if "bbox" in self.results[place]:
                refined["bbox"] = mask_util.toBbox(rle).tolist()
            found.append(refined)
        return found

    def _mask(self, place: int, size: Tuple[int, int]) -> np.ndarray:
        result = self.results[place]
        try:
            return decode_mask(result["segmentation"], size)
        except UnusableMask as error:
            picture = self.files[result["image_id"]]
            raise ValueError(
                f"{self.source}: entry {place}: {error}; it is of {picture}"
            ) from error

    def _finished(self, header: Dict[str, Any]) -> Optional[Dict[str, List[Dict[str, Any]]]]:
        """What an interrupted run left, by image; None: there was none."""
        if not self.partial.exists():
            return None
        lines = self.partial.read_text().split("\n")
        complete = lines[:-1]  # the last one ended without a line break, if there is one
        if not complete:
            return None
        _check_header(self.partial, complete[0], header)
        if lines[-1]:
            self.partial.write_text("".join(line + "\n" for line in complete))
        entries = map(json.loads, complete[1:])
        return {entry["image_id"]: entry["refined"] for entry in entries}


def _append(file, content: Any) -> None:
    file.write(json.dumps(content) + "\n")
    file.flush()


def _parsed(path: Path, content: bytes) -> List[Dict[str, Any]]:
    try:
        results = json.loads(content)
    except ValueError as error:
        raise ValueError(f"--input {path} is no JSON: {one_line(error)}") from error
    if not isinstance(results, list):
        raise ValueError(f"--input {path} holds no list; allowed: COCO results")
    for place, result in enumerate(results):
        if not isinstance(result, dict) or not {"image_id", "segmentation"} <= set(result):
            raise ValueError(
                f"{path}: entry {place} has no image_id or no segmentation; allowed: COCO results with masks"
            )
    return results


def _files(results: List[Dict[str, Any]], args: argparse.Namespace) -> Dict[Any, Path]:
    """The picture of each image_id."""
    root = Path(args.images)
    names = {}
    if args.annotations:
        try:
            images = json.loads(Path(args.annotations).read_bytes())["images"]
            names = {image["id"]: image["file_name"] for image in images}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"--annotations {args.annotations} names no pictures: {one_line(error)}"
            ) from error
    for place, result in enumerate(results):
        name = names.get(result["image_id"], result.get("file_name"))
        if name is None:
            raise ValueError(
                f"{args.input}: entry {place} has image_id {result['image_id']} and no file_name; give --annotations "
                "that name its picture"
            )
        names[result["image_id"]] = name
    return {image_id: root / name for image_id, name in names.items()}


# ---- Label maps


class _LabelMaps:
    """A folder of label maps, and how far it is refined."""

    def __init__(self, args: argparse.Namespace):
        source, images, self.output = Path(args.input), Path(args.images), Path(args.output)
        if self.output.exists() and not self.output.is_dir():
            raise ValueError(f"--output {self.output} is a file; allowed: a folder, as --input is")
        maps = sorted(source.glob("*.png"))
        if not maps:
            raise ValueError(f"--input {source}: no PNG there")
        pictures = {
            path.stem: path
            for path in sorted(images.glob("*"))
            if path.suffix.lower() in IMAGE_SUFFIXES
        }
        missing = [path.stem for path in maps if path.stem not in pictures]
        if missing:
            raise ValueError(
                f"--images {images} has no picture for {len(missing)} maps: {missing[0]} …"
            )
        self.keep = args.keep
        # (map, picture, output)
        self.work = [(path, pictures[path.stem], self.output / path.name) for path in maps]
        digest = hashlib.sha256()
        for path in maps:
            digest.update(f"{path.name}: {hashlib.sha256(path.read_bytes()).hexdigest()}".encode())
        self.digest = digest.hexdigest()

    def refine(self, refiner: _Refiner, header: Dict[str, Any], pictures: Optional[str]) -> None:
        """Refines what is left, map by map."""
        self._start(header)
        left = [item for item in enumerate(self.work) if not item[1][2].exists()]
        if len(left) < len(self.work):
            print(
                f"{len(self.work) - len(left)} of {len(self.work)} maps are in {self.output} already",
                file=sys.stderr,
            )
        right = counted = 0
        for number, (source, picture, output) in tqdm(left, desc="maps", unit="map"):
            labels = _read_labels(source)
            item = refiner.item(picture)
            size = item["height"], item["width"]
            if labels.shape != size:
                raise ValueError(
                    f"{source} has the size {labels.shape[0]} x {labels.shape[1]}; {picture} has {size[0]} x {size[1]}"
                )
            used = labels if self.keep is None else _some_labels(labels, self.keep, number)
            found = refiner.labels(item, used)
            others = (labels != UNLABELLED) & (used == UNLABELLED)
            right += int((found == labels)[others].sum())
            counted += int(others.sum())
            with replacing_file(output) as file:
                file.write(cv2.imencode(".png", found)[1].tobytes())
            if pictures:
                truth = None if self.keep is None else labels
                _draw_labels(Path(pictures), picture, used, found, truth)
            print(output)
        if counted:
            print(f"{100 * right / counted:.2f} % of the labels that were not used are found")

    def _start(self, header: Dict[str, Any]) -> None:
        """Makes the output folder, or checks that what is in it was made from the same."""
        path = self.output / _HEADER
        if path.exists():
            _check_header(path, path.read_text(), header)
            return
        there = [output for _, _, output in self.work if output.exists()]
        if there:
            raise ValueError(
                f"--output {self.output} has {there[0].name} and no {_HEADER}, which tells what it was made from; allowed: "
                "a new folder, or that of an interrupted run"
            )
        self.output.mkdir(parents=True, exist_ok=True)
        with replacing_file(path) as file:
            file.write(json.dumps(header).encode())


def _read_labels(path: Path) -> np.ndarray:
    labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if labels is None or labels.ndim != 2 or labels.dtype != np.uint8:
        raise ValueError(f"{path} is no map of 8-bit labels")
    return labels


def _some_labels(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """The map with all but some labels taken away, at random."""
    known = np.flatnonzero(labels != UNLABELLED)
    chosen = np.random.default_rng(seed).permutation(known)[:count]
    kept = np.full_like(labels, UNLABELLED)
    kept.flat[chosen] = labels.flat[chosen]
    return kept


# ---- Pictures


def _draw_masks(folder: Path, file: Path, before: np.ndarray, after: np.ndarray) -> None:
    image = read_image(str(file), format="RGB")
    colors = instance_colors(len(before))
    names = [""] * len(before)
    panels = [image_panel(image, "picture")]
    for title, masks in (("masks", before), ("refined", after)):
        panels.append(image_panel(draw_instances(image, masks, colors, names), title))
    _write_figure(folder, file, panels, image)


def _draw_labels(
    folder: Path, file: Path, before: np.ndarray, after: np.ndarray, truth: Optional[np.ndarray]
) -> None:
    image = read_image(str(file), format="RGB")
    colors = np.zeros((UNLABELLED + 1, 3))
    colors[:UNLABELLED] = instance_colors(UNLABELLED)
    maps = [(f"{(before != UNLABELLED).sum()} labels", _thick(before)), ("spread", after)]
    if (before != UNLABELLED).mean() > 0.5:
        maps = [("labels", before), ("refined", after)]
    if truth is not None:
        maps.append(("all labels", truth))
    panels = [image_panel(image, "picture")]
    panels += [image_panel(colors[labels], title, smooth=False) for title, labels in maps]
    _write_figure(folder, file, panels, image)


def _thick(labels: np.ndarray) -> np.ndarray:
    """Labels as dots that can be seen when the picture is reduced."""
    size = max(1, round(max(labels.shape) / 128))
    # The smallest value wins, and UNLABELLED is the largest.
    return cv2.erode(labels, np.ones((size, size), np.uint8))


def _write_figure(folder: Path, file: Path, panels: List[Panel], image: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    figure = draw_figure([panels], str(file.name), image.shape[:2])
    write_new_file(folder / f"{file.stem}.png", figure)
