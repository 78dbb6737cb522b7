"""Each class has the same color in all images."""

import numpy as np
import pytest
import torch
from detectron2.data import Metadata, MetadataCatalog

from rpe_d2.engine.run_classes import drawing_metadata, write_classes
from rpe_d2.engine.setup import load_config
from rpe_d2.visualization import (
    class_colors,
    draw_classes,
    draw_figure,
    image_panel,
    text_panel,
)
from tests.conftest import ROOT

CONFIG = str(ROOT / "configs/semantic/embedding_shapes.yaml")


def test_classes_have_distinct_colors():
    names = ["background", *(f"class {index}" for index in range(20))]
    colors = class_colors(names)
    assert len(set(colors)) == 21 and max(colors[0]) < 60
    assert class_colors(names[:5]) == colors[:5] and class_colors([]) == []


def test_images_of_a_run_share_colors():
    first, second = (drawing_metadata(load_config(CONFIG, []), CONFIG) for _ in range(2))
    assert len(first.stuff_classes) == 5
    assert first.stuff_colors == second.stuff_colors == class_colors(first.stuff_classes)


def test_names_with_dollar_signs_are_drawn_as_they_are():
    """matplotlib would read them as mathematics, and fail."""
    names = ["$\\frac$", "a $5 b $6 c"]
    labels = torch.zeros(60, 80, dtype=torch.long)
    labels[:, 40:] = 1
    image = np.zeros((60, 80, 3), np.uint8)
    drawn = draw_classes(image, labels, Metadata(stuff_classes=names), 4.0)
    plain = draw_classes(image, labels, Metadata(stuff_classes=["", ""]), 4.0)
    assert drawn.shape == plain.shape == (240, 320, 3)
    panels = [text_panel(names[0], names), image_panel(image, names[0], names[1])]
    assert draw_figure([panels], f"folder/{names[0]}\udcff.png", (60, 80)).startswith(b"\x89PNG")


def test_colors_of_the_dataset_take_precedence(tmp_path):
    metadata = MetadataCatalog.get("two_colors")
    metadata.set(stuff_classes=["background", "thing"], stuff_colors=[(1, 2, 3), (4, 5, 6)])
    try:
        result = drawing_metadata(load_config(CONFIG, []), CONFIG, "two_colors")
        assert list(map(tuple, result.stuff_colors[:2])) == [(1, 2, 3), (4, 5, 6)]
        assert result.stuff_colors[2:] == class_colors(result.stuff_classes)[2:]
        assert len(result.stuff_colors) == 5
        # The record of a run keeps them for drawing without the dataset.
        cfg = load_config(CONFIG, ["DATASETS.TEST", "('two_colors',)", "OUTPUT_DIR", str(tmp_path)])
        write_classes(cfg)
        (tmp_path / "config.yaml").write_text(cfg.dump())
        handed_on = drawing_metadata(cfg, str(tmp_path / "config.yaml"))
        assert list(map(tuple, handed_on.stuff_colors[:2])) == [(1, 2, 3), (4, 5, 6)]
    finally:
        MetadataCatalog.remove("two_colors")


@pytest.mark.parametrize("scale", [1, 2])
def test_a_class_is_painted_where_it_is(scale):
    metadata = Metadata(stuff_classes=["background", "thing"])
    metadata.stuff_colors = class_colors(metadata.stuff_classes)
    rgb = np.full((120, 160, 3), 200, np.uint8)
    labels = torch.zeros(120, 160, dtype=torch.int64)
    labels[20:100, 90:140] = 1
    labels[:, :10] = 255  # not a class
    drawn = draw_classes(rgb, labels, metadata, scale).astype(int)
    assert drawn.shape == (scale * 120, scale * 160, 3)
    for (row, column), color in (((30, 130), metadata.stuff_colors[1]), ((112, 20), (40, 40, 40))):
        expected = 0.8 * np.array(color) + 0.2 * 200
        assert abs(drawn[scale * row, scale * column] - expected).max() <= 2
    assert (abs(drawn[:, : scale * 5] - 200) <= 2).all()
    again = draw_classes(rgb, labels, metadata, scale)
    assert np.array_equal(drawn, again)
