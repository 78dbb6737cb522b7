"""PASCAL VOC 2012 and SBD, instance masks and semantic maps, from the official folders: `DATASETS.VOC`."""

import functools
import io
import logging
import pickle
import re
import time
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

import numpy as np
import pycocotools.mask as mask_util
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathHandler, PathManager
from PIL import Image
from scipy.io import loadmat

from rpe_d2.data.readable import UnreadableImage

__all__ = [
    "VOC_CLASSES",
    "VOC_SEM_SEG_CLASSES",
    "VOCSplit",
    "check_voc_files",
    "find_voc_splits",
    "register_voc",
]

logger = logging.getLogger(__name__)

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip
VOC_SEM_SEG_CLASSES = ("background", *VOC_CLASSES)
_VOID = 255  # in the maps: the band around objects, which is nobody's
_MIN_BOX_IOU = 0.5  # at which a mask's box and an annotated box are of the same object
_KEY = "DATASETS.VOC"
_PREFIX = "voc://"
_SEM_SEG = "_sem_seg"  # suffix of the data sets with semantic maps
_VOC_FOLDERS = ("VOCdevkit/VOC2012", "VOC2012", ".")
_SBD_FOLDERS = ("benchmark_RELEASE/dataset", "sbd")
_OFFICIAL_NAME = re.compile(r"\d{4}_\d{6}")


@dataclass(frozen=True)
class VOCSplit:
    """Images that lists name, and the folders of what belongs to them.

    Attributes:
        name: of the registered data set.
        lists: files with a name of an image in each line.
        left_out: the list of images that are left out all the same; None: none.
        images: folder of NAME.jpg.
        objects, classes: folders of NAME.png (VOC, palette indices) or NAME.mat (SBD).
        suffix: of these.
        annotations: folder of NAME.xml with boxes and what is difficult; None: nothing is.
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
        """Names of the images, without folder and suffix, in the order of the lists.

        Raises:
            FileNotFoundError: a list is missing.
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
        """SBD's object maps bring their classes along."""
        return self.suffix == ".png"

    def needed(self, name: str, sem_seg: bool) -> Iterator[Path]:
        """The files that an image of the instance masks or the semantic maps consists of."""
        yield self.image(name)
        if not sem_seg:
            yield self.object_map(name)
        if sem_seg or self.instances_need_class_maps:
            yield self.class_map(name)


def find_voc_splits(root: str) -> List[VOCSplit]:
    """What a folder may hold; whether the files are there is not looked at.

    Args:
        root: holds `VOCdevkit/VOC2012` or `VOC2012`, or is that folder; SBD lies in `benchmark_RELEASE/dataset` or `sbd`.

    Returns:
        `voc_2012_train` and `voc_2012_val` (`ImageSets/Segmentation`); with SBD `sbd_train` and `sbd_val`; with both
        `voc_2012_sbd_train`, all of SBD without the images of `voc_2012_val`.

    Raises:
        FileNotFoundError: none of these folders exists.
    """
    folders = [Path(root, name) for name in _VOC_FOLDERS]
    voc = next((folder for folder in folders if (folder / "ImageSets").is_dir()), None)
    folders = [Path(root, name) for name in _SBD_FOLDERS]
    sbd = next((folder for folder in folders if folder.is_dir()), None)
    if voc is None and sbd is None:
        raise FileNotFoundError(
            f"{root} holds none of VOCdevkit/VOC2012, VOC2012, ImageSets, {', '.join(_SBD_FOLDERS)}; "
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
    """Registers the splits of :func:`find_voc_splits`, and each once more with the suffix `_sem_seg`.

    Nothing is read before a data set is used; it is then kept for the life of the process.

    * Instances: masks as compressed RLE, tight boxes, classes 0-19 in the official, alphabetical order. Void pixels
      are nobody's. `image_id` is 2007000032 for `2007_000032` (other names: their place in the list), because
      pycocotools fails on strings. Annotations have `difficult`: whether the object of the same class whose box in
      `Annotations/*.xml` overlaps the mask's most, by an IoU of at least .5, is marked so; False in SBD, whose
      evaluations know of no such thing.
    * Semantic maps: 0 background, 1-20 the classes, 255 void. They are served as pictures of these numbers: Detectron2's
      mapper would take the colours of the palette.

    Detectron2 itself has `voc_2012_train` and `voc_2012_val`, other lists of images with boxes alone; these names are
    taken over.

    Args:
        root: as for :func:`find_voc_splits`. "": nothing is registered.

    Raises:
        ValueError: other data have one of these names already.
        FileNotFoundError: there is neither VOC 2012 nor SBD.
    """
    if not root:
        return
    try:
        splits = find_voc_splits(root)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{_KEY}: {error}") from None
    for split in splits:
        for name, load, options in (
            (split.name, _load_instances, {"evaluator_type": "voc_instances"}),
            (
                split.name + _SEM_SEG,
                _load_sem_seg,
                {
                    "evaluator_type": "sem_seg",
                    "stuff_classes": list(VOC_SEM_SEG_CLASSES),
                    "ignore_label": _VOID,
                },
            ),
        ):
            if not _is_free(name, root):
                continue
            DatasetCatalog.register(name, functools.partial(load, split))
            if load is _load_instances:
                options["thing_classes"] = list(VOC_CLASSES)
            MetadataCatalog.get(name).set(root=root, voc_split=split, **options)


def _is_free(name: str, root: str) -> bool:
    """Whether a name is to be registered; Detectron2's own data of that name are taken out."""
    if name not in DatasetCatalog.list():
        return True
    metadata = MetadataCatalog.get(name)
    if metadata.get("evaluator_type") == "pascal_voc":
        logger.info("%s: instance masks from %s, in place of Detectron2's boxes", name, root)
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name)
        return True
    if metadata.get("root") == root:
        return False
    raise ValueError(f"{_KEY} is {root}; {name} is registered from {metadata.get('root')}")


def check_voc_files(name: str) -> None:
    """Checks that all files of a data set exist, if it is one of VOC or SBD: before a training, not after it.

    Raises:
        FileNotFoundError: a list, an image or a map is missing.
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
            f"{_KEY}: {name} lists {len(names)} images; {len(missing)} of their files are missing, first {missing[0]}; "
            f"python tools/prepare_voc.py {MetadataCatalog.get(name).root} says what is there"
        )


def _read_list(path: Path) -> List[str]:
    if not path.is_file():
        raise FileNotFoundError(f"{_KEY}: there is no list {path}")
    return [line.split()[0] for line in path.read_text().splitlines() if line.strip()]


# ---- Data sets


def _load_instances(split: VOCSplit) -> List[Dict[str, Any]]:
    return pickle.loads(_load_pickled(split))  # the caller's own


@functools.lru_cache(maxsize=None)
def _load_pickled(split: VOCSplit) -> bytes:
    check_voc_files(split.name)
    start = time.time()
    records = _records(split)
    for name, record in zip(split.names(), records):
        read = _read_png_objects if split.instances_need_class_maps else _read_mat_objects
        objects, categories = read(split, name)
        size = record["height"], record["width"]
        if objects.shape != size:
            raise UnreadableImage(
                f"{split.object_map(name)} has {objects.shape[0]} x {objects.shape[1]} pixels (height, width); "
                f"{record['file_name']} has {size[0]} x {size[1]}"
            )
        boxes = _difficult_boxes(split, name)
        record["annotations"] = [
            _annotation(objects == number, category, boxes)
            for number, category in categories.items()
        ]
    logger.info("%s: %d images read in %.0f s", split.name, len(records), time.time() - start)
    return pickle.dumps(records)


def _load_sem_seg(split: VOCSplit) -> List[Dict[str, Any]]:
    check_voc_files(split.name + _SEM_SEG)
    return [
        {**record, "sem_seg_file_name": f"{_PREFIX}{split.class_map(name)}"}
        for name, record in zip(split.names(), _records(split))
    ]


def _records(split: VOCSplit) -> List[Dict[str, Any]]:
    names = split.names()
    official = all(_OFFICIAL_NAME.fullmatch(name) for name in names)
    records = []
    for place, name in enumerate(names, start=1):
        try:
            with Image.open(split.image(name)) as image:  # reads no more than the header
                width, height = image.size
        except OSError as error:
            raise UnreadableImage(f"{split.image(name)}: {error}") from error
        records.append(
            {
                "file_name": str(split.image(name)),
                "image_id": int(name.replace("_", "")) if official else place,
                "height": height,
                "width": width,
            }
        )
    return records


def _annotation(
    mask: np.ndarray, category: int, boxes: List[Tuple[int, List[float], bool]]
) -> Dict[str, Any]:
    rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    box = mask_util.toBbox(rle).tolist()
    return {
        "bbox": box,
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": category,
        "iscrowd": 0,
        "difficult": _is_difficult(category, box, boxes),
        "segmentation": {"size": list(mask.shape), "counts": rle["counts"].decode("ascii")},
    }


# ---- Files


def _read_map(path: Path) -> np.ndarray:
    """(H, W) uint8 palette indices.

    Raises:
        UnreadableImage: it is not a picture, or one of colours.
    """
    try:
        with Image.open(path) as image:
            mode, labels = image.mode, np.asarray(image)
    except (OSError, SyntaxError) as error:
        raise UnreadableImage(f"{path}: {error}") from error
    if mode not in ("P", "L"):
        raise UnreadableImage(
            f"{path} has the mode {mode}; allowed: P, the palette of the release, or L"
        )
    return labels


def _read_png_objects(split: VOCSplit, name: str) -> Tuple[np.ndarray, Dict[int, int]]:
    """The map (H, W) uint8 of objects, and the class of each: the one that most of its pixels have."""
    objects = _read_map(split.object_map(name))
    classes = _read_map(split.class_map(name))
    if objects.shape != classes.shape:
        raise UnreadableImage(
            f"{split.object_map(name)} has {objects.shape[0]} x {objects.shape[1]} pixels (height, width); "
            f"{split.class_map(name)} has {classes.shape[0]} x {classes.shape[1]}"
        )
    categories = {}
    for number in np.setdiff1d(objects, [0, _VOID]).tolist():
        counts = np.bincount(classes[objects == number], minlength=_VOID + 1)
        found = int(counts[:_VOID].argmax())
        if counts[found] == 0 or not 1 <= found <= len(VOC_CLASSES):
            found = _VOID if counts[found] == 0 else found
            raise UnreadableImage(
                f"{split.class_map(name)} has {found} under object {number} of {split.object_map(name)}; "
                f"allowed: 1 to {len(VOC_CLASSES)}"
            )
        categories[number] = found - 1
    return objects, categories


def _read_mat(path: Path, variable: str, fields: Tuple[str, ...]) -> List[np.ndarray]:
    """Fields of the structure in one of SBD's files.

    Raises:
        UnreadableImage: it is no such file.
    """
    try:
        content = loadmat(path, variable_names=[variable])
    except Exception as error:  # scipy raises anything for files of another kind
        raise UnreadableImage(f"{path} is no MATLAB file: {error}") from error
    structure = content.get(variable)
    found = () if structure is None else structure.dtype.names or ()
    missing = [field for field in fields if field not in found]
    if missing:
        raise UnreadableImage(f"{path} has no {variable}.{missing[0]}, as SBD's files do")
    return [structure[field].flat[0] for field in fields]


def _read_mat_objects(split: VOCSplit, name: str) -> Tuple[np.ndarray, Dict[int, int]]:
    """The map (H, W) uint8 of objects, and the class of each."""
    path = split.object_map(name)
    objects, listed = _read_mat(path, "GTinst", ("Segmentation", "Categories"))
    listed = listed.reshape(-1).astype(int).tolist()  # of object 1, 2, ...
    categories = {}
    for number in np.setdiff1d(objects, [0]).tolist():
        category = listed[number - 1] if number <= len(listed) else None
        if category not in range(1, len(VOC_CLASSES) + 1):
            raise UnreadableImage(
                f"{path} has the class {category} for object {number}; allowed: 1 to {len(VOC_CLASSES)}"
            )
        categories[number] = category - 1
    return objects, categories


def _difficult_boxes(split: VOCSplit, name: str) -> List[Tuple[int, List[float], bool]]:
    """(class, box XYWH, whether it is difficult) of the annotated objects."""
    path = split.annotations and split.annotations / f"{name}.xml"
    if not path or not path.is_file():
        return []
    boxes = []
    try:
        for thing in ET.parse(path).getroot().iter("object"):
            corners = [thing.find("bndbox").find(k) for k in ("xmin", "ymin", "xmax", "ymax")]
            left, top, right, bottom = (float(corner.text) for corner in corners)
            # Pixels count from 1, and the last one belongs to the box.
            box = [left - 1, top - 1, right - left + 1, bottom - top + 1]
            category = VOC_CLASSES.index(thing.findtext("name").strip())
            boxes.append((category, box, bool(int(thing.findtext("difficult", "0")))))
    except (ET.ParseError, AttributeError, ValueError) as error:
        raise UnreadableImage(f"{path} is no annotation of VOC: {error}") from error
    return boxes


def _is_difficult(
    category: int, box: List[float], boxes: List[Tuple[int, List[float], bool]]
) -> bool:
    """What is annotated of the object with this box."""
    same = [(other, difficult) for label, other, difficult in boxes if label == category]
    if not same:
        return False
    others = np.array([other for other, _ in same])
    overlaps = mask_util.iou(np.array([box]), others, [0] * len(same))[0]
    best = int(overlaps.argmax())
    return bool(overlaps[best] >= _MIN_BOX_IOU and same[best][1])


class _VOCHandler(PathHandler):
    """Serves `voc://FILE.png` and `voc://FILE.mat`, a class map of VOC or SBD, as a picture of its numbers."""

    def _get_supported_prefixes(self) -> List[str]:
        return [_PREFIX]

    def _open(
        self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any
    ) -> io.BufferedIOBase:
        self._check_kwargs(kwargs)
        if mode != "rb":
            raise ValueError(f"{path}: can be opened with mode 'rb' only, not {mode!r}")
        file = Path(path[len(_PREFIX) :])
        if file.suffix == ".mat":
            (labels,) = _read_mat(file, "GTcls", ("Segmentation",))
        else:
            labels = _read_map(file)
        buffer = io.BytesIO()
        # Without the palette; BMP, because there is nothing to gain from compressing.
        Image.fromarray(labels.astype(np.uint8)).save(buffer, format="BMP")
        buffer.seek(0)
        return buffer


PathManager.register_handler(_VOCHandler())
