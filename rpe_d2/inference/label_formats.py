"""Files of segmented objects, in the formats of other programs."""

import csv
import io
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List

import cv2
import numpy as np
import pycocotools.mask as mask_util
import tifffile
from scipy import ndimage

from rpe_d2.utils.files import replacing_file
from rpe_d2.utils.label_maps import encode_labels
from rpe_d2.utils.tiff_files import ome_metadata

if TYPE_CHECKING:
    from .segmentation import Segmentation

__all__ = ["FORMATS", "outlines", "save_segmentation"]

# Formats of images that are larger than memory, which are written in parts of this side.
_OF_LARGE = (".tif", ".zarr")
_SIDE = 512
_MOST_PNG = np.iinfo(np.uint16).max


def save_segmentation(segmentation: "Segmentation", path: Path, overwrite: bool = False) -> Path:
    """Writes the objects of an image to a file, see :meth:`Segmentation.save`."""
    suffix = path.suffix.lower()
    write = FORMATS.get(suffix)
    if write is None:
        raise ValueError(f"{path} ends in {path.suffix!r}; allowed: {', '.join(FORMATS)}")
    if os.path.lexists(path) and not overwrite:
        raise FileExistsError(f"{path} exists; allowed: a new name, or overwrite=True")
    is_large = isinstance(segmentation.labels, np.memmap)
    if is_large and suffix not in _OF_LARGE:
        raise ValueError(
            f"{path} cannot hold the objects of an image of {segmentation.labels.shape[1]} x "
            f"{segmentation.labels.shape[0]} pixels; allowed: {', '.join(_OF_LARGE)}"
        )
    write(segmentation, path)
    return path


def outlines(mask: np.ndarray) -> List[List[np.ndarray]]:
    """Traces the outlines of a mask.

    They run through the middles between pixels inside and outside, so that a pixel is in the mask
    if and only if its center is in the polygons.

    Args:
        mask: (H, W) bool.

    Returns:
        For each part of the mask whose pixels share edges, its outer outline and those of its
        holes, each (n, 2) float64 of x, y with the last point equal to the first. The center of
        the first pixel is at 0.5, 0.5.
    """
    from skimage.measure import find_contours  # slow to import

    parts, count = ndimage.label(mask)
    polygons = []
    for number, window in enumerate(ndimage.find_objects(parts, count), start=1):
        part = np.pad(parts[window] == number, 1)
        rings = find_contours(part.astype(np.float32), 0.5, fully_connected="low")
        # The padding moved the part by one pixel.
        offset = np.array([window[1].start, window[0].start]) - 0.5
        rings = [ring[:, ::-1] + offset for ring in rings]
        rings.sort(key=_area, reverse=True)  # the outer one surrounds the others
        polygons.append(rings)
    return polygons


def _area(ring: np.ndarray) -> float:
    x, y = (ring - ring[0]).T
    return abs(float(x[:-1] @ y[1:] - x[1:] @ y[:-1])) / 2


def _masks(segmentation: "Segmentation"):
    """Yields the label of each object, its mask cropped to its box, and the box's corner (y, x)."""
    windows = ndimage.find_objects(segmentation.labels.astype(np.int64), len(segmentation))
    for label, window in enumerate(windows, start=1):
        yield label, segmentation.labels[window] == label, (window[0].start, window[1].start)


def _tif(segmentation: "Segmentation") -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer,
        segmentation.labels,
        compression="zlib",
        photometric="minisblack",
        **_metadata(segmentation),
    )
    return buffer.getvalue()


def _metadata(segmentation: "Segmentation") -> Dict[str, Any]:
    layout = segmentation.layout
    return ome_metadata(layout, "YX") if layout and layout.pixel_size else {"metadata": None}


def _write_large_tif(segmentation: "Segmentation", path: Path) -> None:
    """Writes a label map tile by tile."""
    labels = segmentation.labels
    height, width = labels.shape

    def tiles() -> Iterator[np.ndarray]:
        for y in range(0, height, _SIDE):
            for x in range(0, width, _SIDE):
                yield np.asarray(labels[y : y + _SIDE, x : x + _SIDE])

    with replacing_file(path) as file:
        tifffile.imwrite(
            file,
            tiles(),
            shape=labels.shape,
            dtype=labels.dtype,
            tile=(_SIDE, _SIDE),
            compression="zlib",
            photometric="minisblack",
            **_metadata(segmentation),
        )


def _write_zarr(segmentation: "Segmentation", path: Path) -> None:
    try:
        import zarr
    except ImportError as error:
        raise ImportError(
            "Zarr arrays need the package zarr: pip install 'rpe_d2[large]'"
        ) from error
    labels = segmentation.labels
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        new = Path(folder) / path.name
        chunks = tuple(min(_SIDE, max(1, side)) for side in labels.shape)
        array = zarr.open(str(new), mode="w", shape=labels.shape, chunks=chunks, dtype=labels.dtype)
        for y in range(0, labels.shape[0], _SIDE):
            array[y : y + _SIDE] = np.asarray(labels[y : y + _SIDE])
        if os.path.lexists(path):  # to be replaced
            os.rename(path, Path(folder) / "before")
        os.rename(new, path)


def _png(segmentation: "Segmentation") -> bytes:
    if len(segmentation) > _MOST_PNG:
        raise ValueError(
            f"{segmentation.name} has {len(segmentation)} objects, and PNG holds {_MOST_PNG}; "
            "allowed: .tif, .npz"
        )
    done, content = cv2.imencode(".png", segmentation.labels.astype(np.uint16))
    if not done:
        raise ValueError(f"{segmentation.name} cannot be written as PNG; allowed: .tif, .npz")
    return content.tobytes()


def _npz(segmentation: "Segmentation") -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        labels=segmentation.labels,
        scores=segmentation.scores,
        class_ids=segmentation.class_ids,
        class_names=np.array(segmentation.class_names),
    )
    return buffer.getvalue()


def _coco(segmentation: "Segmentation") -> bytes:
    height, width = segmentation.labels.shape
    image = {"id": 1, "file_name": segmentation.name, "height": height, "width": width}
    categories = [
        {"id": number, "name": name}
        for number, name in zip(segmentation.category_ids, segmentation.class_names)
    ]
    content = {
        "images": [image],
        "annotations": coco_annotations(segmentation, 1),
        "categories": categories,
    }
    return json.dumps(content).encode()


def coco_annotations(segmentation: "Segmentation", image_id: Any) -> List[Dict[str, Any]]:
    """Returns the objects as annotations in COCO's format, with ids from 1 and scores."""
    annotations = []
    for label, rle in encode_labels(segmentation.labels).items():
        annotations.append(
            {
                "id": label,
                "image_id": image_id,
                "category_id": segmentation.category_ids[segmentation.class_ids[label - 1]],
                "bbox": mask_util.toBbox(rle).tolist(),
                "area": int(mask_util.area(rle)),
                "iscrowd": 0,
                "segmentation": rle,
                "score": float(segmentation.scores[label - 1]),
            }
        )
    return annotations


def _geojson(segmentation: "Segmentation") -> bytes:
    features = []
    classes = segmentation.classes
    for label, mask, (y, x) in _masks(segmentation):
        polygons = [[(ring + (x, y)).tolist() for ring in rings] for rings in outlines(mask)]
        one = len(polygons) == 1
        features.append(
            {
                "type": "Feature",
                "id": str(label),
                "geometry": {
                    "type": "Polygon" if one else "MultiPolygon",
                    "coordinates": polygons[0] if one else polygons,
                },
                "properties": {
                    "objectType": "annotation",
                    "label": label,
                    "score": float(segmentation.scores[label - 1]),
                    "classification": {"name": classes[label - 1]},
                },
            }
        )
    return json.dumps({"type": "FeatureCollection", "features": features}).encode()


def _imagej(segmentation: "Segmentation") -> bytes:
    try:
        import roifile
    except ImportError as error:
        raise ImportError(
            "ROIs of ImageJ need the package roifile: pip install 'rpe_d2[formats]'"
        ) from error
    rois = []
    for label, mask, (y, x) in _masks(segmentation):
        # An ROI is one polygon. Smaller parts and holes are left out.
        outer = max((rings[0] for rings in outlines(mask)), key=_area)
        roi = roifile.ImagejRoi.frompoints(outer[:-1] + (x, y), name=f"{label:05d}")
        roi.roitype = roifile.ROI_TYPE.POLYGON
        rois.append(roi)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rois.zip"
        roifile.roiwrite(path, rois, mode="w")
        return path.read_bytes()


def _csv(segmentation: "Segmentation") -> bytes:
    table = segmentation.table()
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(table)
    for row in zip(*table.values()):
        writer.writerow([f"{v:.6g}" if isinstance(v, (float, np.floating)) else v for v in row])
    return buffer.getvalue().encode()


def _write_tif(segmentation: "Segmentation", path: Path) -> None:
    if isinstance(segmentation.labels, np.memmap):
        _write_large_tif(segmentation, path)
    else:
        _file(_tif)(segmentation, path)


def _file(encode: Callable[["Segmentation"], bytes]) -> Callable[["Segmentation", Path], None]:
    """Returns a function that writes what another one encodes."""

    def write(segmentation: "Segmentation", path: Path) -> None:
        content = encode(segmentation)
        with replacing_file(path) as file:
            file.write(content)

    return write


# What writes the objects to a path, by its suffix.
FORMATS: Dict[str, Callable[["Segmentation", Path], None]] = {
    ".tif": _write_tif,
    ".png": _file(_png),
    ".npz": _file(_npz),
    ".json": _file(_coco),
    ".geojson": _file(_geojson),
    ".zip": _file(_imagej),
    ".csv": _file(_csv),
    ".zarr": _write_zarr,
}
