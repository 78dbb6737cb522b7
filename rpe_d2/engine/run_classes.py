"""The names and ids of a run's classes, stored beside its configuration.

They label visualizations if the data of the run are not available.
"""

import json
from pathlib import Path
from typing import Any, Dict, List, Optional

from detectron2.config import CfgNode
from detectron2.data import Metadata, MetadataCatalog

from rpe_d2.utils.files import replacing_file
from rpe_d2.utils.json_text import parse_json, read_text
from rpe_d2.visualization import class_colors

from .datasets import number_of_classes

FILE = "classes.json"
_NAMES = ("thing_classes", "stuff_classes")
_LISTS = (*_NAMES, "stuff_colors", "category_ids")


def write_classes(cfg: CfgNode) -> None:
    """Writes ``OUTPUT_DIR/classes.json``, which describes the classes of a run's data sets.

    The file holds up to four lists in the order of the model's classes. "thing_classes" and
    "stuff_classes" are the names. "stuff_colors" are RGB in 0-255. "category_ids" are the ids of
    the things in the data. Lists that no data set provides are left out.
    """
    known: Dict[str, Any] = {}
    for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        metadata = MetadataCatalog.get(name)
        lists = {kind: metadata.get(kind) for kind in (*_NAMES, "stuff_colors")}
        ids = metadata.get("thing_dataset_id_to_contiguous_id")
        lists["category_ids"] = sorted(ids, key=ids.get) if ids else None
        known = {**{kind: values for kind, values in lists.items() if values}, **known}
    with replacing_file(Path(cfg.OUTPUT_DIR) / FILE) as file:
        file.write((json.dumps(known, indent=1) + "\n").encode())


def read_classes(config_file: str) -> Optional[Dict[str, Any]]:
    """Reads the file that :func:`write_classes` wrote beside a configuration.

    Args:
        config_file: the path of the configuration.

    Returns:
        The lists of the file, or None if there is no such file.

    Raises:
        ValueError: The file holds something else.
    """
    path = Path(config_file).with_name(FILE)
    if not path.exists():
        return None
    try:
        known = parse_json(read_text(path), path)
        if not all(isinstance(known.get(key, []), list) for key in _LISTS):
            raise TypeError("not lists")
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} does not hold the classes of a run ({error}); it may be deleted"
        ) from error
    return known


def drawing_metadata(cfg: CfgNode, config_file: str, dataset: Optional[str] = None) -> Metadata:
    """Returns names for all classes of a model, and colors for its semantic maps.

    A class without a known name is called "class 3" and so on.

    Args:
        cfg: the configuration.
        config_file: its path, beside which the run may have written its classes.
        dataset: the registered data set whose images are drawn. Its names take precedence.
    """
    known = read_classes(config_file)
    if dataset or known is None:
        name = dataset or next(iter(cfg.DATASETS.TEST), "__unused")
        known = MetadataCatalog.get(name).as_dict()
    elif "category_ids" in known:
        ids = {category: index for index, category in enumerate(known.pop("category_ids"))}
        known["thing_dataset_id_to_contiguous_id"] = ids
    for kind, count in number_of_classes(cfg).items():
        names = list(known.get(kind) or [])
        known[kind] = names + [f"class {index}" for index in range(len(names), count)]
    # Without colors, Detectron2 would choose different ones for each image.
    colors = list(known.get("stuff_colors") or [])
    known["stuff_colors"] = colors + class_colors(known.get("stuff_classes") or [])[len(colors) :]
    return Metadata(**known)


def class_names(classes: List[int], metadata: Metadata) -> List[str]:
    """Returns a label for each class: its name, or "" if the data have a single class.

    Args:
        classes: indices of classes.
        metadata: as :func:`drawing_metadata` returns it.
    """
    known = metadata.get("thing_classes")
    if known is not None and len(known) == 1:
        return [""] * len(classes)
    return [known[c] if known is not None and c < len(known) else f"class {c}" for c in classes]
