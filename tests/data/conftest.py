"""Fixtures of dataset tests."""

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image


@pytest.fixture
def coco_folder(tmp_path):
    """A folder with the images of :func:`make_content`. Datasets of the test are unregistered."""
    (tmp_path / "images/sub").mkdir(parents=True)
    for name in ("a.png", "sub/b.png"):
        Image.fromarray(np.zeros((16, 20, 3), dtype=np.uint8)).save(tmp_path / "images" / name)
    before = set(DatasetCatalog.list())
    yield tmp_path
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
