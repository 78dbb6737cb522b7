"""rpe-d2 split-coco: random splits and first images."""

import json

import pytest

from rpe_d2.cli.split_coco import main


@pytest.fixture
def source(tmp_path):
    images = [{"id": i, "file_name": f"{i}.png", "height": 9, "width": 9} for i in range(10)]
    annotations = [
        {"id": n, "image_id": n % 10, "category_id": 3, "bbox": [1, 1, 2, 2]} for n in range(25)
    ]
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 3, "name": "a"}],
        "licenses": [],
    }
    path = tmp_path / "all.json"
    path.write_text(json.dumps(content))
    return path


def test_images_are_split_with_their_annotations(source, tmp_path):
    assert main([str(source), "--fraction", "0.3", "--output", str(tmp_path / "new")]) == 0
    fit, held_out = (
        json.loads((tmp_path / "new" / f"all_{part}.json").read_text())
        for part in ("fit", "held_out")
    )
    whole = json.loads(source.read_text())
    assert (len(fit["images"]), len(held_out["images"])) == (7, 3)
    for part in (fit, held_out):
        ids = {image["id"] for image in part["images"]}
        assert part["annotations"] == [a for a in whole["annotations"] if a["image_id"] in ids]
        assert part["categories"] == whole["categories"] and part["licenses"] == []
    assert sorted(i["id"] for i in fit["images"] + held_out["images"]) == list(range(10))
    # The same seed gives the same split.
    assert main([str(source), "--fraction", "0.3"]) == 0
    assert json.loads((tmp_path / "all_held_out.json").read_text()) == held_out


@pytest.mark.parametrize("fraction", ["0", "1", "0.01", "-3"])
def test_an_empty_part_is_one_line(source, fraction, capsys):
    with pytest.raises(SystemExit) as stop:
        main([str(source), "--fraction", fraction])
    assert stop.value.code == 2 and "--fraction" in capsys.readouterr().err


def test_nothing_is_overwritten(source, tmp_path, capsys):
    (tmp_path / "all_held_out.json").write_text("mine")
    with pytest.raises(SystemExit) as stop:
        main([str(source)])
    assert stop.value.code == 2 and "not overwritten" in capsys.readouterr().err
    assert (tmp_path / "all_held_out.json").read_text() == "mine"
    assert not (tmp_path / "all_fit.json").exists()


def test_the_images_of_the_lowest_ids(source, tmp_path, capsys):
    whole = json.loads(source.read_text())
    whole["images"].reverse()
    source.write_text(json.dumps(whole))
    assert main([str(source), "--first", "4", "--output", str(tmp_path / "new")]) == 0
    (path,) = (tmp_path / "new").iterdir()
    assert path.name == "all_first_4.json" and str(path) in capsys.readouterr().out
    first = json.loads(path.read_text())
    assert [image["id"] for image in first["images"]] == [3, 2, 1, 0]  # in the order of the file
    assert first["annotations"] == [a for a in whole["annotations"] if a["image_id"] < 4]
    assert first["categories"] == whole["categories"]
    before = path.read_bytes()
    with pytest.raises(SystemExit) as stop:
        main([str(source), "--first", "4", "--output", str(tmp_path / "new")])
    assert stop.value.code == 2 and "not overwritten" in capsys.readouterr().err
    assert path.read_bytes() == before


@pytest.mark.parametrize("count", ["0", "11", "-1"])
def test_too_few_or_too_many_first_images_are_one_line(source, tmp_path, count, capsys):
    with pytest.raises(SystemExit) as stop:
        main([str(source), "--first", count])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and f"--first is {count}; allowed: 1 to 10" in error
    with pytest.raises(SystemExit):
        main([str(source), "--first", "2", "--fraction", "0.5"])
    assert "not allowed with" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [source]
