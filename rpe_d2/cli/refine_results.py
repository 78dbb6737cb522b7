"""Refinement of COCO results, which can be interrupted and continued."""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any, Dict, List, Optional, TextIO, Tuple

import numpy as np
import pycocotools.mask as mask_util
from tqdm import tqdm

from rpe_d2.utils.coco_annotations import check_stored_rles
from rpe_d2.utils.files import make_writable_folder, replacing_file
from rpe_d2.utils.image_files import check_is_file, image_exists
from rpe_d2.utils.json_text import parse_json
from rpe_d2.visualization import draw_instances, image_panel, instance_colors

from .mask_refiner import MaskRefiner, check_header, write_panels
from .stored_predictions import UnusableMask, decode_mask

_PARTIAL = ".partial"  # suffix of the file with the finished images


class Results:
    """A file of COCO results and the state of its refinement."""

    def __init__(self, args: argparse.Namespace):
        """
        Args:
            args: the parsed arguments of the command.

        Raises:
            ValueError: If a file cannot be used, or the output exists.
        """
        self.source, self.output = Path(args.input), Path(args.output)
        self.images = Path(args.images)
        if args.sparse:
            raise ValueError(f"--sparse is for label maps; --input {self.source} is a file")
        if self.output.exists():
            raise ValueError(f"--output {self.output} exists already; it is not overwritten")
        check_is_file(str(self.source))
        content = self.source.read_bytes()
        self.digest = hashlib.sha256(content).hexdigest()
        self.results = _parse_results(self.source, content)
        self.files = _image_files(self.results, args)
        self.partial = self.output.with_name(self.output.name + _PARTIAL)

    def refine(self, refiner: MaskRefiner, header: Dict[str, Any], pictures: Optional[str]) -> None:
        """Refines the masks of the remaining images and writes the output.

        Args:
            refiner: the model.
            header: header of the run.
            pictures: folder for figures, or None.
        """
        finished = self._finished(header)
        make_writable_folder("--output", self.output.parent)
        indices: Dict[Any, List[int]] = {}
        for index, result in enumerate(self.results):
            indices.setdefault(result["image_id"], []).append(index)
        with open(self.partial, "a" if finished is not None else "w") as file:
            if finished is None:
                finished = {}
                _append(file, header)
            remaining = [image_id for image_id in indices if json.dumps(image_id) not in finished]
            progress = tqdm(
                remaining, desc="images", unit="image", initial=len(finished), total=len(indices)
            )
            for image_id in progress:
                refined = self._refine_image(image_id, indices[image_id], refiner, pictures)
                finished[json.dumps(image_id)] = refined
                _append(file, {"image_id": json.dumps(image_id), "refined": refined})
        for image_id, index in indices.items():
            for place, refined in zip(index, finished[json.dumps(image_id)]):
                self.results[place] = {**self.results[place], **refined}
        with replacing_file(self.output) as file:
            file.write(json.dumps(self.results).encode())
        self.partial.unlink()
        print(f"{self.output}: {len(self.results)} masks of {len(indices)} images")

    def _refine_image(
        self, image_id: Any, index: List[int], refiner: MaskRefiner, pictures: Optional[str]
    ) -> List[Dict[str, Any]]:
        item = refiner.item(self.files[image_id])
        size = item["height"], item["width"]
        masks = np.stack([self._mask(place, size) for place in index])
        refined_masks = refiner.masks(item, masks)
        if pictures:
            file = self.files[image_id]
            _draw_masks(Path(pictures), file, refiner.drawable(file), masks, refined_masks)
        entries = []
        for place, mask in zip(index, refined_masks):
            rle = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
            refined = {"segmentation": {**rle, "counts": rle["counts"].decode("ascii")}}
            if "bbox" in self.results[place]:
                refined["bbox"] = mask_util.toBbox(rle).tolist()
            entries.append(refined)
        return entries

    def _mask(self, place: int, size: Tuple[int, int]) -> np.ndarray:
        result = self.results[place]
        try:
            return decode_mask(result["segmentation"], size)
        except UnusableMask as error:
            picture = self.files[result["image_id"]]
            raise ValueError(
                f"{self.source}: entry {place}: {error}; its image is {picture}"
            ) from error

    def _finished(self, header: Dict[str, Any]) -> Optional[Dict[str, List[Dict[str, Any]]]]:
        """Reads the results of an interrupted run by image; None if there was no such run."""
        if not self.partial.exists():
            return None
        lines = self.partial.read_text().split("\n")
        complete = lines[:-1]  # without a last line that the interruption cut
        if not complete:
            return None
        check_header(self.partial, complete[0], header)
        if lines[-1]:
            self.partial.write_text("".join(line + "\n" for line in complete))
        entries = [parse_json(line, self.partial) for line in complete[1:]]
        return {entry["image_id"]: entry["refined"] for entry in entries}


def _append(file: TextIO, content: Any) -> None:
    file.write(json.dumps(content) + "\n")
    file.flush()


def _parse_results(path: Path, content: bytes) -> List[Dict[str, Any]]:
    results = parse_json(content, f"--input {path}")
    if not isinstance(results, list):
        raise ValueError(f"--input {path} is not a list; allowed: COCO results")
    for place, result in enumerate(results):
        if not isinstance(result, dict) or not {"image_id", "segmentation"} <= set(result):
            raise ValueError(
                f"{path}: entry {place} has no image_id or no segmentation; allowed: COCO results "
                "with masks"
            )
        if type(result["image_id"]) not in (int, float, str):
            raise ValueError(
                f"{path}: entry {place} has image_id {result['image_id']!r}; "
                "allowed: a number or text"
            )
    check_stored_rles(f"--input {path}", [result["segmentation"] for result in results])
    return results


def _image_files(results: List[Dict[str, Any]], args: argparse.Namespace) -> Dict[Any, Path]:
    """Returns the image file of each image_id."""
    root = Path(args.images)
    annotated = {}
    if args.annotations:
        check_is_file(args.annotations)
        where = f"--annotations {args.annotations}"
        content = parse_json(Path(args.annotations).read_bytes(), where)
        try:
            annotated = {image["id"]: image["file_name"] for image in content["images"]}
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{where} has no list 'images' with id and file_name; allowed: a COCO-format JSON"
            ) from error
    names: Dict[Any, str] = {}
    for place, result in enumerate(results):
        image_id = result["image_id"]
        # An entry's own file name is used first: the ids of the demo's results count its files.
        name = result.get("file_name", annotated.get(image_id))
        if not isinstance(name, str):
            raise ValueError(
                f"{args.input}: entry {place} has image_id {image_id!r} and no file_name; "
                "give --annotations with its file name"
            )
        if names.setdefault(image_id, name) != name:
            raise ValueError(
                f"{args.input}: entry {place} has image_id {image_id!r} and file_name {name}; "
                f"an earlier entry of this image_id has {names[image_id]}; "
                "allowed: one file for each image_id"
            )
    files = {image_id: _find_image(root, name) for image_id, name in names.items()}
    ids: Dict[Path, Any] = {}
    for image_id, file in files.items():
        if ids.setdefault(file, image_id) != image_id and names[ids[file]] != names[image_id]:
            raise ValueError(
                f"{args.input}: {names[ids[file]]} and {names[image_id]} are both {file}; "
                f"allowed: file names relative to --images {root}"
            )
    return files


def _find_image(root: Path, name: str) -> Path:
    """Returns the file of a name, which may start with the path of the folder, as in the demo."""
    parts = Path(name).parts
    paths = [root.joinpath(*parts[start:]) for start in range(len(parts))]
    return next((path for path in paths if image_exists(str(path))), root / name)


def _draw_masks(
    folder: Path, file: Path, image: np.ndarray, before: np.ndarray, after: np.ndarray
) -> None:
    """Draws an image (H, W, 3) RGB with its masks before and after the refinement."""
    colors = instance_colors(len(before))
    names = [""] * len(before)
    panels = [image_panel(image, "image")]
    for title, masks in (("masks", before), ("refined", after)):
        panels.append(image_panel(draw_instances(image, masks, colors, names), title))
    write_panels(folder, file, panels, image)
