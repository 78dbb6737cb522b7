"""rpe-d2 convert: there and back, names of other programs, and errors."""

import json

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image
from pycocotools.coco import COCO

from rpe_d2.cli.convert import main
from tests.helpers.coco_files import make_content


@pytest.fixture
def folder(tmp_path):
    """Images and label maps with touching objects, a ring around another one, and gaps."""
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    for number in range(3):
        labels = np.zeros((30, 40), np.uint16)
        labels[2:14, 2:14], labels[5:9, 5:10] = 9, 4
        labels[5:9, 10:12] = 0  # a hole
        labels[14:20, 2 : 9 + number], labels[28:, 38:] = 700, 12
        tifffile.imwrite(tmp_path / "labels" / f"a{number}_masks.tif", labels)
        cv2.imwrite(str(tmp_path / "images" / f"a{number}.png"), np.zeros((30, 40), np.uint8))
    return tmp_path


def read(path):
    if path.suffix == ".tif":
        return tifffile.imread(path)
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def same_objects(one, other):
    """Returns whether two label maps have the same objects, whatever their numbers are."""
    pairs = {tuple(pair) for pair in np.stack([one.ravel(), other.ravel()], axis=1).tolist()}
    first, second = zip(*pairs)
    unique = len(set(first)) == len(pairs) == len(set(second))
    return unique and all((a == 0) == (b == 0) for a, b in pairs)


def check_same(folder, back, suffix):
    for number in range(3):
        expected = tifffile.imread(folder / "labels" / f"a{number}_masks.tif")
        assert same_objects(read(back / f"a{number}{suffix}"), expected)


def test_label_maps_to_coco_and_back(folder, capsys):
    labels, images, coco = (str(folder / name) for name in ("labels", "images", "x.json"))
    assert main([labels, coco, "--to", "coco", "--images", images]) == 0
    assert "3 images, 12 objects" in capsys.readouterr().out
    truth = COCO(coco)
    assert [image["file_name"] for image in truth.imgs.values()] == ["a0.png", "a1.png", "a2.png"]
    assert list(truth.anns) == list(range(1, 13))
    assert truth.dataset["categories"] == [{"id": 1, "name": "object"}]
    assert main([coco, str(folder / "back"), "--to", "png"]) == 0
    check_same(folder, folder / "back", ".png")
    assert main([labels, coco, "--to", "coco"]) == 0  # without images
    assert json.loads((folder / "x-2.json").read_text())["images"][0]["file_name"] == "a0_masks.tif"


def test_label_maps_to_geojson_and_back(folder):
    labels, images, polygons = (str(folder / name) for name in ("labels", "images", "polygons"))
    assert main([labels, polygons, "--to", "geojson", "--images", images]) == 0
    back = folder / "back"
    assert main([polygons, str(back), "--to", "tif", "--images", images]) == 0
    check_same(folder, back, ".tif")


def test_the_names_of_cellpose(folder):
    output = folder / "cellpose"
    images = ["--images", str(folder / "images")]
    command = [str(folder / "labels"), str(output), "--to", "png", "--suffix", "_cp_masks"]
    assert main([*command, *images]) == 0
    assert sorted(p.name for p in output.iterdir()) == [f"a{n}_cp_masks.png" for n in range(3)]
    check_same(folder, output, "_cp_masks.png")
    with pytest.raises(SystemExit):
        main([*command, *images])  # nothing is overwritten


def test_images_beside_their_label_maps_and_stacks(tmp_path):
    for name in ("a.png", "a_masks.png"):
        Image.fromarray(np.full((4, 6), 3, np.uint8)).save(tmp_path / name)
    stack = np.zeros((2, 4, 6), np.uint16)
    stack[:, 1:3, 2:4] = 5
    (tmp_path / "labels").mkdir()
    tifffile.imwrite(tmp_path / "labels" / "a.tif", stack, metadata={"axes": "ZYX"})
    images = ["--images", str(tmp_path)]
    assert main([str(tmp_path / "labels"), str(tmp_path / "x.json"), "--to", "coco", *images]) == 0
    found = json.loads((tmp_path / "x.json").read_text())
    assert [image["file_name"] for image in found["images"]] == ["a.png[0]", "a.png[1]"]
    Image.fromarray(stack[0].astype(np.uint8)).save(tmp_path / "labels" / "a.png")
    with pytest.raises(SystemExit):  # two files for one image
        main([str(tmp_path / "labels"), str(tmp_path / "y.json"), "--to", "coco", *images])


def test_intensities_of_a_table(folder):
    cv2.imwrite(str(folder / "images" / "a1.png"), np.full((30, 40), 50, np.uint8))
    images = ["--images", str(folder / "images")]
    assert main([str(folder / "labels"), str(folder / "csv"), "--to", "csv", *images]) == 0
    header, *rows = (folder / "csv" / "a1.csv").read_text().splitlines()
    assert header.endswith(",mean_intensity") and {row.rsplit(",")[-1] for row in rows} == {"50"}


def test_polygons_of_other_programs(tmp_path):
    """Altitudes, names of classes as text, and polygons without points."""
    (tmp_path / "images").mkdir()
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "images" / "a.png")
    ring = [[1, 1, 7], [6, 1, 7], [6, 5, 7], [1, 5, 7], [1, 1, 7]]
    features = [
        {"geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": {}},
        {
            "geometry": {"type": "Polygon", "coordinates": []},
            "properties": {"classification": "tree"},
        },
    ]
    (tmp_path / "polygons").mkdir()
    (tmp_path / "polygons" / "a.geojson").write_text(json.dumps({"features": features}))
    images = ["--images", str(tmp_path / "images")]
    assert main([str(tmp_path / "polygons"), str(tmp_path / "out"), "--to", "png", *images]) == 0
    expected = np.zeros((9, 9), int)
    expected[1:5, 1:6] = 1
    assert np.array_equal(read(tmp_path / "out" / "a.png"), expected)


def test_coco_with_folders(tmp_path):
    content = make_content()
    content["images"][0]["file_name"], content["images"][1]["file_name"] = "x/1.png", "y/1.png"
    (tmp_path / "x.json").write_text(json.dumps(content))
    assert main([str(tmp_path / "x.json"), str(tmp_path / "out"), "--to", "tif"]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["x__1.tif", "y__1.tif"]


def test_classes_scores_and_crowds_of_coco(tmp_path):
    content = make_content()
    content["annotations"][0]["score"] = 0.25
    content["annotations"].append(dict(content["annotations"][0], id=3, iscrowd=1))
    (tmp_path / "x.json").write_text(json.dumps(content))
    assert main([str(tmp_path / "x.json"), str(tmp_path / "out"), "--to", "npz"]) == 0
    found = np.load(tmp_path / "out" / "a.npz")
    assert found["class_names"].tolist() == ["cell", "zebra"]
    # The rectangle of 2 x 3 pixels is smaller and thus in front.
    assert found["class_ids"].tolist() == [0, 1] and found["scores"].tolist() == [0.25, 1]
    assert (found["labels"] == 2).sum() == 6
    assert len(np.load(tmp_path / "out" / "sub__b.npz")["scores"]) == 0


def test_one_line_errors(folder, tmp_path, capsys):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a0.geojson").write_text('{"features": [{"geometry": {"type": "Point"}}]}')
    (tmp_path / "bad.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "empty.png")
    labels, images = str(folder / "labels"), ["--images", str(folder / "images")]
    for source, options, message in (
        (str(tmp_path / "none"), [], "none; allowed: an existing folder, or a .json file"),
        (str(tmp_path / "empty.png"), [], "allowed: an existing folder, or a .json file"),
        (str(tmp_path / "empty"), [], "empty has no label maps; allowed: PNG, TIFF, NPY, GeoJSON"),
        (str(tmp_path / "bad.json"), [], "has no list 'images'"),
        (str(tmp_path / "bad"), [], "--images is needed for the sizes of the images"),
        (str(tmp_path / "bad"), images, "not GeoJSON with polygons"),
        (labels, ["--images", str(tmp_path / "empty")], "has no image for"),
        (labels, ["--images", str(tmp_path / "none")], "there is no such folder"),
    ):
        with pytest.raises(SystemExit) as exit_:
            main([source, str(tmp_path / "out"), "--to", "tif", *options])
        assert exit_.value.code == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ") and message in error, error
