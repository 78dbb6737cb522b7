"""Models that come with rpe_d2: their folders, their 16 bits and the command that lists them."""

from pathlib import Path

import pytest
import torch

from dev import ship_model
from rpe_d2 import get_cfg
from rpe_d2.cli.main import main
from rpe_d2.inference import Segmenter, model_folders
from rpe_d2.inference.model_folders import find_model_folder, shipped_models
from tests.helpers.runs import CONFIG, TINY, save_random


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """The folder of a training with random weights."""
    folder = tmp_path_factory.mktemp("training")
    save_random(CONFIG, TINY, folder / "model_final.pth")
    cfg = get_cfg("quickstart/rpe_shapes.yaml")
    cfg.merge_from_list([*TINY, "OUTPUT_DIR", str(folder)])
    (folder / "config.yaml").write_text(cfg.dump())
    (folder / "classes.json").write_text('{"thing_classes": ["a", "b", "c", "d"]}')
    return folder


@pytest.fixture
def shipped(training, tmp_path, monkeypatch):
    """The folder of a model with its card, made from the training."""
    monkeypatch.setattr(ship_model, "WEIGHTS", tmp_path / "weights")
    monkeypatch.setattr(model_folders, "_SHIPPED", tmp_path / "weights")
    assert ship_model.main([str(training), "cells"]) == 0
    folder = tmp_path / "weights" / "cells"
    (folder / "README.md").write_text("# cells\n\nCells of all kinds.\n\nMore about them.\n")
    return folder


def test_a_shipped_model_predicts_what_the_training_does(training, shipped):
    torch.manual_seed(0)
    image = {"image": torch.randint(0, 255, (3, 64, 96), dtype=torch.uint8)}
    ours, theirs = (Segmenter.load(m, min_score=0.0) for m in ("cells", training))
    assert ours.class_names == ("a", "b", "c", "d")
    states = [s._predictor.model.state_dict() for s in (ours, theirs)]
    assert list(states[0]) == list(states[1])
    for name, value in states[1].items():
        assert states[0][name].dtype == value.dtype
        torch.testing.assert_close(states[0][name], value, rtol=5e-4, atol=1e-6)
    # Vectors, such as the statistics of normalization, are exact.
    assert all(torch.equal(states[0][n], v) for n, v in states[1].items() if v.ndim < 2)
    with torch.no_grad():
        first, second = (s._predictor.model.predict_maps([image])[0] for s in (ours, theirs))
    torch.testing.assert_close(first.logits, second.logits, rtol=0.02, atol=0.02)


def test_its_configuration_names_no_file_of_the_training(training, shipped):
    assert str(training) not in (shipped / "config.yaml").read_text()
    assert sorted(path.name for path in shipped.iterdir()) == [
        "README.md",
        "classes.json",
        "config.yaml",
        "model.safetensors",
    ]


def test_values_that_do_not_fit_16_bits_are_refused():
    with pytest.raises(ValueError, match="a.weight has values beyond 65,504"):
        ship_model.halved({"a.weight": torch.full((2, 2), 1e5)})
    vector = {"running_var": torch.full((2,), 1e5)}
    assert torch.equal(ship_model.halved(vector)["running_var"], vector["running_var"])


def test_a_model_that_is_too_large_is_refused(training, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ship_model, "WEIGHTS", tmp_path / "weights")
    monkeypatch.setattr(ship_model, "_MOST_MEGABYTES", 1)
    assert ship_model.main([str(training), "cells"]) == 2
    assert "MB; allowed: 1 MB" in capsys.readouterr().err
    assert not (tmp_path / "weights" / "cells" / "model.safetensors").exists()


def test_a_folder_of_this_name_is_used_if_it_is_a_model(training, shipped, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cells").mkdir()
    assert find_model_folder("cells") == shipped
    (tmp_path / "cells" / "config.yaml").write_text((training / "config.yaml").read_text())
    assert find_model_folder("cells") == (tmp_path / "cells").relative_to(tmp_path)
    with pytest.raises(ValueError, match="there is no model cell; allowed: .* training, or cells"):
        Segmenter.load("cell")


def test_the_command_lists_models_and_prints_cards(shipped, capsys):
    assert main(["models"]) == 0
    printed = capsys.readouterr().out
    assert "cells" in printed and "Cells of all kinds." in printed
    assert main(["models", "cells"]) == 0
    assert capsys.readouterr().out == (shipped / "README.md").read_text()
    with pytest.raises(SystemExit) as stop:
        main(["models", "cats"])
    assert stop.value.code == 2
    assert "there is no model cats; allowed: cells" in capsys.readouterr().err


def test_the_model_of_nuclei_labels_the_examples():
    """Without a network or other files: 24 coins, and nuclei in three images."""
    segmenter = Segmenter.load("nuclei", device="cpu")
    examples = Path(__file__).resolve().parents[2] / "examples"
    true = {"coins": 24, "nuclei_1": 56, "nuclei_2": 20, "nuclei_3": 183}
    counts = {path.stem: len(segmenter.predict(path)) for path in examples.glob("*.png")}
    assert counts.keys() == true.keys() and counts["coins"] == 24
    assert all(0.8 * true[name] <= count <= true[name] for name, count in counts.items()), counts


def test_the_models_of_the_package_have_cards():
    assert list(shipped_models()) == ["nuclei"]
    for folder in shipped_models().values():
        assert (folder / "README.md").is_file() and (folder / "classes.json").is_file()
        assert sum(path.stat().st_size for path in folder.iterdir()) < 12e6
