"""Finding images, the overrides after them, proposals as instances, and weights that fit."""

import argparse

import pytest
import torch
from detectron2.structures import Boxes, Instances

from rpe_d2.engine.setup import load_config
from rpe_d2.inference.predictor import (
    Predictor,
    find_images,
    separate_overrides,
    with_instances,
)
from tests.helpers.runs import CONFIG, TINY, save_random


@pytest.fixture
def folder(tmp_path):
    for name in ("b.PNG", "a.jpg", "notes.txt", "below/c.tif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    return tmp_path


def test_images_are_found_in_folders_by_name_and_by_glob(folder):
    def found(*patterns):
        paths = find_images([str(folder / pattern) for pattern in patterns])
        return [path.removeprefix(f"{folder}/") for path in paths]

    assert found(".") == ["a.jpg", "b.PNG"]  # sorted, no other files, no subfolders
    assert found("notes.txt", "b.PNG") == ["notes.txt", "b.PNG"]  # as the user names them
    assert found("b.PNG", "[ab].*", "b.PNG") == ["b.PNG", "a.jpg"]  # each once
    assert found("**/*.tif") == ["below/c.tif"]
    assert found("b*") == ["b.PNG"]  # the folder that matches is no image
    (folder / "[1].png").write_text("")
    assert found("[1].png") == ["[1].png"]  # a file with the characters of a glob


@pytest.mark.parametrize("pattern", ["none.png", "*.bmp", "empty"])
def test_a_pattern_without_images_is_named(pattern, folder):
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match=r"^--input .*: no image found$") as error:
        find_images([str(folder), str(folder / pattern)])
    assert str(folder / pattern) in str(error.value)


@pytest.mark.parametrize(
    "given, images, opts",
    [
        (["a.png"], ["a.png"], []),
        (["a.png", "SEED", "1"], ["a.png"], ["SEED", "1"]),
        (["a.png", "MODEL.DEVICE", "cpu"], ["a.png"], ["MODEL.DEVICE", "cpu"]),
        (["MODEL.RPE", "a.png"], ["MODEL.RPE", "a.png"], []),  # a file of that name
        (None, None, []),
    ],
)
def test_overrides_after_the_images_are_separated(given, images, opts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "MODEL.RPE").write_text("")
    args = argparse.Namespace(input=given, opts=["X", "Y"])
    separate_overrides(args)
    assert (args.input, args.opts) == (images, [*opts, "X", "Y"])


def test_proposals_become_instances_of_the_first_class():
    proposals = Instances((20, 30))
    proposals.proposal_boxes = Boxes(torch.tensor([[2.0, 4, 10, 16], [0, 0, 30, 20]]))
    proposals.objectness_logits = torch.tensor([0.0, -2.0])
    boxes_alone = with_instances({"proposals": proposals})["instances"]
    assert boxes_alone.scores.tolist() == pytest.approx([0.5, 0.1192], abs=1e-4)
    assert boxes_alone.pred_classes.tolist() == [0, 0] and not boxes_alone.has("pred_masks")
    # One mask fills its box, the other one the left half of it.
    proposals.proposal_masks = torch.zeros(2, 8, 8, dtype=torch.uint8)
    proposals.proposal_masks[0] = 255
    proposals.proposal_masks[1, :, :4] = 255
    masks = with_instances({"proposals": proposals})["instances"].pred_masks
    assert masks.dtype == torch.bool and masks.shape == (2, 20, 30)
    assert masks[0].sum() == 8 * 12 and masks[0, 4:16, 2:10].all()
    # Masks fade out at the border of their boxes.
    assert masks[1, 2:18, 2:14].all() and not masks[1, :, 16:].any()


def test_outputs_with_instances_or_without_proposals_stay_as_they_are():
    for output in ({"sem_seg": 1}, {"proposals": 1, "instances": 2}):
        assert with_instances(output) is output


def test_weights_have_to_be_named_exist_and_fit(tmp_path):
    cfg = load_config(CONFIG, TINY)
    for weights, message in (("", "no weights: give --weights"), ("none.pth", "no such file")):
        cfg.MODEL.WEIGHTS = weights
        with pytest.raises(ValueError, match=message):
            Predictor(cfg)
    cfg.MODEL.WEIGHTS = save_random(CONFIG, TINY, tmp_path / "right.pth")
    stored = torch.load(cfg.MODEL.WEIGHTS, weights_only=True)
    stored = stored.get("model", stored)
    loaded = Predictor(cfg).model.state_dict()
    assert stored and all(torch.equal(loaded[name], value) for name, value in stored.items())
    name = next(name for name, value in stored.items() if value.dim() > 1)
    torch.save({"model": {n: v for n, v in stored.items() if n != name}}, cfg.MODEL.WEIGHTS)
    with pytest.raises(ValueError, match="right.pth"):
        Predictor(cfg)
