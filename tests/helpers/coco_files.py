"""A small dataset in COCO's format on disk."""

import json
from pathlib import Path
from typing import Any, Dict, Union

POLYGON = [[1, 1, 9, 1, 9, 7, 1, 7]]
# A rectangle of 2 x 3 pixels; the counts run down the columns.
RLE = {"size": [16, 20], "counts": [16, 3, 13, 3, 285]}


def make_content() -> Dict[str, Any]:
    """Returns the content of a valid file, which tests may change."""
    annotation = {"image_id": 5, "category_id": 3, "bbox": [1, 1, 8, 6], "iscrowd": 0, "area": 48}
    return {
        "images": [
            {"id": 5, "file_name": "a.png", "height": 16, "width": 20},
            {"id": 9, "file_name": "sub/b.png", "height": 16, "width": 20},
        ],
        "annotations": [
            dict(annotation, id=1, segmentation=POLYGON),
            dict(annotation, id=2, segmentation=dict(RLE), category_id=70, bbox=[1, 0, 2, 3]),
        ],
        # Ids are neither contiguous nor sorted.
        "categories": [{"id": 70, "name": "zebra"}, {"id": 3, "name": "cell"}],
    }


def entry(folder: Path, content: Union[str, Dict[str, Any]], name: str = "mine") -> str:
    """Writes a file into a folder and returns its entry of DATASETS.COCO_JSONS."""
    path = folder / f"{name}.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return f"{name}={path}:{folder / 'images'}"
