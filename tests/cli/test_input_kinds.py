"""Every cell of the table in docs/images.md: what each tool does with each kind of image file."""

import json
import os
import re
from typing import Callable, Dict, List, NamedTuple

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image

from dev.input_kinds import ERROR, IMAGES, INPUT_KINDS, PLANES, TOOLS, WORKS, InputKind
from rpe_d2.cli import compare, demo, predict, refine_masks, train_net, visualize
from rpe_d2.cli.mask_refiner import MaskRefiner
from rpe_d2.data import NameUnreadable, UnreadableImage
from rpe_d2.engine import Trainer
from rpe_d2.engine.setup import read_config
from rpe_d2.inference.predictor import Predictor
from rpe_d2.utils.images import ImageReader
from tests.conftest import ROOT
from tests.helpers.image_kinds import KINDS_OF_FILES, deep_scene, overrides_used, write_all
from tests.helpers.runs import CONFIG, TINY, save_random

INSTANT = str(ROOT / "configs/quick/rpe_instant_test.yaml")
REFINER = str(ROOT / "configs/spn/refiner_shapes.yaml")
SMALL = "MODEL.DEVICE cpu INPUT.MIN_SIZE_TEST 64 MODEL.FPN.OUT_CHANNELS 32".split()
MASK_RCNN = """
MODEL:
  META_ARCHITECTURE: GeneralizedRCNN
  MASK_ON: True
  DEVICE: cpu
  BACKBONE: {NAME: build_resnet_fpn_backbone}
  RESNETS: {DEPTH: 18, RES2_OUT_CHANNELS: 64, OUT_FEATURES: [res2, res3, res4, res5]}
  FPN: {IN_FEATURES: [res2, res3, res4, res5], OUT_CHANNELS: 16}
  RPN: {IN_FEATURES: [p2, p3, p4, p5], POST_NMS_TOPK_TEST: 20}
  ROI_HEADS: {NAME: StandardROIHeads, IN_FEATURES: [p2, p3, p4, p5], NUM_CLASSES: 1}
  ROI_BOX_HEAD: {NAME: FastRCNNConvFCHead, NUM_FC: 1, FC_DIM: 16}
  ROI_MASK_HEAD: {NAME: MaskRCNNConvUpsampleHead, NUM_CONV: 1, CONV_DIM: 8}
  ANCHOR_GENERATOR: {SIZES: [[16], [32], [64], [128]]}
INPUT: {MIN_SIZE_TEST: 64}
DATASETS: {TEST: []}
"""


class Outcome(NamedTuple):
    """What a tool has done with one file: the number of images made from it, and its messages."""

    images: int
    message: str = ""


@pytest.fixture(scope="module")
def names(tmp_path_factory) -> Dict[str, str]:
    """Files of all kinds, by the name of the kind."""
    return write_all(tmp_path_factory.mktemp("kinds"))


def config(path: str, opts) -> CfgNode:
    return read_config(path, ["MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0", *opts])


def record(kind: str, name: str) -> dict:
    height, width = KINDS_OF_FILES[kind].size
    annotation = {
        "category_id": 0,
        "bbox": [4, 4, 20, 20],
        "bbox_mode": BoxMode.XYWH_ABS,
        "segmentation": [[4, 4, 24, 4, 24, 24, 4, 24]],
        "iscrowd": 0,
    }
    size = {"height": height, "width": width}
    return {"file_name": name, "image_id": 1, **size, "annotations": [annotation]}


@pytest.fixture
def dataset(names):
    """Registers a data set of one file for the time of a test."""
    registered: List[str] = []

    def register(kind: str) -> str:
        name = f"kind_{len(DatasetCatalog.list())}"
        DatasetCatalog.register(name, lambda: [record(kind, names[kind])])
        MetadataCatalog.get(name).set(thing_classes=["a"])
        registered.append(name)
        return name

    yield register
    for name in registered:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def assert_not_flat(image: torch.Tensor) -> None:
    """Checks that neither all intensities are 0 nor all of them are 255."""
    assert image.min() < 90 and image.max() > 160 and image.float().std() > 20


def trained(kind: str, names: dict, dataset: Callable) -> None:
    cfg = config(INSTANT, KINDS_OF_FILES[kind].opts)
    mapped = NameUnreadable(Trainer.build_train_mapper(cfg))(record(kind, names[kind]))
    assert_not_flat(mapped["image"])
    assert len(mapped["instances"]) == 1


def evaluated(kind: str, names: dict, dataset: Callable) -> None:
    cfg = config(INSTANT, KINDS_OF_FILES[kind].opts)
    ((item,),) = Trainer.build_test_loader(cfg, dataset(kind))
    assert_not_flat(item["image"])
    assert (item["height"], item["width"]) == KINDS_OF_FILES[kind].size


def compared(kind: str, names: dict, dataset: Callable) -> None:
    evaluated(kind, names, dataset)
    cfg = config(INSTANT, KINDS_OF_FILES[kind].opts)
    page = compare._picture(compare._Data(dataset(kind), 1), ImageReader.from_config(cfg), 0)
    assert page.startswith("data:image/jpeg;base64,")


@pytest.fixture(scope="module")
def refiner_weights(tmp_path_factory) -> str:
    return save_random(REFINER, SMALL, tmp_path_factory.mktemp("refiner") / "random.pth")


@pytest.fixture(scope="module")
def refiners(refiner_weights) -> Dict[tuple, MaskRefiner]:
    opts = [*SMALL, "MODEL.WEIGHTS", refiner_weights]
    return {
        used: MaskRefiner(Predictor(config(REFINER, [*opts, *used])), False)
        for used in overrides_used()
    }


@pytest.fixture(scope="module")
def rcnn(tmp_path_factory) -> List[str]:
    """The arguments that name a small detector and its weights."""
    folder = tmp_path_factory.mktemp("rcnn")
    (folder / "rcnn.yaml").write_text(MASK_RCNN)
    weights = save_random(str(folder / "rcnn.yaml"), [], folder / "random.pth")
    return ["--config-file", str(folder / "rcnn.yaml"), "--weights", weights]


def outcomes(main: Callable, rcnn: list, names: dict, folder, capsys) -> Dict[str, Outcome]:
    """Runs a tool once for each set of overrides, on all files that are read with it."""
    found = {}
    for number, opts in enumerate(overrides_used()):
        used = {kind: names[kind] for kind in names if KINDS_OF_FILES[kind].opts == opts}
        output = folder / str(number)
        assert main([*rcnn, "--input", *used.values(), "--output", str(output), *opts]) == 0
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        lines = printed.err.splitlines()
        written = os.listdir(output)
        for kind in used:
            start = KINDS_OF_FILES[kind].name[:3]
            message = [line for line in lines if "skipped" in line and f"/{start}" in line]
            images = [f for f in written if f.startswith(start)]
            found[kind] = Outcome(len(images), " ".join(message))
    return found


def predicted(rcnn: list, names: dict, folder, capsys) -> Dict[str, Outcome]:
    """Runs predict as :func:`outcomes` runs the others. It reports failures in its exit status."""
    _, config_file, _, weights = rcnn
    found = {}
    for number, opts in enumerate(overrides_used()):
        used = {kind: names[kind] for kind in names if KINDS_OF_FILES[kind].opts == opts}
        output = folder / str(number)
        model = ["--model", config_file, "--weights", weights, "--output", str(output)]
        overrides = ["--opts", *opts] if opts else []
        assert predict.main([*used.values(), *model, "--save", "csv", *overrides]) in (0, 1)
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        lines = printed.out.splitlines()
        for kind in used:
            start = KINDS_OF_FILES[kind].name[:3]
            message = [line for line in lines if "failed: " in line and f"/{start}" in line]
            images = [f for f in os.listdir(output) if f.startswith(start)]
            found[kind] = Outcome(len(images), " ".join(message))
    return found


@pytest.fixture(scope="module")
def drawn(rcnn, names, tmp_path_factory):
    """The outcomes of demo, visualize and predict, each of which ran on all files together."""
    cache: Dict[str, Dict[str, Outcome]] = {}

    def of(tool: str, capsys) -> Dict[str, Outcome]:
        if tool == "predict" and tool not in cache:
            cache[tool] = predicted(rcnn, names, tmp_path_factory.mktemp(tool), capsys)
        if tool not in cache:
            main = {"demo": demo.main, "visualize": visualize.main}[tool]
            cache[tool] = outcomes(main, rcnn, names, tmp_path_factory.mktemp(tool), capsys)
        return cache[tool]

    return of


def test_every_kind_has_a_file():
    assert [kind.name for kind in INPUT_KINDS] == list(KINDS_OF_FILES)


@pytest.mark.parametrize("tool", ["train", "evaluate", "compare"])
@pytest.mark.parametrize("kind", INPUT_KINDS, ids=lambda kind: kind.name)
def test_data_sets(kind: InputKind, tool: str, names, dataset):
    run = {"train": trained, "evaluate": evaluated, "compare": compared}[tool]
    if kind.answer_of[tool] == WORKS:
        run(kind.name, names, dataset)
        return
    assert kind.answer_of[tool] == ERROR
    with pytest.raises(UnreadableImage) as error:
        run(kind.name, names, dataset)
    check_message(kind, str(error.value))


@pytest.mark.parametrize("kind", INPUT_KINDS, ids=lambda kind: kind.name)
def test_refine_masks(kind: InputKind, names, refiners):
    refiner = refiners[KINDS_OF_FILES[kind.name].opts]
    if kind.answer_of["refine-masks"] == WORKS:
        item = refiner.item(names[kind.name])
        assert_not_flat(item["image"])
        mask = np.zeros((1, item["height"], item["width"]), bool)
        assert refiner.masks(item, mask).shape == mask.shape
        assert refiner.drawable(names[kind.name]).shape == (*mask.shape[1:], 3)
        return
    with pytest.raises(UnreadableImage) as error:
        refiner.item(names[kind.name])
    check_message(kind, str(error.value))


@pytest.mark.parametrize("tool", ["demo", "visualize", "predict"])
@pytest.mark.parametrize("kind", INPUT_KINDS, ids=lambda kind: kind.name)
def test_images_from_disk(kind: InputKind, tool: str, drawn, capsys):
    outcome = drawn(tool, capsys)[kind.name]
    counts = {WORKS: 1, PLANES: 3, IMAGES: 1, ERROR: 0}
    assert outcome.images == counts[kind.answer_of[tool]]
    if kind.answer_of[tool] == ERROR:
        check_message(kind, outcome.message)
    else:
        assert not outcome.message


def check_message(kind: InputKind, message: str) -> None:
    assert message and "\n" not in message and kind.remark in message
    assert KINDS_OF_FILES[kind.name].name[:3] in message  # the file


def test_the_tools_are_those_of_the_table():
    covered = {"train", "evaluate", "compare", "refine-masks", "demo", "visualize", "predict"}
    assert covered == set(TOOLS)


def write_data(folder, names: List[str]) -> str:
    size = {"height": deep_scene().shape[0], "width": deep_scene().shape[1]}
    content = {
        "images": [{"id": i, "file_name": name, **size} for i, name in enumerate(names)],
        "annotations": [
            {
                **{"id": i, "image_id": i, "category_id": 1, "iscrowd": 0, "area": 400},
                **{"bbox": [4, 4, 20, 20], "segmentation": [[4, 4, 24, 4, 24, 24, 4, 24]]},
            }
            for i in range(len(names))
        ],
        "categories": [{"id": 1, "name": "a $\\frac$"}],
    }
    (folder / "data.json").write_text(json.dumps(content))
    return json.dumps([f"{folder.name}_{len(names)}={folder}/data.json:{folder}"])


def test_a_run_on_deep_images_and_its_rule_in_prediction(tmp_path, capfd):
    """The command lines of train, demo, visualize and compare, on channels of 16-bit pages."""
    stack = np.stack([deep_scene(), deep_scene()[::-1]])
    np.save(tmp_path / "$a^$stack.npy", stack[..., [0, 1, 2, 0, 1]])
    planes = ["$a^$stack.npy[0]", "$a^$stack.npy[1]"]
    data = write_data(tmp_path, planes)
    name = data.split("=")[0][2:]
    run = tmp_path / "run"
    sets = ["DATASETS.COCO_JSONS", data, "DATASETS.TRAIN", f"('{name}',)"]
    sets += ["DATASETS.TEST", f"('{name}',)"]
    rule = ["INPUT.INTENSITY", "0,4095", "INPUT.CHANNELS", "0,1,4"]
    base = [*sets, "MODEL.DEVICE", "cpu", "MODEL.RPE.NUM_CLASSES", "1", "SOLVER.MAX_ITER", "1"]
    assert train_net.main(["--config-file", INSTANT, *base, "OUTPUT_DIR", str(run), *rule]) == 0
    log = (run / "log.txt").read_text()
    text = "Images are read with INPUT.INTENSITY 0,4095, INPUT.CHANNELS 0,1,4"
    assert log.count(text) == 1

    model = ["--config-file", str(run / "config.yaml"), "--weights", str(run / "model_final.pth")]
    capfd.readouterr()
    output = tmp_path / "out"
    source = ["--input", str(tmp_path / "$a^$stack.npy"), "--output", str(output)]
    assert demo.main([*model, *source, "--confidence-threshold", "0"]) == 0
    assert {"$a^$stack[0].png", "$a^$stack[1].png"} < set(os.listdir(output))
    error = capfd.readouterr().err
    assert error.count("images are scaled to 0 to 255 by INPUT.INTENSITY 0,4095") <= 1
    results = json.loads((output / demo.RESULTS).read_text())
    assert {result["file_name"] for result in results} <= {f"{tmp_path}/{p}" for p in planes}

    shown = ["--dataset", name, "--output", str(tmp_path / "shown"), "--confidence-threshold", "0"]
    assert visualize.main([*model, *shown]) == 0
    assert {"$a^$stack[0].png", "$a^$stack[1].png"} == set(os.listdir(tmp_path / "shown"))
    page = ["--output", str(tmp_path / "page"), "--dataset", name]
    assert compare.main([f"{run}/config.yaml={run}/model_final.pth", *page]) == 0
    assert (tmp_path / "page" / "index.html").read_text().count("data:image/jpeg") == 4


@pytest.mark.parametrize("image_format, channels", [("L", 1), ("HSV", 3)])
def test_models_of_other_formats(image_format, channels, tmp_path):
    Image.fromarray(deep_scene()[:, :, 0]).save(tmp_path / "a.png")
    values = str([100.0] * channels)
    opts = [*TINY, "INPUT.FORMAT", image_format, "MODEL.PIXEL_MEAN", values]
    opts += ["MODEL.PIXEL_STD", values]
    weights = save_random(CONFIG, opts, tmp_path / "random.pth")
    for main in (demo.main, visualize.main):
        output = tmp_path / main.__module__
        arguments = ["--config-file", CONFIG, "--weights", weights, "--input"]
        arguments += [str(tmp_path / "a.png"), "--confidence-threshold", "0"]
        assert main([*arguments, "--output", str(output), *opts]) == 0
        assert (output / "a.png").exists()


@pytest.mark.parametrize(
    "file, words",
    [("pipe.png", "missing"), ("stack.tif", "has 3 planes"), ("five.npy", "INPUT.CHANNELS")],
)
def test_a_training_on_unusable_files_ends_in_one_line(file, words, tmp_path, capfd):
    os.mkfifo(tmp_path / "pipe.png")
    KINDS_OF_FILES["TIFF of 3 pages"].write(tmp_path / "stack.tif")
    np.save(tmp_path / "five.npy", np.zeros((40, 48, 5), np.uint8))
    data = write_data(tmp_path, [file])
    name = data.split("=")[0][2:]
    arguments = ["--config-file", INSTANT, "OUTPUT_DIR", str(tmp_path / "run"), "MODEL.DEVICE"]
    arguments += ["cpu", "MODEL.RPE.NUM_CLASSES", "1", "DATASETS.COCO_JSONS", data]
    arguments += ["DATASETS.TRAIN", f"('{name}',)", "DATASETS.TEST", f"('{name}',)"]
    with pytest.raises(SystemExit) as stop:
        train_net.main(arguments)
    assert stop.value.code == 2
    error = capfd.readouterr().err
    assert "Traceback" not in error
    line = error.strip().splitlines()[-1]
    assert re.match("error: ", line) and words in line and file in line


def test_pipes_in_place_of_other_files_end_in_one_line(rcnn, refiner_weights, tmp_path, capfd):
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    (tmp_path / "results.json").write_text("[]")
    out = ["--output", str(tmp_path / "out")]
    refiner = ["--config-file", REFINER, "--weights", refiner_weights, "--images", str(tmp_path)]
    results = ["--input", str(tmp_path / "results.json"), "--annotations", str(pipe)]
    proposals = ["MODEL.LOAD_PROPOSALS", "True", "DATASETS.PROPOSAL_FILES_TRAIN", f"('{pipe}',)"]
    for main, arguments in (
        (demo.main, [*rcnn, *out, "--video-input", str(pipe)]),
        (refine_masks.main, [*refiner, *out, "--input", str(pipe)]),
        (refine_masks.main, [*refiner, *out, *results]),
        (visualize.main, [*rcnn, *out, "--dataset", "shapes_val", "--predictions", str(pipe)]),
        (train_net.main, ["--config-file", INSTANT, "MODEL.DEVICE", "cpu", *proposals]),
    ):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
        error = capfd.readouterr().err
        assert "Traceback" not in error
        assert error.strip().splitlines()[-1].startswith("error: ")
        assert "pipe.json is a pipe or a device; allowed: a file" in error
