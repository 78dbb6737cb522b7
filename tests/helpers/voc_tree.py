"""A miniature of PASCAL VOC 2012 and SBD with the folders and file formats of the releases."""

from contextlib import contextmanager
from pathlib import Path
from typing import Dict, List, NamedTuple, Tuple

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from scipy.io import savemat
from scipy.sparse import csc_matrix

from rpe_d2.data import VOC_CLASSES

SIZE = 48, 64  # height, width
TRAIN = ["2007_000032", "2007_000039", "2007_000063"]
VAL = ["2007_000033", "2007_000042"]
# SBD also has images of VOC's validation split, here 2007_000033.
SBD_TRAIN = ["2008_000002", "2007_000033"]
SBD_VAL = ["2008_000003"]
SPLITS = ("voc_2012_train", "voc_2012_val", "sbd_train", "sbd_val", "voc_2012_sbd_train")


class Thing(NamedTuple):
    name: str
    box: Tuple[int, int, int, int]  # left, top, right, bottom in pixels, the last two exclusive
    difficult: bool = False


DEFAULT = (
    Thing("aeroplane", (4, 4, 24, 20)),
    Thing("person", (30, 8, 50, 40)),
    Thing("person", (8, 28, 22, 44), difficult=True),
)
THINGS: Dict[str, Tuple[Thing, ...]] = {
    "2007_000042": (Thing("tvmonitor", (10, 10, 40, 30)), Thing("person", (44, 10, 60, 40))),
}


def maps(things) -> Tuple[np.ndarray, np.ndarray]:
    """Draws maps of objects and classes, (H, W) uint8, with a void band inside every edge."""
    objects, classes = np.zeros(SIZE, np.uint8), np.zeros(SIZE, np.uint8)
    for number, (name, (left, top, right, bottom), _) in enumerate(things, start=1):
        for labels, label in ((objects, number), (classes, VOC_CLASSES.index(name) + 1)):
            labels[top:bottom, left:right] = 255
            labels[top + 1 : bottom - 1, left + 1 : right - 1] = label
    return objects, classes


def palette() -> List[int]:
    """Returns VOC's palette, in which three bits of the index at a time lead the three channels."""
    colors = []
    for index in range(256):
        for channel in range(3):
            bits = [(index >> (3 * place + channel)) & 1 for place in range(3)]
            colors.append(sum(bit << (7 - place) for place, bit in enumerate(bits)))
    return colors


def save_palette_png(labels: np.ndarray, path: Path) -> None:
    image = Image.fromarray(labels)
    image.putpalette(palette())  # from "L" to "P"
    image.save(path)


def write_voc(voc: Path) -> None:
    for folder in ("JPEGImages", "SegmentationObject", "SegmentationClass", "Annotations"):
        (voc / folder).mkdir(parents=True)
    lists = voc / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for part, names in (("train", TRAIN), ("val", VAL)):
        (lists / f"{part}.txt").write_text("".join(f"{name}\n" for name in names))
        for name in names:
            things = THINGS.get(name, DEFAULT)
            save_picture(name, things, voc / "JPEGImages")
            for folder, labels in zip(("SegmentationObject", "SegmentationClass"), maps(things)):
                save_palette_png(labels, voc / folder / f"{name}.png")
            (voc / "Annotations" / f"{name}.xml").write_text(xml(things))


def save_picture(name: str, things, folder: Path) -> None:
    rng = np.random.default_rng(int(name.replace("_", "")))
    picture = rng.integers(0, 80, (*SIZE, 3), dtype=np.uint8)
    for thing in things:
        left, top, right, bottom = thing.box
        picture[top:bottom, left:right] += rng.integers(60, 175, 3, dtype=np.uint8)
    Image.fromarray(picture).save(folder / f"{name}.jpg", quality=95)


def xml(things) -> str:
    objects = "".join(
        f"<object><name>{name}</name><pose>Left</pose><truncated>0</truncated>"
        f"<difficult>{int(difficult)}</difficult><bndbox><xmin>{left + 1}</xmin>"
        f"<ymin>{top + 1}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"
        for name, (left, top, right, bottom), difficult in things
    )
    return f"<annotation><folder>VOC2012</folder>{objects}</annotation>"


def write_sbd(sbd: Path) -> None:
    for folder in ("img", "inst", "cls"):
        (sbd / folder).mkdir(parents=True)
    for part, names in (("train", SBD_TRAIN), ("val", SBD_VAL)):
        (sbd / f"{part}.txt").write_text("".join(f"{name}\n" for name in names))
        for name in names:
            save_picture(name, DEFAULT, sbd / "img")
            objects, classes = (np.where(m == 255, 0, m).astype(np.uint8) for m in maps(DEFAULT))
            present = [VOC_CLASSES.index(thing.name) + 1 for thing in DEFAULT]
            save_structure(
                sbd / "inst" / f"{name}.mat",
                "GTinst",
                Segmentation=objects,
                Categories=np.array(present, float).reshape(-1, 1),
                Boundaries=boundaries(len(present)),
            )
            save_structure(
                sbd / "cls" / f"{name}.mat",
                "GTcls",
                Segmentation=classes,
                CategoriesPresent=np.array(sorted(set(present)), np.uint8).reshape(-1, 1),
                Boundaries=boundaries(20),
            )


def boundaries(count: int) -> np.ndarray:
    """Returns a cell array of sparse boundary maps."""
    cell = np.empty((count, 1), object)
    for place in range(count):
        cell[place, 0] = csc_matrix(([1.0], ([0], [place])), shape=SIZE)
    return cell


def save_structure(path: Path, variable: str, **fields) -> None:
    savemat(path, {variable: fields}, do_compression=True)


def write_tree(root: Path) -> Path:
    """Writes VOC and SBD below one folder."""
    write_voc(root / "VOCdevkit" / "VOC2012")
    write_sbd(root / "benchmark_RELEASE" / "dataset")
    return root


@contextmanager
def unregistered_afterwards():
    """Removes datasets registered in its block, and restores Detectron2's of the same names."""
    names = [name + suffix for name in SPLITS for suffix in ("", "_sem_seg")]
    before = {}
    for name in names:
        if name in DatasetCatalog.list():
            before[name] = DatasetCatalog[name], MetadataCatalog.get(name).as_dict()
    try:
        yield
    finally:
        for name in names:
            if name in DatasetCatalog.list():
                DatasetCatalog.remove(name)
                MetadataCatalog.pop(name)
        for name, (load, metadata) in before.items():
            DatasetCatalog.register(name, load)
            metadata.pop("name")
            MetadataCatalog.get(name).set(**metadata)
