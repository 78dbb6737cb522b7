"""``rpe-d2 refine`` on label maps and on COCO results."""

import json

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from safetensors.torch import save_file

from rpe_d2.cli.main import main as program
from rpe_d2.refinement.network import build_refiner_network
from rpe_d2.utils.probability_maps import read_probabilities
from tests.refinement.conftest import image_of, scene


def main(*arguments) -> int:
    try:
        return program(["refine", *map(str, arguments)])
    except SystemExit as error:  # one_line_errors ends the process
        return error.code


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights that change as much as they are allowed to."""
    torch.manual_seed(1)
    network = build_refiner_network()
    torch.nn.init.normal_(network.output[1].weight, std=2.0)
    torch.nn.init.constant_(network.output[1].bias, 2.0)
    path = tmp_path_factory.mktemp("weights") / "refiner.safetensors"
    save_file(network.state_dict(), path)
    return path


@pytest.fixture
def folders(tmp_path):
    """Images and label maps as PNG, TIFF and NPY, one of them a stack."""
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    labels.mkdir()
    for seed, name in enumerate(("a", "b", "c")):
        Image.fromarray(image_of(scene(seed))).save(images / f"{name}.png")
    Image.fromarray(scene(0).astype(np.uint8)).save(labels / "a_masks.png")
    tifffile.imwrite(labels / "b.tif", scene(1).astype(np.uint32) * 100_000)
    np.save(labels / "c.npy", scene(2).astype(np.int64))
    stack = np.stack([scene(3), scene(4)])
    tifffile.imwrite(images / "d.tif", np.stack([image_of(s)[..., 0] for s in stack]))
    tifffile.imwrite(
        labels / "d.tif",
        stack.astype(np.uint16),
        imagej=True,
        metadata={"axes": "ZYX", "spacing": 2.0, "unit": "um"},
    )
    return images, labels


def npz_folder(output):
    folder = output.parent / "npz"
    folder.mkdir()
    (folder / "a.npz").write_bytes(b"")
    return folder


def test_label_maps_keep_names_and_types_and_are_not_done_twice(folders, weights, tmp_path, capsys):
    images, labels = folders
    output = tmp_path / "output"
    arguments = (images, labels, "--output", output, "--weights", weights)
    assert main(*arguments, "--pictures", tmp_path / "pictures") == 0
    assert "4 of 4 label maps refined" in capsys.readouterr().out
    assert np.array(Image.open(output / "a_masks.png")).dtype == np.uint8
    b = tifffile.imread(output / "b.tif")
    assert b.dtype == np.uint32 and set(np.unique(b)) == set(np.unique(scene(1)) * 100_000)
    assert (b != scene(1) * 100_000).any()
    assert np.load(output / "c.npy").shape == scene(2).shape
    with tifffile.TiffFile(output / "d.tif") as file:
        assert file.asarray().shape == (2, 96, 96)
        assert file.series[0].axes == "ZYX"
    report = json.loads((output / "run" / "report.json").read_text())
    assert len(report["label maps"][str(labels / "d.tif")]) == 2
    assert "refine" in report["command"] and not report["failures"]
    assert len(list((tmp_path / "pictures").iterdir())) == 5
    before = (output / "b.tif").stat().st_mtime_ns
    (output / "c.npy").unlink()
    assert main(*arguments) == 0
    out = capsys.readouterr().out
    assert "1 of 4 label maps refined" in out and "3 were done before" in out
    assert (output / "b.tif").stat().st_mtime_ns == before
    assert main(*arguments, "--max-shift", 2) == 2
    assert "another max_shift" in capsys.readouterr().err


def test_one_file(folders, weights, tmp_path):
    images, labels = folders
    output = tmp_path / "one"
    assert (
        main(images / "a.png", labels / "a_masks.png", "--output", output, "--weights", weights)
        == 0
    )
    assert (output / "a_masks.png").exists()


def test_probabilities(folders, weights, tmp_path, capsys):
    images, _ = folders
    source, output = tmp_path / "maps", tmp_path / "output"
    source.mkdir()
    for seed, name in enumerate(("a", "b", "c")):
        soft = np.eye(scene(seed).max() + 1, dtype=np.float16)[scene(seed)].transpose(2, 0, 1)
        np.savez(source / f"{name}.npz", probabilities=soft[:, None])  # as nnU-Net writes them
    np.savez(source / "d.npz", probabilities=np.ones((2, 5, 5)))
    Image.fromarray(scene(0).astype(np.uint8)).save(source / "a.png")  # nnU-Net's label map
    arguments = ("--probabilities", "--output", output, "--weights", weights)
    assert main(images, source, *arguments, "--pictures", tmp_path / "pictures") == 1
    out = capsys.readouterr().out
    assert "3 of 4 files refined" in out and "d.tif" in out
    refined = read_probabilities(output / "a.npz", scene(0).shape)
    assert (refined.argmax(axis=0) != scene(0)).any()
    assert sorted(p.name for p in output.iterdir()) == ["a.npz", "b.npz", "c.npz", "run"]
    assert len(list((tmp_path / "pictures").iterdir())) == 3
    assert main(images / "a.png", source / "a.npz", *arguments[:2], output / "one") == 0
    assert (output / "one" / "a.npz").exists()


def test_coco_results_keep_their_entries(folders, weights, tmp_path, capsys):
    import pycocotools.mask as mask_util

    images, _ = folders
    entries = []
    present = [int(v) for v in np.unique(scene(0)) if v]
    for label in present:
        mask = np.asfortranarray((scene(0) == label).astype(np.uint8))
        rle = mask_util.encode(mask)
        entries.append(
            {
                "image_id": 7,
                "file_name": "a.png",
                "category_id": label,
                "score": label / 10,
                "bbox": mask_util.toBbox(rle).tolist(),
                "segmentation": {**rle, "counts": rle["counts"].decode()},
            }
        )
    source, output = tmp_path / "results.json", tmp_path / "refined.json"
    source.write_text(json.dumps(entries))
    assert main(images, source, "--output", output, "--weights", weights) == 0
    refined = json.loads(output.read_text())
    assert [e["score"] for e in refined] == [e["score"] for e in entries]
    masks = [mask_util.decode(e["segmentation"]) for e in refined]
    assert np.sum(masks, axis=0).max() == 1
    assert any((m != (scene(0) == label)).any() for m, label in zip(masks, present))
    assert main(images, source, "--output", output, "--weights", weights) == 2
    assert "exists already" in capsys.readouterr().err


def test_a_file_that_cannot_be_read_is_named_and_the_others_are_refined(
    folders, weights, tmp_path, capsys
):
    images, labels = folders
    (labels / "c.npy").write_bytes(b"no array")
    Image.fromarray(image_of(scene(0))[:50]).save(images / "a.png")
    output = tmp_path / "output"
    assert main(images, labels, "--output", output, "--weights", weights) == 1
    out = capsys.readouterr().out
    assert "2 of 4 label maps refined" in out
    assert "c.npy" in out and "a_masks.png" in out and "50 x 96" in out
    assert not (output / "c.npy").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda i, l, o: [i, l, "--output", l], "not overwritten"),
        (lambda i, l, o: [i, i / "no", "--output", o], "no such file or folder"),
        (lambda i, l, o: [i / "no", l, "--output", o], "no such folder"),
        (lambda i, l, o: [i, l, "--output", o, "--probabilities"], "allowed: .npz"),
        (lambda i, l, o: [i, npz_folder(o), "--output", o], ".npz files need --probabilities"),
        (
            lambda i, l, o: [i, l, "--output", o, "--weights", i / "a.png"],
            "allowed: a .safetensors",
        ),
    ],
)
def test_wrong_arguments_are_named_in_one_line(folders, tmp_path, weights, capsys, change, message):
    arguments = change(*folders, tmp_path / "output")
    if "--weights" not in arguments:
        arguments += ["--weights", weights]
    assert main(*arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert message in error[-1]


@pytest.mark.parametrize("value", ["0", "-1", "inf", "x"])
def test_wrong_shift(folders, value, capsys):
    assert main(*folders, "--output", "x", "--max-shift", value) == 2
    assert "allowed: above 0" in capsys.readouterr().err


def test_a_foreign_file_is_not_overwritten(folders, weights, tmp_path, capsys):
    output = tmp_path / "output"
    output.mkdir()
    (output / "b.tif").write_bytes(b"mine")
    assert main(*folders, "--output", output, "--weights", weights) == 2
    assert "no run/refine.json, which describes its origin" in capsys.readouterr().err
    assert (output / "b.tif").read_bytes() == b"mine"
