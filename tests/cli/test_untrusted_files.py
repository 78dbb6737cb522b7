"""Code in files of others does not run. Weights: tests/engine/test_checkpoint.py."""

import json
import pickle
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rpe_d2.cli import visualize
from rpe_d2.cli.main import COMMANDS
from rpe_d2.cli.train_net import main
from rpe_d2.data import render_shapes
from tests.conftest import ROOT
from tests.helpers.runs import Payload, save_random, train_net

INSTANT = str(ROOT / "configs/quick/rpe_instant_test.yaml")


def error_line(capfd, run, *arguments) -> str:
    with pytest.raises(SystemExit) as stop:
        run([str(argument) for argument in arguments])
    assert stop.value.code == 2
    error = capfd.readouterr().err
    assert "Traceback" not in error, error
    return error.strip().splitlines()[-1]


def test_a_configuration(tmp_path, capfd):
    trap = tmp_path / "trap"
    config = tmp_path / "config.yaml"
    path = f"!!python/object/apply:pathlib.Path ['{trap}']"
    config.write_text(f"OUTPUT_DIR: !!python/object/apply:pathlib.Path.touch [{path}]\n")
    line = error_line(capfd, main, "--config-file", config, "OUTPUT_DIR", tmp_path / "out")
    assert "python/object/apply" in line and not trap.exists()


def test_weights(tmp_path, capfd):
    trap = tmp_path / "trap"
    torch.save({"model": Payload(trap)}, tmp_path / "weights.pth")
    for flags in ((), ("--eval-only",)):
        line = error_line(
            capfd, main, "--config-file", INSTANT, *flags, "MODEL.DEVICE", "cpu",
            "OUTPUT_DIR", tmp_path / "out", "MODEL.WEIGHTS", tmp_path / "weights.pth",
        )  # fmt: skip
        assert "weights.pth: not a checkpoint" in line and not trap.exists()


def test_a_checkpoint_to_resume(tmp_path, capfd):
    trap, output = tmp_path / "trap", tmp_path / "out"
    output.mkdir()
    torch.save({"model": Payload(trap)}, output / "model_0000001.pth")
    torch.save({"model": Payload(trap)}, output / "model_best.pth")
    (output / "last_checkpoint").write_text("model_0000001.pth")
    line = error_line(
        capfd, main, "--resume", "--config-file", INSTANT, "MODEL.DEVICE", "cpu",
        "OUTPUT_DIR", output, "TEST.BEST_METRIC", "segm/AP",
    )  # fmt: skip
    assert "no checkpoint can be read" in line and not trap.exists()


def test_predictions(tmp_path, capfd):
    trap = tmp_path / "trap"
    predictions = tmp_path / "predictions.json"
    predictions.write_bytes(pickle.dumps([Payload(trap)]))
    line = error_line(
        capfd, visualize.main, "--config-file", INSTANT, "--dataset", "shapes_val",
        "--predictions", predictions, "--output", tmp_path / "pictures",
    )  # fmt: skip
    assert "predictions.json" in line and not trap.exists()


def test_proposals(tmp_path, capfd):
    """Detectron2 would unpickle them together with the code that they contain."""
    trap, path = tmp_path / "trap", tmp_path / "proposals.pkl"
    boxes = {"ids": [1], "boxes": [np.zeros((1, 4))]}
    path.write_bytes(pickle.dumps({**boxes, "objectness_logits": [Payload(trap)]}))
    line = error_line(
        capfd, main, "--config-file", INSTANT, "MODEL.DEVICE", "cpu",
        "OUTPUT_DIR", tmp_path / "out",
        "MODEL.LOAD_PROPOSALS", "True", "DATASETS.PROPOSAL_FILES_TRAIN", f"('{path}',)",
    )  # fmt: skip
    assert "DATASETS.PROPOSAL_FILES_TRAIN" in line and "proposals.pkl" in line and not trap.exists()


# The arguments of every command that takes a configuration. {weights} are good, {trap} runs code.
WITH_CONFIG = {
    "train": "--config-file {config} KEYS",
    "train --eval-only": "--config-file {config} --eval-only KEYS MODEL.WEIGHTS {weights}",
    "predict": "{image} --model {config} --weights {weights} --output {out} --opts KEYS",
    "demo": "--config-file {config} --weights {weights} --input {image} --output {out} KEYS",
    "visualize": "--config-file {config} --weights {weights} --dataset shapes_val --num-images 1 "
    "--output {out} KEYS",
    "compare": "{config}={weights} --dataset shapes_val --num-images 1 --output {out} --opts KEYS",
    "refine-masks": "--config-file {config} --weights {weights} --input {trap} --images {folder} "
    "--output {out}/refined.json KEYS",
    "propagate-video": "{image} --model spn/tpn.yaml --weights {weights} --keys {image} "
    "--output {out} --opts KEYS",
    "benchmark model": "{config} --height 64 --width 64 --data 1 --opts KEYS",
    "benchmark proposals": "{config} --height 64 --width 64 --opts KEYS",
    "benchmark processes": "{config} --processes 1 --height 64 --width 64 --opts KEYS",
}
# "serve" loads models as "predict" does, and would wait for visitors.
WITHOUT_CONFIG = {
    *("serve", "models", "convert", "evaluate", "eval-bsds", "fit", "prepare-voc", "split-coco"),
    "refine",
}
FILES = {
    "proposals": "MODEL.LOAD_PROPOSALS True DATASETS.PROPOSAL_FILES_TRAIN ('{trap}',) "
    "DATASETS.PROPOSAL_FILES_TEST ('{trap}',)",
    "weights": "MODEL.WEIGHTS {trap}",
    "VGG weights": "MODEL.BACKBONE.NAME build_vgg16_backbone MODEL.VGG.WEIGHTS {trap}",
    "timm weights": "MODEL.BACKBONE.NAME build_timm_backbone MODEL.TIMM.WEIGHTS {trap}",
}


def test_all_commands_are_listed():
    assert {command.split()[0] for command in WITH_CONFIG} | WITHOUT_CONFIG == set(COMMANDS)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    return save_random(INSTANT, ["MODEL.DEVICE", "cpu"], path)


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("command", WITH_CONFIG)
def test_every_command_with_a_configuration(command, kind, weights, tmp_path, capfd, monkeypatch):
    """Detectron2 opens some files itself, long after the configuration is checked."""
    monkeypatch.chdir(tmp_path)
    trap, evil, image = (tmp_path / name for name in ("trap", "evil.pkl", "image.png"))
    boxes = {"ids": [1], "boxes": [np.zeros((1, 4))]}
    evil.write_bytes(pickle.dumps({**boxes, "objectness_logits": [Payload(trap)]}))
    Image.fromarray(render_shapes("val", 0)).save(image)
    keys = f"{FILES[kind]} MODEL.DEVICE cpu SOLVER.MAX_ITER 1 OUTPUT_DIR {{out}}/run"
    text = WITH_CONFIG[command].replace("KEYS", keys)
    if kind == "weights":
        text = text.replace("{weights}", "{trap}")
    arguments = text.format(
        config=INSTANT, weights=weights, trap=evil, image=image, folder=tmp_path, out=tmp_path / "o"
    )
    name, *subcommand = command.split()
    if name == "benchmark":
        arguments = f"{subcommand[0]} {arguments}"
    elif subcommand:
        assert subcommand[0] in arguments
    try:
        import_module(COMMANDS[name].module).main(arguments.split())
    except SystemExit as stop:
        assert stop.code in (0, 1, 2)
    output = capfd.readouterr()
    assert not trap.exists() and "Traceback" not in output.err, output.err
    if (command, kind) == ("compare", "proposals"):
        assert "evil.pkl: it asks for pathlib" in output.out


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_of_a_refiner(tmp_path, capsys, suffix):
    trap, weights = tmp_path / "trap", tmp_path / f"weights{suffix}"
    torch.save({"model": Payload(trap)}, weights)
    Image.fromarray(render_shapes("val", 0)).save(tmp_path / "image.png")
    Image.fromarray(np.zeros((128, 128), np.uint8)).save(tmp_path / "labels.png")
    arguments = [tmp_path / "image.png", tmp_path / "labels.png", "--output", tmp_path / "out"]
    with pytest.raises(SystemExit) as stop:
        import_module(COMMANDS["refine"].module).main(
            [*map(str, arguments), "--weights", str(weights)]
        )
    error = capsys.readouterr().err
    assert stop.value.code == 2 and not trap.exists()
    assert weights.name in error and "Traceback" not in error


def test_weights_that_spread_strokes(tmp_path, capfd):
    trap, weights, image = (tmp_path / name for name in ("trap", "weights.pth", "image.png"))
    torch.save({"model": Payload(trap)}, weights)
    Image.fromarray(render_shapes("val", 0)).save(image)
    refiner = ["--spn", ROOT / "configs/spn/refiner_shapes.yaml", "--spn-weights", weights]
    line = error_line(
        capfd, import_module(COMMANDS["propagate-video"].module).main,
        image, "--model", "flow", "--strokes", image, "--output", tmp_path / "out", *refiner,
    )  # fmt: skip
    assert "weights.pth: not a checkpoint" in line and not trap.exists()


def test_a_cache_of_annotations(tmp_path):
    """Detectron2 caches annotations in COCO's format, as JSON, beside the predictions."""
    trap, output = tmp_path / "trap", tmp_path / "out"
    options = ["--config-file", INSTANT, "MODEL.DEVICE", "cpu", "SOLVER.MAX_ITER", 1]
    options += ["OUTPUT_DIR", output]
    # In new processes, because Detectron2 remembers the path of a cache.
    assert train_net(*options).returncode == 0
    caches = list(output.rglob("*coco_format.json"))
    assert caches
    for cache in caches:
        json.loads(cache.read_text())  # no pickle
        cache.write_bytes(pickle.dumps(Payload(trap)))
    again = train_net("--resume", *options, "SOLVER.MAX_ITER", 2)
    assert again.returncode == 0 and not trap.exists()


def test_the_payload_works(tmp_path):
    trap = tmp_path / "trap"
    pickle.loads(pickle.dumps(Payload(trap)))
    assert trap.exists() and isinstance(trap, Path)
