"""Segmentation of arrays and files with any model, in real networks with random weights."""

import threading

import cv2
import numpy as np
import pytest
import torch

import rpe_d2
from rpe_d2.inference import Segmenter
from rpe_d2.utils.readable import UnreadableImage
from tests.conftest import ROOT
from tests.helpers.runs import CONFIG, TINY, save_random

MASK_RCNN = str(ROOT / "configs/proposals/mask_rcnn_rpn_shapes.yaml")
BOXES_ONLY = [*TINY, "MODEL.MASK_ON", "False"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save_random(CONFIG, TINY, tmp_path_factory.mktemp("weights") / "rpe.pth")


@pytest.fixture(scope="module")
def segmenter(weights):
    return Segmenter.load(CONFIG, weights, min_score=0.0, opts=TINY)


def picture(size=(64, 96), seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 60, (*size, 3), dtype=np.uint8)
    image[10:30, 10:40] += 120
    return image


def test_it_is_part_of_the_package():
    assert rpe_d2.Segmenter is Segmenter
    with pytest.raises(AttributeError, match="no attribute 'Segmenters'"):
        rpe_d2.Segmenters


def test_arrays_files_and_the_predictor_agree(segmenter, tmp_path):
    """The colors of a file are those that OpenCV stored, and arrays are RGB."""
    image = picture()
    cv2.imwrite(str(tmp_path / "a.png"), image[:, :, ::-1])
    of_array, of_file = segmenter.predict(image), segmenter.predict(tmp_path / "a.png")
    assert len(of_array) > 0
    assert np.array_equal(of_array.labels, of_file.labels)
    assert np.array_equal(of_file.image, image)
    assert (of_array.name, of_file.name) == ("", str(tmp_path / "a.png"))
    instances = segmenter._predictor(segmenter._predictor.reader.convert(image))["instances"]
    assert torch.equal(of_array.instances.scores, instances.scores[: len(of_array)])
    assert of_array.class_names == ("ellipse", "rectangle", "triangle", "star")


def test_a_list_gives_a_list_in_its_order_whatever_the_sizes(segmenter):
    images = [picture((64, 96), 0), picture((64, 64), 1), picture((64, 96), 2)]
    results = segmenter.predict(images)
    for image, result in zip(images, results):
        assert np.array_equal(result.labels, segmenter.predict(image).labels)
    assert segmenter.predict([]) == []


def test_equal_images_go_through_the_network_together(segmenter, monkeypatch):
    batches = []
    run = segmenter._run
    monkeypatch.setattr(
        segmenter, "_run", lambda inputs: batches.append(len(inputs)) or run(inputs)
    )
    segmenter.predict([picture((64, 96), n) for n in range(10)] + [picture((64, 64))])
    assert batches == [8, 2, 1]


def test_gray_deep_and_transparent_arrays(segmenter):
    gray = picture()[:, :, 0]
    labels = segmenter.predict(gray).labels
    assert np.array_equal(segmenter.predict(gray[:, :, None]).labels, labels)
    assert np.array_equal(segmenter.predict(np.dstack([gray] * 3)).labels, labels)
    opaque = np.dstack([gray, gray, gray, np.full_like(gray, 255)])
    assert np.array_equal(segmenter.predict(opaque).labels, labels)
    deep = segmenter.predict(gray.astype(np.uint16) * 257)
    assert deep.image.max() == 255 and deep.image.min() == 0  # by percentiles
    two = np.dstack([gray, np.zeros_like(gray)])
    with pytest.raises(ValueError, match="has 2 channels; choose with INPUT.CHANNELS"):
        segmenter.predict(two)
    assert np.array_equal(segmenter.predict(two, channels="0").labels, labels)


@pytest.mark.parametrize("wrong", [np.zeros(5), np.zeros((2, 3, 4, 5)), np.zeros((4, 0, 3))])
def test_arrays_that_are_no_image(segmenter, wrong):
    with pytest.raises(ValueError, match=r"allowed: numbers of shape \(H, W\) or \(H, W, C\)"):
        segmenter.predict(wrong)


def test_threads_may_share_it(segmenter):
    images = [picture((64, 96), seed) for seed in range(4)]
    expected = [segmenter.predict(image).labels for image in images]
    found = {}
    threads = [
        threading.Thread(target=lambda n=n: found.update({n: segmenter.predict(images[n]).labels}))
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(found[n], expected[n]) for n in range(4))


def test_the_folder_of_a_training(weights, segmenter, tmp_path):
    cfg = rpe_d2.get_cfg("quickstart/rpe_shapes.yaml")
    cfg.merge_from_list(TINY)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    with pytest.raises(ValueError, match="has no weights; allowed: a folder with model_best.pth"):
        Segmenter.load(tmp_path)
    state = torch.load(weights, weights_only=True)
    torch.save(state, tmp_path / "model_0000010.pth")
    (tmp_path / "last_checkpoint").write_text("model_0000010.pth")
    image = picture()
    loaded = Segmenter.load(tmp_path, min_score=0.0)
    assert np.array_equal(loaded.predict(image).labels, segmenter.predict(image).labels)
    state["model"] = {name: 1.1 * value for name, value in state["model"].items()}
    torch.save(state, tmp_path / "model_best.pth")
    best = Segmenter.load(tmp_path, min_score=0.0)
    before = loaded._predictor.model.state_dict()
    assert any(not torch.equal(v, before[k]) for k, v in best._predictor.model.state_dict().items())


def test_mask_rcnn_works_and_models_without_masks_are_refused(tmp_path):
    weights = save_random(MASK_RCNN, TINY, tmp_path / "mask_rcnn.pth")
    result = Segmenter.load(MASK_RCNN, weights, min_score=0.0, opts=TINY).predict(picture())
    assert len(result) > 0 and result.labels.shape == (64, 96)
    weights = save_random(MASK_RCNN, BOXES_ONLY, tmp_path / "boxes.pth")
    boxes = Segmenter.load(MASK_RCNN, weights, min_score=0.0, opts=BOXES_ONLY)
    with pytest.raises(ValueError, match="the model predicts no masks; allowed: models that do"):
        boxes.predict(picture())


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("nuclei/none.yaml",), "There is no configuration file 'nuclei/none.yaml'; the nearest"),
        ((CONFIG,), "no weights: give --weights or MODEL.WEIGHTS"),
        ((CONFIG, "none.pth"), "weights none.pth: no such file"),
    ],
)
def test_wrong_models(arguments, message):
    with pytest.raises(ValueError, match=message):
        Segmenter.load(*arguments, opts=TINY)


def test_a_folder_without_a_configuration(tmp_path):
    with pytest.raises(ValueError, match="has no config.yaml; allowed: the folder of a training"):
        Segmenter.load(tmp_path)
    with pytest.raises(ValueError, match="there is no model nowhere; allowed: the folder of"):
        Segmenter.load("nowhere")


def test_a_file_that_cannot_be_read_is_named(segmenter, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(UnreadableImage, match="a.png"):
        segmenter.predict(tmp_path / "a.png")
