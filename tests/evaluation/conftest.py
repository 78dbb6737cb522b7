"""Fixtures of evaluator tests."""

import json

import pycocotools.mask as mask_util
import pytest
from detectron2.data import MetadataCatalog

from tests.helpers.squares import LARGE, MEDIUM, SIZE, SMALL, square_mask


@pytest.fixture
def dataset(tmp_path):
    """A registered dataset whose image 1 has a small and a large square, and image 2 a medium one.

    Image 2 also has a crowd. The class of an object is the id of its image.
    """
    annotations = []
    for image_id, box, crowd in ((1, SMALL, 0), (1, LARGE, 0), (2, MEDIUM, 0), (2, LARGE, 1)):
        rle = mask_util.encode(square_mask(box))
        rle["counts"] = rle["counts"].decode()
        x0, y0, x1, y1 = box
        annotations.append(
            {
                "id": len(annotations) + 1,
                "image_id": image_id,
                "category_id": image_id,
                "bbox": [x0 - 5, y0, x1 - x0 + 9, y1 - y0],  # larger than the mask
                "area": float((x1 - x0) * (y1 - y0)),
                "iscrowd": crowd,
                "segmentation": rle,
            }
        )
    images = [
        {"id": i, "height": SIZE[0], "width": SIZE[1], "file_name": f"{i}.png"} for i in (1, 2)
    ]
    categories = [{"id": i, "name": str(i)} for i in (1, 2)]
    path = tmp_path / "truth.json"
    path.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    MetadataCatalog.get("squares").json_file = str(path)
    yield "squares"
    MetadataCatalog.remove("squares")
