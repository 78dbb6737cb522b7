"""The plugin for napari: its description, and its functions without a display."""

import numpy as np
import pytest

from rpe_d2.engine.setup import load_config
from rpe_d2.inference import Segmenter
from rpe_d2.inference.napari_plugin import get_reader, segment, write_objects
from tests.conftest import ROOT
from tests.helpers.environment import required
from tests.helpers.runs import CONFIG, TINY, save_random


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder of a training, with random weights."""
    folder = tmp_path_factory.mktemp("model")
    save_random(CONFIG, TINY, folder / "model_final.pth")
    cfg = load_config(CONFIG, [*TINY, "TEST.MIN_SCORE", "0.0"])
    (folder / "config.yaml").write_text(cfg.dump())
    return str(folder)


def picture(seed, *shape):
    image = np.random.default_rng(seed).integers(0, 99, shape, dtype=np.uint8)
    image[..., 10:30, 10:40] += 100
    return image


def test_the_description_names_functions_that_exist():
    npe2 = required("npe2", "-e '.[dev]'")
    manifest = npe2.PluginManifest.from_file(ROOT / "rpe_d2" / "napari.yaml")
    assert manifest.name == "rpe_d2"
    manifest.validate_imports()


def test_a_plane_and_a_stack(model):
    plane = picture(0, 48, 64)
    labels, attributes, kind = segment(plane, model)
    found = Segmenter.load(model).predict(plane)
    assert kind == "labels" and np.array_equal(labels, found.labels)
    features = attributes["features"]
    assert features["index"] == list(range(len(found) + 1))
    assert features["score"][1:] == pytest.approx(found.scores.tolist())
    stack = np.stack([plane, picture(1, 48, 64)])
    labels, attributes, _ = segment(stack, model)
    assert labels.shape == stack.shape and np.array_equal(labels[0], found.labels)
    used = [set(np.unique(part)) - {0} for part in labels]
    assert not used[0] & used[1]
    assert sorted(used[0] | used[1]) == attributes["features"]["index"][1:]
    colors = np.stack([plane] * 3, axis=-1)
    assert np.array_equal(segment(colors, model, is_rgb=True)[0], found.labels)


def test_objects_are_written_and_read(model, tmp_path):
    labels, attributes, _ = segment(picture(0, 48, 64), model)
    for suffix in ("npz", "geojson", "zip", "csv", "json"):
        path = str(tmp_path / f"objects.{suffix}")
        assert write_objects(path, labels, attributes) == [path]
        assert write_objects(path, labels, attributes) == [path]  # napari has asked
    read = get_reader(str(tmp_path / "objects.npz"))
    ((again, attributes, kind),) = read(str(tmp_path / "objects.npz"))
    assert kind == "labels" and np.array_equal(again, labels)
    assert attributes["name"] == "objects"
    np.savez(tmp_path / "other.npz", a=labels)
    for name in ("other.npz", "objects.csv", "none.npz"):
        assert get_reader(str(tmp_path / name)) is None
    with pytest.raises(ValueError, match="allowed: whole numbers from 0, .H, W."):
        write_objects(str(tmp_path / "stack.npz"), np.stack([labels] * 2), {})
