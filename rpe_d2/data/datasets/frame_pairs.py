"""Pictures of which pairs of video frames are made, named in ``DATASETS.FRAME_PAIRS``."""

import functools
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from detectron2.data import DatasetCatalog, MetadataCatalog

from rpe_d2.utils.image_files import IMAGE_SUFFIXES, list_images
from rpe_d2.utils.label_maps import LABEL_SUFFIXES

__all__ = ["register_frame_pairs"]

_KEY = "DATASETS.FRAME_PAIRS"


class _Folders(NamedTuple):
    images: str
    labels: Optional[str]


def register_frame_pairs(entries: Sequence[str]) -> None:
    """Registers datasets of pictures of which :class:`rpe_d2.data.FramePairMapper` makes pairs.

    Label maps give the regions that move as layers; their classes do not matter, and 255 is
    unknown. They have the names of the pictures. A picture without a label map is used as well.
    Entries that this process has already registered are skipped.

    Args:
        entries: ``"name=images/"`` or ``"name=images/:labels/"``.

    Raises:
        ValueError: An entry is wrong, a folder has no pictures, no picture has a label map, or
            another dataset has the name.
        FileNotFoundError: A folder is missing.
    """
    for entry in entries:
        name, folders = _parse_entry(entry)
        where = f"{_KEY}: {entry!r}"
        if name in DatasetCatalog.list():
            if MetadataCatalog.get(name).get("frame_pairs") == folders:
                continue
            raise ValueError(
                f"{where}: the name {name!r} is taken by another dataset; choose one that is not "
                "registered yet"
            )
        records = _records(where, folders)
        DatasetCatalog.register(name, functools.partial(_copies, records))
        MetadataCatalog.get(name).set(frame_pairs=folders, evaluator_type="frame_pairs")


def _parse_entry(entry: str) -> Tuple[str, _Folders]:
    name, _, rest = entry.partition("=") if isinstance(entry, str) else ("", "", "")
    parts = [part.strip() for part in rest.split(":")]
    if not name.strip() or len(parts) not in (1, 2) or not all(parts):
        raise ValueError(
            f"{_KEY}: malformed entry {entry!r}; allowed: 'name=images/' or 'name=images/:labels/'"
        )
    paths = [str(Path(part).expanduser()) for part in parts]
    return name.strip(), _Folders(paths[0], paths[1] if len(paths) == 2 else None)


def _records(where: str, folders: _Folders) -> List[Dict[str, Any]]:
    for folder in folders:
        if folder is not None and not Path(folder).is_dir():
            raise FileNotFoundError(f"{where}: there is no folder {folder}")
    images = [Path(path) for path in list_images(folders.images, recursive=True)]
    if not images:
        raise ValueError(f"{where}: {folders.images} has no images ({', '.join(IMAGE_SUFFIXES)})")
    labels: Dict[Path, Path] = {}
    if folders.labels is not None:
        root = Path(folders.labels)
        labels = {
            path.relative_to(root).with_suffix(""): path
            for path in sorted(root.rglob("*"))
            if path.suffix.lower() in LABEL_SUFFIXES
        }
    records = []
    for image in images:
        relative = image.relative_to(folders.images).with_suffix("")
        record = {"file_name": str(image), "image_id": str(relative)}
        if relative in labels:
            record["sem_seg_file_name"] = str(labels[relative])
        records.append(record)
    if folders.labels is not None and not any("sem_seg_file_name" in r for r in records):
        raise ValueError(
            f"{where}: no picture has a label map; there is no "
            f"{Path(folders.labels) / records[0]['image_id']}{LABEL_SUFFIXES[0]}"
        )
    return records


def _copies(records: List[Dict[str, Any]]) -> List[Dict[str, Any]]:
    # Detectron2's loaders may change the dicts, so that every caller gets its own.
    return [dict(record) for record in records]
