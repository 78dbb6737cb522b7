"""PASCAL VOC 2012 and SBD with instance masks and label maps, named in ``DATASETS.VOC``."""

import functools
import logging
import pickle
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import numpy as np
import pycocotools.mask as mask_util
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from rpe_d2.utils.image_files import image_size
from rpe_d2.utils.json_text import read_text
from rpe_d2.utils.readable import UnreadableImage

from .voc_files import (
    CLASS_MAP_PREFIX,
    VOC_CLASSES,
    VOC_SEM_SEG_CLASSES,
    VOID,
    AnnotatedBox,
    read_boxes,
    read_mat_objects,
    read_png_objects,
)

__all__ = [
    "VOC_CLASSES",
    "VOC_SEM_SEG_CLASSES",
    "VOCSplit",
    "check_voc_files",
    "find_voc_splits",
    "register_voc",
]

logger = logging.getLogger(__name__)

_MIN_BOX_IOU = 0.5  # IoU at which a mask's box and an annotated box belong to the same object
_KEY = "DATASETS.VOC"
_SEM_SEG = "_sem_seg"  # suffix of the datasets with semantic label maps
_VOC_FOLDERS = ("VOCdevkit/VOC2012", "VOC2012", ".")
_SBD_FOLDERS = ("benchmark_RELEASE/dataset", "sbd")
_OFFICIAL_NAME = re.compile(r"\d{4}_\d{6}")


@dataclass(frozen=True)
class VOCSplit:
    """A list of images and the folders of their files.

    Attributes:
        name: name of the registered dataset.
        lists: files with the name of an image in each line.
        left_out: list of images to exclude, or None.
        images: folder of NAME.jpg.
        objects: folder of object maps, NAME.png (VOC, palette indices) or NAME.mat (SBD).
        classes: folder of class maps, NAME.png or NAME.mat.
        suffix: suffix of object and class maps, ".png" or ".mat".
        annotations: folder of NAME.xml with boxes and the flag "difficult", or None.
    """

    name: str
    lists: Tuple[Path, ...]
    left_out: Optional[Path]
    images: Path
    objects: Path
    classes: Path
    suffix: str
    annotations: Optional[Path]

    def names(self) -> List[str]:
        """Reads the names of the images, without folder and suffix, in the order of the lists.

        Raises:
            FileNotFoundError: A list is missing.
        """
        left_out = set(_read_list(self.left_out)) if self.left_out else set()
        listed = (name for path in self.lists for name in _read_list(path))
        return list(dict.fromkeys(name for name in listed if name not in left_out))

    def image(self, name: str) -> Path:
        return self.images / f"{name}.jpg"

    def object_map(self, name: str) -> Path:
        return self.objects / f"{name}{self.suffix}"

    def class_map(self, name: str) -> Path:
        return self.classes / f"{name}{self.suffix}"

    @property
    def instances_need_class_maps(self) -> bool:
        """Whether classes are stored separately from the object maps, as in VOC but not in SBD."""
        return self.suffix == ".png"

    def needed(self, name: str, sem_seg: bool) -> Iterator[Path]:
        """Yields the files that an image with instance masks or with a label map needs."""
        yield self.image(name)
        if not sem_seg:
            yield self.object_map(name)
        if sem_seg or self.instances_need_class_maps:
            yield self.class_map(name)


def find_voc_splits(root: str) -> List[VOCSplit]:
    """Lists the splits that a folder may hold, without checking that their files exist.

    Args:
        root: folder that holds ``VOCdevkit/VOC2012`` or ``VOC2012``, or is ``VOC2012`` itself. SBD
            is in its ``benchmark_RELEASE/dataset`` or ``sbd``.

    Returns:
        With VOC, ``voc_2012_train`` and ``voc_2012_val`` (``ImageSets/Segmentation``). With SBD,
        ``sbd_train`` and ``sbd_val``. With both, ``voc_2012_sbd_train``, all of SBD except the
        images of ``voc_2012_val``.

    Raises:
        FileNotFoundError: None of these folders exists.
    """
    top = Path(root).expanduser()
    folders = [top / name for name in _VOC_FOLDERS]
    voc = next((folder for folder in folders if (folder / "ImageSets").is_dir()), None)
    folders = [top / name for name in _SBD_FOLDERS]
    sbd = next((folder for folder in folders if folder.is_dir()), None)
    if voc is None and sbd is None:
        raise FileNotFoundError(
            f"{root} holds none of VOCdevkit/VOC2012, VOC2012, ImageSets, "
            f"{', '.join(_SBD_FOLDERS)}; "
            "allowed: the folder of VOC 2012, SBD or both"
        )
    splits = []
    if voc:
        lists = voc / "ImageSets" / "Segmentation"
        for part in ("train", "val"):
            splits.append(
                VOCSplit(
                    name=f"voc_2012_{part}",
                    lists=(lists / f"{part}.txt",),
                    left_out=None,
                    images=voc / "JPEGImages",
                    objects=voc / "SegmentationObject",
                    classes=voc / "SegmentationClass",
                    suffix=".png",
                    annotations=voc / "Annotations",
                )
            )
    if sbd:
        train, val = sbd / "train.txt", sbd / "val.txt"
        for name, files, left_out in (
            ("sbd_train", (train,), None),
            ("sbd_val", (val,), None),
            ("voc_2012_sbd_train", (train, val), voc and lists / "val.txt"),
        ):
            if voc or not name.startswith("voc"):
                splits.append(
                    VOCSplit(
                        name=name,
                        lists=files,
                        left_out=left_out,
                        images=sbd / "img",
                        objects=sbd / "inst",
                        classes=sbd / "cls",
                        suffix=".mat",
                        annotations=None,
                    )
                )
    return splits


def register_voc(root: str) -> None:
    """Registers the splits of :func:`find_voc_splits`, and each again with the suffix ``_sem_seg``.

    Nothing is read before a dataset is used, and it then stays in memory.

    * Instances have masks as compressed RLE, tight boxes, and classes 0 to 19 in the official,
      alphabetical order. Void pixels belong to no object. They are in ``ignore`` (compressed RLE,
      absent if there are none, as in SBD), and ``PixelLabelMapper`` excludes them from training.
      ``image_id`` is 2007000032 for ``2007_000032``, because pycocotools fails on strings. If names
      have another form, it is the position in the list. Annotations have ``difficult``, the flag of
      the object of the same class whose box in ``Annotations/*.xml`` overlaps the mask's box most,
      with an IoU of at least 0.5. In SBD, which has no such flag, it is False.
    * Semantic label maps have 0 for background, 1 to 20 for the classes and 255 for void. They are
      served as images of these indices, because Detectron2's mapper would read palette colors.

    Detectron2 itself registers ``voc_2012_train`` and ``voc_2012_val``, other lists of images with
    boxes only. This function replaces them.

    Args:
        root: as in :func:`find_voc_splits`. If empty, nothing is registered.

    Raises:
        ValueError: One of the names is taken by another dataset.
        FileNotFoundError: There is neither VOC 2012 nor SBD.
    """
    if not root:
        return
    try:
        splits = find_voc_splits(root)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{_KEY}: {error}") from None
    for split in splits:
        _register(
            split.name,
            root,
            functools.partial(_load_instances, split),
            voc_split=split,
            evaluator_type="voc_instances",
            thing_classes=list(VOC_CLASSES),
        )
        _register(
            split.name + _SEM_SEG,
            root,
            functools.partial(_load_sem_seg, split),
            voc_split=split,
            evaluator_type="sem_seg",
            stuff_classes=list(VOC_SEM_SEG_CLASSES),
            ignore_label=VOID,
        )


def _register(
    name: str, root: str, load: Callable[[], List[Dict[str, Any]]], **metadata: Any
) -> None:
    """Registers one dataset, replacing Detectron2's own, unless it is registered from the root."""
    if name in DatasetCatalog.list():
        registered = MetadataCatalog.get(name)
        if registered.get("root") == root:
            return
        if registered.get("evaluator_type") != "pascal_voc":
            raise ValueError(
                f"{_KEY} is {root}; {name} is registered from {registered.get('root')}"
            )
        logger.info("%s: instance masks from %s replace Detectron2's boxes", name, root)
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name)
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(root=root, **metadata)


def check_voc_files(name: str) -> None:
    """Checks that all files of a dataset exist, if it is one of VOC or SBD.

    Called before training, so that a missing file does not stop it later.

    Raises:
        FileNotFoundError: A list, an image or a map is missing.
    """
    split = MetadataCatalog.get(name).get("voc_split")
    if split is None:
        return
    names = split.names()
    missing = [
        path
        for image in names
        for path in split.needed(image, name.endswith(_SEM_SEG))
        if not path.is_file()
    ]
    if missing:
        raise FileNotFoundError(
            f"{_KEY}: {name} lists {len(names)} images; {len(missing)} of their files are missing, "
            f"first {missing[0]}; run python tools/prepare_voc.py "
            f"{MetadataCatalog.get(name).root} for a report"
        )


def _read_list(path: Path) -> List[str]:
    if not path.is_file():
        raise FileNotFoundError(f"{_KEY}: there is no list {path}")
    return [line.split()[0] for line in read_text(path, _KEY).splitlines() if line.strip()]


# ---- Dataset dicts


def _load_instances(split: VOCSplit) -> List[Dict[str, Any]]:
    return pickle.loads(_load_pickled(split))  # a new copy for every caller


@functools.lru_cache(maxsize=None)
def _load_pickled(split: VOCSplit) -> bytes:
    check_voc_files(split.name)
    start = time.monotonic()
    records = _records(split)
    for name, record in zip(split.names(), records):
        if split.instances_need_class_maps:
            objects, categories = read_png_objects(split.object_map(name), split.class_map(name))
        else:
            objects, categories = read_mat_objects(split.object_map(name))
        size = record["height"], record["width"]
        if objects.shape != size:
            raise UnreadableImage(
                f"{split.object_map(name)} has {objects.shape[0]} x {objects.shape[1]} pixels "
                f"(height, width); {record['file_name']} has {size[0]} x {size[1]}"
            )
        boxes_file = split.annotations and split.annotations / f"{name}.xml"
        boxes = read_boxes(boxes_file) if boxes_file and boxes_file.is_file() else []
        record["annotations"] = [
            _annotation(objects == number, category, boxes)
            for number, category in categories.items()
        ]
        if (objects == VOID).any():
            record["ignore"] = _encoded(objects == VOID)
    logger.info("%s: %d images read in %.0f s", split.name, len(records), time.monotonic() - start)
    return pickle.dumps(records)


def _load_sem_seg(split: VOCSplit) -> List[Dict[str, Any]]:
    check_voc_files(split.name + _SEM_SEG)
    return [
        {**record, "sem_seg_file_name": f"{CLASS_MAP_PREFIX}{split.class_map(name)}"}
        for name, record in zip(split.names(), _records(split))
    ]


def _records(split: VOCSplit) -> List[Dict[str, Any]]:
    names = split.names()
    official = all(_OFFICIAL_NAME.fullmatch(name) for name in names)
    records = []
    for position, name in enumerate(names, start=1):
        width, height = image_size(str(split.image(name)))
        records.append(
            {
                "file_name": str(split.image(name)),
                "image_id": int(name.replace("_", "")) if official else position,
                "height": height,
                "width": width,
            }
        )
    return records


def _annotation(mask: np.ndarray, category: int, boxes: List[AnnotatedBox]) -> Dict[str, Any]:
    segmentation = _encoded(mask)
    box = mask_util.toBbox(segmentation).tolist()
    return {
        "bbox": box,
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": category,
        "iscrowd": 0,
        "difficult": _is_difficult(category, box, boxes),
        "segmentation": segmentation,
    }


def _encoded(mask: np.ndarray) -> Dict[str, Any]:
    rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": rle["counts"].decode("ascii")}


def _is_difficult(category: int, box: List[float], boxes: List[AnnotatedBox]) -> bool:
    """Returns the flag "difficult" of the annotated object that a mask with this box belongs to."""

    same = [(other, difficult) for label, other, difficult in boxes if label == category]
    if not same:
        return False
    others = np.array([other for other, _ in same])
    overlaps = mask_util.iou(np.array([box]), others, [0] * len(same))[0]
    best = int(overlaps.argmax())
    return bool(overlaps[best] >= _MIN_BOX_IOU and same[best][1])
