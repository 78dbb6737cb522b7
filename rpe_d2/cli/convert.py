"""The command line of ``rpe-d2 convert``."""

import argparse
import contextlib
import io
import json
import os
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

import numpy as np
from pycocotools.coco import COCO
from tqdm import tqdm

from rpe_d2.data.datasets.coco_jsons import read_coco_json
from rpe_d2.evaluation.ground_truth import make_fit_for_cocoeval
from rpe_d2.inference import Segmentation
from rpe_d2.inference.label_formats import FORMATS, coco_annotations
from rpe_d2.utils.errors import one_line, one_line_errors
from rpe_d2.utils.files import make_writable_folder, write_new_file
from rpe_d2.utils.image_files import (
    image_size,
    image_stem,
    list_images,
    plane_names,
    printable,
    split_plane,
)
from rpe_d2.utils.images import ImageReader, to_rgb
from rpe_d2.utils.json_text import parse_json, read_text
from rpe_d2.utils.label_folders import common_stem, unique_by_stem
from rpe_d2.utils.label_maps import read_label_map

_COCO = "coco"


def main(argv: Optional[List[str]] = None) -> int:
    """Converts the objects of images between label maps, COCO's format, GeoJSON and other files.

    The source is a folder of label maps, a JSON file in COCO's format, or a folder of GeoJSON files
    as ``rpe-d2 predict`` writes them. Nothing is overwritten.

    Returns:
        Exit status: 0, or 2 with a one-line error if an argument or a file is wrong.
    """
    args = _parse(argv)
    with one_line_errors():
        images = _Images(args.images, with_pixels=args.to == "csv")
        found = _source(args.source, images)
        count = objects = 0
        output = Path(args.output)
        if args.to == _COCO:
            content = _Coco()
            for segmentation in tqdm(found, desc="convert", unit="image", disable=None):
                content.add(segmentation)
            count, objects = len(content.images), len(content.annotations)
            print(write_new_file(output, json.dumps(content.dict()).encode()))
        else:
            make_writable_folder("OUTPUT", output)
            for segmentation in tqdm(found, desc="convert", unit="image", disable=None):
                stem = common_stem(segmentation.name.replace("/", "__")) + args.suffix
                path = output / f"{stem}.{args.to}"
                if path.exists():
                    raise ValueError(
                        f"OUTPUT has {printable(str(path))} already; allowed: a folder without it"
                    )
                segmentation.save(path)
                count, objects = count + 1, objects + len(segmentation)
    print(f"{count} images, {objects} objects")
    return 0


def _parse(argv: Optional[List[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Converts objects between label maps, COCO's format, GeoJSON and other files."
    )
    parser.add_argument("source", metavar="SOURCE", help="folder of files, or COCO JSON")
    parser.add_argument("output", metavar="OUTPUT", help="a folder; for coco, a JSON file")
    parser.add_argument(
        "--to",
        required=True,
        choices=[_COCO, *(suffix[1:] for suffix in FORMATS if suffix != ".json")],
        metavar="FORMAT",
        help="coco, or tif, png, npz, geojson, zip (ImageJ), csv with one file per image",
    )
    parser.add_argument(
        "--images",
        metavar="DIR",
        help="folder of the images: names in COCO's format, sizes for GeoJSON, intensities for csv",
    )
    parser.add_argument(
        "--suffix", default="", help="end of the names of the files, such as _masks for Cellpose"
    )
    return parser.parse_args(argv)


class _Images:
    """The images that objects belong to, by the common part of their names."""

    def __init__(self, folder: Optional[str], with_pixels: bool):
        self.folder = folder
        self.reader = ImageReader("RGB") if folder is not None and with_pixels else None
        if folder is not None and not os.path.isdir(folder):
            raise ValueError(f"--images is {folder}; there is no such folder")
        files = [] if folder is None else list_images(folder)
        # A folder may have label maps beside the images.
        images = [file for file in files if common_stem(file) == image_stem(file)]
        self._files = unique_by_stem(("--images", str(folder)), images or files)

    def name_of(self, file: str) -> str:
        """Returns the file name of the image of a file of objects, or that of the file itself."""
        if self.folder is None:
            return os.path.basename(file)
        plane = split_plane(file)[1]
        name = os.path.basename(self.path_of(file))
        return name if plane is None else f"{name}[{plane}]"

    def path_of(self, file: str) -> str:
        path = self._files.get(common_stem(split_plane(file)[0]))
        if path is None:
            raise ValueError(
                f"--images {self.folder} has no image for {printable(file)}; allowed: one of the "
                "same name"
            )
        return path


def _source(path: str, images: _Images) -> Iterator[Segmentation]:
    if os.path.isdir(path):
        polygons = sorted(str(file) for file in Path(path).glob("*.geojson"))
        if polygons:
            return _of_geojson(polygons, images)
        files = list_images(path)
        if not files:
            raise ValueError(f"SOURCE {path} has no label maps; allowed: PNG, TIFF, NPY, GeoJSON")
        return _of_label_maps(list(unique_by_stem(("SOURCE", path), files).values()), images)
    if os.path.isfile(path) and path.endswith(".json"):
        return _of_coco(path)
    raise ValueError(f"SOURCE is {path}; allowed: an existing folder, or a .json file")


def _of_label_maps(files: List[str], images: _Images) -> Iterator[Segmentation]:
    for file in files:
        for plane in plane_names(file):
            name = images.name_of(plane)
            picture = None
            if images.reader is not None:
                picture = to_rgb(images.reader.read(_plane_of(images.path_of(plane), plane)))
            yield Segmentation(read_label_map(plane), image=picture, name=name)


def _plane_of(path: str, plane: str) -> str:
    """Returns the name of the plane of an image that belongs to a plane of a label map."""
    number = split_plane(plane)[1]
    return path if number is None else f"{path}[{number}]"


def _of_coco(path: str) -> Iterator[Segmentation]:
    read_coco_json(f"SOURCE {path}", path)  # checks it
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(path)
    make_fit_for_cocoeval(coco)
    categories = sorted(coco.dataset["categories"], key=lambda category: category["id"])
    ids = [category["id"] for category in categories]
    names = [category["name"] for category in categories]
    for image_id, image in coco.imgs.items():
        objects = [a for a in coco.imgToAnns[image_id] if not a["iscrowd"]]
        masks = [coco.annToMask(a).astype(bool) for a in objects]
        labels = np.zeros((image["height"], image["width"]), np.int64)
        # The smaller one of two that overlap is in front.
        for number in sorted(range(len(masks)), key=lambda n: -masks[n].sum()):
            labels[masks[number]] = number + 1
        seen = [objects[number - 1] for number in np.unique(labels) if number > 0]
        yield Segmentation(
            labels,
            np.array([a.get("score", 1.0) for a in seen], np.float32),
            np.array([ids.index(a["category_id"]) for a in seen], np.int64),
            names,
            category_ids=ids,
            name=image["file_name"],
        )


def _of_geojson(files: List[str], images: _Images) -> Iterator[Segmentation]:
    if images.folder is None:
        raise ValueError("SOURCE has GeoJSON files; --images is needed for the sizes of the images")
    named = {}
    for file in files:
        try:
            features = parse_json(read_text(file), file)["features"]
            named[file] = [_polygons(feature) for feature in features]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"SOURCE has {printable(file)}, which is not GeoJSON with polygons "
                f"({one_line(error)}); allowed: Polygon and MultiPolygon"
            ) from error
    names = sorted({name for features in named.values() for _, name, _ in features})
    for file, features in named.items():
        path = images.path_of(file)
        width, height = image_size(path)
        labels = np.zeros((height, width), np.int64)
        kept = []
        for polygons, name, score in features:
            mask = _filled(polygons, (height, width))
            if mask.any():
                kept.append((name, score))
                labels[mask] = len(kept)
        seen = [kept[number - 1] for number in np.unique(labels) if number > 0]
        yield Segmentation(
            labels,
            np.array([score for _, score in seen], np.float32),
            np.array([names.index(name) for name, _ in seen], np.int64),
            names or ["object"],
            name=os.path.basename(path),
        )


def _polygons(feature: Dict[str, Any]) -> Tuple[List[List[np.ndarray]], str, float]:
    """Returns the polygons of a feature, the name of its class and its score."""
    geometry, properties = feature["geometry"], feature.get("properties") or {}
    if geometry["type"] not in ("Polygon", "MultiPolygon"):
        raise ValueError(f"a {geometry['type']}")
    polygons = geometry["coordinates"]
    polygons = [polygons] if geometry["type"] == "Polygon" else polygons
    rings = [[_ring(ring) for ring in rings] for rings in polygons if rings]
    classification = properties.get("classification") or {}
    if isinstance(classification, dict):
        classification = classification.get("name", "object")
    return rings, str(classification), float(properties.get("score", 1.0))


def _ring(points: Any) -> np.ndarray:
    """Returns the corners (n, 2) of a ring, without altitudes."""
    ring = np.array(points, float)
    if ring.ndim != 2 or ring.shape[0] < 3 or ring.shape[1] < 2 or not np.isfinite(ring).all():
        raise ValueError(f"a ring of shape {ring.shape}")
    return ring[:, :2]


def _filled(polygons: List[List[np.ndarray]], size: Tuple[int, int]) -> np.ndarray:
    """Returns the pixels (H, W) bool whose centers are in polygons, but not in their holes."""
    from skimage.draw import polygon2mask  # slow to import

    mask = np.zeros(size, bool)
    for outer, *holes in polygons:
        # The center of the first pixel is at 0.5, 0.5.
        part = polygon2mask(size, outer[:, ::-1] - 0.5)
        for hole in holes:
            part &= ~polygon2mask(size, hole[:, ::-1] - 0.5)
        mask |= part
    return mask


class _Coco:
    """A file in COCO's format."""

    def __init__(self) -> None:
        self.images: List[Dict[str, Any]] = []
        self.annotations: List[Dict[str, Any]] = []
        self._categories: Dict[Any, str] = {}

    def add(self, segmentation: Segmentation) -> None:
        height, width = segmentation.labels.shape
        image_id = len(self.images) + 1
        name = segmentation.name
        self.images.append({"id": image_id, "file_name": name, "height": height, "width": width})
        for annotation in coco_annotations(segmentation, image_id):
            self.annotations.append({**annotation, "id": len(self.annotations) + 1})
        self._categories.update(zip(segmentation.category_ids, segmentation.class_names))

    def dict(self) -> Dict[str, Any]:
        categories = [{"id": number, "name": name} for number, name in self._categories.items()]
        return {
            "images": self.images,
            "annotations": self.annotations,
            "categories": categories,
        }


if __name__ == "__main__":
    sys.exit(main())
