"""rpe-d2 refine-masks with random weights: formats, interruption and invalid input."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from PIL import Image

from rpe_d2.cli.refine_masks import main
from rpe_d2.cli.refine_results import _image_files
from rpe_d2.cli.stored_predictions import UnusableMask, decode_mask
from rpe_d2.data import load_shapes, render_shapes
from rpe_d2.data.datasets.shapes import _sem_seg
from tests.conftest import ROOT
from tests.helpers.runs import save_random

CONFIG = str(ROOT / "configs/spn/refiner_shapes.yaml")
SMALL = "MODEL.DEVICE cpu INPUT.MIN_SIZE_TEST 128 MODEL.FPN.OUT_CHANNELS 32".split()


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    return save_random(CONFIG, SMALL, tmp_path_factory.mktemp("weights") / "random.pth")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Four images, COCO results and label maps."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "images").mkdir()
    (folder / "maps").mkdir()
    results = []
    for record in load_shapes("val")[:4]:
        number = record["image_id"]
        name = f"{number}.png"
        cv2.imwrite(str(folder / "images" / name), render_shapes("val", number)[:, :, ::-1])
        cv2.imwrite(str(folder / "maps" / name), _sem_seg("val", number))
        for place, annotation in enumerate(record["annotations"]):
            results.append(
                {
                    "image_id": number,
                    "category_id": annotation["category_id"],
                    "score": 0.5 + place / 100,
                    "bbox": annotation["bbox"],
                    "segmentation": annotation["segmentation"],
                    "file_name": name,
                    "mine": "stays",
                }
            )
    # Sorted by score, so that the entries of an image are not consecutive.
    results.sort(key=lambda result: result["score"])
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def arguments(data, weights, output, source="results.json", images="images", more=()):
    return [
        "--config-file", CONFIG, "--weights", weights, "--input", str(data / source),
        "--images", str(data / images), "--output", str(output), *more, *SMALL,
    ]  # fmt: skip


def test_results_keep_their_format(data, weights, tmp_path):
    output = tmp_path / "new" / "refined.json"
    pictures = tmp_path / "pictures"
    call = arguments(data, weights, output, more=["--pictures", str(pictures)])
    # The data sets that the refiner was trained on are not needed.
    without_data = ["DATASETS.COCO_JSONS", "['gone=absent.json']"]
    assert main([*call, *without_data]) == 0
    assert len(list(pictures.iterdir())) == 4
    before, after = json.loads((data / "results.json").read_text()), json.loads(output.read_text())
    assert len(before) == len(after) and list(output.parent.iterdir()) == [output]
    for one, other in zip(before, after):
        assert list(one) == list(other)
        for key in ("image_id", "category_id", "score", "file_name", "mine"):
            assert one[key] == other[key]
        masks = mask_util.decode([one["segmentation"], other["segmentation"]]).astype(bool)
        # Random weights hardly change the masks.
        iou = masks.all(axis=2).sum() / masks.any(axis=2).sum()
        assert 0.6 < iou <= 1
        assert other["bbox"] == mask_util.toBbox(other["segmentation"]).tolist()


def test_file_names_from_annotations_and_every_encoding(data, weights, tmp_path):
    results = json.loads((data / "results.json").read_text())[:3]
    for result in results:
        del result["file_name"], result["bbox"]
    mask = mask_util.decode(results[0]["segmentation"])
    runs = np.diff(np.flatnonzero(np.diff(np.concatenate([[2], mask.T.ravel(), [2]]))))
    first = [] if mask.T.ravel()[0] == 0 else [0]
    results[0]["segmentation"] = {"size": [128, 128], "counts": first + runs.tolist()}
    results[1]["segmentation"] = [[10.0, 10.0, 60.0, 10.0, 60.0, 50.0, 10.0, 50.0]]
    (tmp_path / "results.json").write_text(json.dumps(results))
    images = [{"id": r["image_id"], "file_name": f"{r['image_id']}.png"} for r in results]
    (tmp_path / "annotations.json").write_text(json.dumps({"images": images}))
    output = tmp_path / "refined.json"
    more = ["--annotations", str(tmp_path / "annotations.json")]
    call = arguments(data, weights, output, more=more)
    call[call.index("--input") + 1] = str(tmp_path / "results.json")
    assert main(call) == 0
    refined = json.loads(output.read_text())
    assert all("bbox" not in result for result in refined)
    box = mask_util.toBbox(refined[1]["segmentation"]).tolist()
    assert np.abs(np.array(box) - [10, 10, 50, 40]).max() <= 3
    found = mask_util.decode(refined[0]["segmentation"])
    assert (found & mask).sum() / (found | mask).sum() > 0.6


def image_files(folder, results, images=None):
    arguments = Namespace(input="r.json", images=str(folder / "images"), annotations=None)
    if images is not None:
        arguments.annotations = str(folder / "annotations.json")
        Path(arguments.annotations).write_text(json.dumps({"images": images}))
    return _image_files(results, arguments)


def test_the_file_name_of_an_entry_is_used_before_its_image_id(tmp_path):
    (tmp_path / "images" / "sub").mkdir(parents=True)
    for name in ("a.png", "b.png", "sub/a.png"):
        (tmp_path / "images" / name).touch()
    images = [{"id": 1, "file_name": "b.png"}, {"id": 2, "file_name": "sub/a.png"}]
    a, b = {"image_id": 1, "file_name": "a.png"}, {"image_id": 2}
    root = tmp_path / "images"
    assert image_files(tmp_path, [a, b], images) == {1: root / "a.png", 2: root / "sub/a.png"}
    # The demo writes the names as they were given to it.
    for name in ("images/sub/a.png", "data/images/sub/a.png", str(root / "sub/a.png")):
        files = image_files(tmp_path, [{"image_id": 1, "file_name": name}])
        assert files[1].samefile(root / "sub/a.png")
    with pytest.raises(ValueError, match="entry 1 has image_id 1 and file_name b.png; an earlier"):
        image_files(tmp_path, [a, {"image_id": 1, "file_name": "b.png"}])
    with pytest.raises(ValueError, match="x/a.png and y/a.png are both"):
        names = ("x/a.png", "y/a.png")
        image_files(tmp_path, [{"image_id": n, "file_name": n} for n in names])


def test_an_interrupted_run_is_continued(data, weights, tmp_path):
    expected = tmp_path / "expected.json"
    assert main(arguments(data, weights, expected)) == 0
    output = tmp_path / "refined.json"
    partial = tmp_path / "refined.json.partial"
    command = [sys.executable, "-W", "ignore", str(ROOT / "tools/refine_masks.py")]
    process = subprocess.Popen(
        [*command, *arguments(data, weights, output)], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and not (
        partial.exists() and partial.read_text().count("\n") >= 2
    ):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    # Finished results are kept, and a truncated line is ignored.
    lines = partial.read_text().split("\n")
    assert 3 <= len(lines) <= 6
    partial.write_text("\n".join(lines[:2]) + "\n" + '{"image_id": "3", "refi')
    marked = json.loads(lines[1])
    marked["refined"][0]["mine"] = "from the first run"
    partial.write_text(f"{lines[0]}\n{json.dumps(marked)}\n" + '{"image_id": "3", "refi')
    done = subprocess.run(
        [*command, *arguments(data, weights, output)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "25%" in done.stderr and not partial.exists()
    found = json.loads(output.read_text())
    assert [r["mine"] for r in found].count("from the first run") == 1
    without = [{**r, "mine": "stays"} for r in found]
    assert without == json.loads(expected.read_text())


def test_a_partial_file_of_another_run_is_not_continued(data, weights, tmp_path, capsys):
    output = tmp_path / "refined.json"
    (tmp_path / "refined.json.partial").write_text('{"input": "other"}\n')
    with pytest.raises(SystemExit):
        main(arguments(data, weights, output))
    message = "refined.json.partial belongs to a run with another input, configuration, weights"
    assert message in capsys.readouterr().err
    (tmp_path / "refined.json.partial").write_text("[]\n")
    with pytest.raises(SystemExit):
        main(arguments(data, weights, output))
    assert "refined.json.partial was not written by an interrupted run" in capsys.readouterr().err
    assert not output.exists()


def test_label_maps(data, weights, tmp_path, capsys):
    output = tmp_path / "maps"
    assert main(arguments(data, weights, output, "maps")) == 0
    for number in range(4):
        before = cv2.imread(str(data / "maps" / f"{number}.png"), cv2.IMREAD_UNCHANGED)
        after = cv2.imread(str(output / f"{number}.png"), cv2.IMREAD_UNCHANGED)
        assert after.shape == before.shape and after.dtype == np.uint8
        assert set(np.unique(after)) <= set(np.unique(before))
        assert (after == before).mean() > 0.9


def test_masks_of_0_and_255_are_one_line(data, weights, tmp_path, capsys):
    source = tmp_path / "maps"
    source.mkdir()
    mask = np.zeros((128, 128), np.uint8)
    mask[40:80, 40:80] = 255
    cv2.imwrite(str(source / "0.png"), mask)
    with pytest.raises(SystemExit):
        main(arguments(data, weights, tmp_path / "out", source))
    assert "all pixels are 255 or 0, but 255 means 'unlabeled'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_palettes_and_maps_of_16_bits(data, weights, tmp_path):
    source, output = tmp_path / "maps", tmp_path / "out"
    source.mkdir()
    labels = cv2.imread(str(data / "maps" / "0.png"), cv2.IMREAD_UNCHANGED)
    palette = Image.fromarray(labels)
    palette.putpalette(list(range(255, -1, -1)) * 3)
    palette.save(source / "0.png")
    Image.fromarray(labels.astype(np.uint16) * 1000).save(source / "1.tif")
    np.save(source / "2.npy", labels.astype(np.int32) * 1000)
    for number in (1, 2):  # the same picture, so that the maps have the same result
        shutil.copy(data / "images" / "0.png", tmp_path / f"{number}.png")
    shutil.copy(data / "images" / "0.png", tmp_path / "0.png")
    assert main(arguments(data, weights, output, source, images=tmp_path)) == 0
    first = np.asarray(Image.open(output / "0.png"))
    assert (first == labels).mean() > 0.9 and first.dtype == np.uint8
    for refined in (np.asarray(Image.open(output / "1.tif")), np.load(output / "2.npy")):
        assert refined.dtype == np.uint16 and np.array_equal(refined, first * np.uint16(1000))


def test_maps_of_an_interrupted_run_are_kept_and_other_runs_are_refused(
    data, weights, tmp_path, capsys
):
    output = tmp_path / "maps"

    def error_of(call):
        with pytest.raises(SystemExit):
            main(call)
        return capsys.readouterr().err.strip().split("\n")[-1]

    # A wrong configuration or wrong weights leave no folder behind.
    call = arguments(data, weights, output, "maps")
    assert "allowed: models that refine masks" in error_of(
        [*call, "MODEL.META_ARCHITECTURE", "GeneralizedRCNN"]
    )
    assert "none.pth" in error_of(arguments(data, str(tmp_path / "none.pth"), output, "maps"))
    assert not output.exists()
    # Maps of unknown origin are not taken as results.
    output.mkdir()
    (output / "0.png").write_bytes(b"mine")
    assert "has 0.png and no refine_masks.json" in error_of(call)
    (output / "0.png").unlink()
    assert main(call) == 0
    expected = (output / "2.png").read_bytes()
    (output / "0.png").write_bytes(b"mine")
    (output / "2.png").unlink()
    assert main(call) == 0
    assert "3 of 4 maps are in" in capsys.readouterr().err
    assert (output / "0.png").read_bytes() == b"mine"
    assert (output / "2.png").read_bytes() == expected
    # The error names what has changed.
    (output / "2.png").unlink()
    other_weights = tmp_path / "other.pth"
    other_weights.write_bytes(Path(weights).read_bytes())
    other_maps = tmp_path / "input"
    shutil.copytree(data / "maps", other_maps)
    cv2.imwrite(str(other_maps / "3.png"), np.zeros((128, 128), np.uint8))
    for changed, what in (
        (arguments(data, str(other_weights), output, "maps"), "weights"),
        ([*call, "MODEL.SPN.NUM_UNITS", "1"], "configuration"),
        (arguments(data, weights, output, other_maps), "input"),
        (arguments(data, weights, output, "maps", more=["--sparse"]), "--sparse"),
    ):
        assert f"refine_masks.json belongs to a run with another {what};" in error_of(changed)
    assert not (output / "2.png").exists()


def test_sparse_labels_are_spread(data, weights, tmp_path):
    source, output = tmp_path / "sparse", tmp_path / "dense"
    source.mkdir()
    rng = np.random.default_rng(0)
    for number in range(2):
        truth = cv2.imread(str(data / "maps" / f"{number}.png"), cv2.IMREAD_UNCHANGED)
        sparse = np.where(rng.random(truth.shape) < 0.02, truth, 255).astype(np.uint8)
        cv2.imwrite(str(source / f"{number}.png"), sparse)
    nothing = np.full((128, 128), 255, np.uint8)
    cv2.imwrite(str(source / "2.png"), nothing)
    call = arguments(data, weights, output, more=["--sparse"])
    call[call.index("--input") + 1] = str(source)
    assert main(call) == 0
    for number in range(2):
        truth, sparse, dense = (
            cv2.imread(str(folder / f"{number}.png"), cv2.IMREAD_UNCHANGED)
            for folder in (data / "maps", source, output)
        )
        known = sparse != 255
        assert np.array_equal(dense[known], truth[known])
        assert (dense == truth).mean() > 0.85 and 255 not in dense
    assert np.array_equal(cv2.imread(str(output / "2.png"), cv2.IMREAD_UNCHANGED), nothing)


def _broken(folder, change):
    results = json.loads((folder / "results.json").read_text())[:2]
    change(results)
    return json.dumps(results)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda r: r[1]["segmentation"].update(counts="~~nonsense"), "entry 1 has an RLE mask"),
        (lambda r: r[1]["segmentation"].update(counts=[9, 7]), "entry 1 has RLE runs that sum to"),
        (lambda r: r[1]["segmentation"].update(counts="97"), "sum to 16 in 128 x 128 = 16384"),
        (lambda r: r[1].update(segmentation=[[1, 1, 9, 1, 9, 1e8]]), "entry 1: its mask cannot be"),
        (lambda r: r[1]["segmentation"].update(size=[64, 64]), "entry 1 has RLE runs"),
        (
            lambda r: r[1].update(segmentation={"size": [64, 64], "counts": [4096]}),
            "entry 1: its mask cannot be decoded: an RLE mask of size [64, 64]",
        ),
        (lambda r: r[0].update(segmentation=[[1.0, 2.0]]), "entry 0: its mask cannot be decoded"),
        (lambda r: r[0].pop("segmentation"), "entry 0 has no image_id or no segmentation"),
        (lambda r: r[0].update(image_id=[1]), "entry 0 has image_id [1]; allowed: a number or"),
        (lambda r: r[0].pop("file_name"), "no file_name; give --annotations"),
        (lambda r: r[0].update(file_name="none.png"), "none.png"),
    ],
)
def test_broken_results_are_one_line(data, weights, tmp_path, capsys, change, message):
    (tmp_path / "results.json").write_text(_broken(data, change))
    call = arguments(data, weights, tmp_path / "refined.json")
    call[call.index("--input") + 1] = str(tmp_path / "results.json")
    with pytest.raises(SystemExit) as stopped:
        main(call)
    error = capsys.readouterr().err.strip().split("\n")[-1]
    assert stopped.value.code == 2 and error.startswith("error:") and message in error


def test_other_errors_are_one_line(data, weights, tmp_path, capsys):
    (tmp_path / "text.json").write_text("{")
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd").mkdir()
    cv2.imwrite(str(tmp_path / "odd" / "0.png"), np.zeros((64, 64), np.uint8))
    (tmp_path / "there.json").write_text("mine")
    other = tmp_path / "other.pth"
    torch.save({"model": {"something.weight": torch.zeros(3)}}, other)
    new = tmp_path / "new.json"
    cases = [
        (arguments(data, weights, data / "results.json"), "is the input, which is not overwritten"),
        (arguments(data, weights, tmp_path / "there.json"), "exists already"),
        (arguments(data, weights, new, tmp_path / "none.json"), "no such file or folder"),
        (arguments(data, weights, new, tmp_path / "text.json"), "is not JSON"),
        (arguments(data, weights, new, tmp_path / "empty"), "has no PNG files"),
        (arguments(data, weights, tmp_path / "maps", tmp_path / "odd"), "has the size 64 x 64"),
        (arguments(data, weights, tmp_path / "maps", "maps", tmp_path / "empty"), "no image for 4"),
        (arguments(data, weights, new, more=["--sparse"]), "--sparse is for label maps"),
        (arguments(data, str(other), new), "other.pth"),
        (
            [*arguments(data, weights, new), "MODEL.META_ARCHITECTURE", "GeneralizedRCNN"],
            "MODEL.META_ARCHITECTURE is GeneralizedRCNN; allowed: models that refine masks",
        ),
    ]  # fmt: skip
    for call, message in cases:
        with pytest.raises(SystemExit) as stopped:
            main(call)
        error = capsys.readouterr().err.strip().split("\n")[-1]
        assert stopped.value.code == 2 and error.startswith("error:") and message in error, error
    assert (tmp_path / "there.json").read_text() == "mine"


def test_accuracy_on_held_out_labels(data, weights, tmp_path, capsys):
    """A few labels of complete maps are used; the accuracy on the others is printed."""
    output, pictures = tmp_path / "dense", tmp_path / "pictures"
    more = ["--sparse", "--keep", "300", "--pictures", str(pictures)]
    assert main(arguments(data, weights, output, "maps", more=more)) == 0
    line = capsys.readouterr().out.strip().split("\n")[-1]
    assert line.endswith("% of the labels that were not used are predicted correctly")
    right = counted = 0
    for number in range(4):
        truth, found = (
            cv2.imread(str(folder / f"{number}.png"), cv2.IMREAD_UNCHANGED)
            for folder in (data / "maps", output)
        )
        right, counted = right + (truth == found).sum(), counted + truth.size
    assert float(line.split()[0]) == pytest.approx(
        100 * (right - 1200) / (counted - 1200), abs=0.01
    )
    assert right / counted > 0.8
    assert sorted(path.name for path in pictures.iterdir()) == [f"{n}.png" for n in range(4)]
    with pytest.raises(SystemExit):
        main(arguments(data, weights, tmp_path / "x", "maps", more=["--keep", "5"]))
    assert "--keep is 5; allowed: 1 or more, with --sparse" in capsys.readouterr().err


def test_polygons_of_two_corners_are_no_boxes():
    corners = [[5, 5, 25, 5, 25, 25, 5, 25]]
    expected = decode_mask(corners, (40, 60))
    assert (decode_mask([[1, 2, 30, 20], *corners, []], (40, 60)) == expected).all()
    for polygons in ([], [[]], [[1, 2, 30, 20]], [[1, 2]]):
        with pytest.raises(UnusableMask, match="allowed: polygons of 3 or more corners"):
            decode_mask(polygons, (40, 60))


@pytest.mark.parametrize("content", ["{}", "[]", '{"images": 5}', '{"images": [{"id": [1]}]}'])
def test_annotations_without_file_names(content, data, weights, tmp_path, capfd):
    annotations = tmp_path / "annotations.json"
    annotations.write_text(content)
    call = arguments(data, weights, tmp_path / "a.json", more=["--annotations", str(annotations)])
    with pytest.raises(SystemExit):
        main(call)
    assert f"{annotations} has no list 'images' with id and file_name" in capfd.readouterr().err


@pytest.mark.parametrize("flag", ["--output", "--pictures"])
def test_folders_that_cannot_be_made(flag, data, weights, tmp_path, capfd):
    (tmp_path / "file").write_text("")
    paths = {"--output": tmp_path / "a.json", "--pictures": tmp_path / "b"}
    paths[flag] = tmp_path / "file" / "c"
    more = ["--pictures", str(paths["--pictures"])]
    with pytest.raises(SystemExit):
        main(arguments(data, weights, paths["--output"], more=more))
    assert capfd.readouterr().err.startswith(f"error: {flag} {tmp_path / 'file'}")
