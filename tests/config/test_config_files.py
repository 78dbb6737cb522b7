"""Configuration files are found by name."""

from pathlib import Path

import pytest

import rpe_d2
from rpe_d2.config import config_files
from rpe_d2.engine.setup import read_config
from tests.conftest import ROOT
from tests.helpers.keys import new_cfg


def test_every_file_is_found_by_its_name():
    names = config_files.config_names()
    assert len(names) > 40 and "nuclei/rpe_R_18.yaml" in names
    for name in names:
        assert Path(rpe_d2.get_config_file(name)) == ROOT / "configs" / name


def test_get_cfg_merges_the_file():
    expected = new_cfg()
    expected.merge_from_file(str(ROOT / "configs" / "rpe_coco.yaml"))
    assert rpe_d2.get_cfg("rpe_coco.yaml") == expected
    assert expected.MODEL.META_ARCHITECTURE == "PixelEmbeddingNet"


@pytest.mark.parametrize("name", ["rpe_coc.yaml", "", "../setup.py", "nuclei", "rpe_coco"])
def test_an_unknown_file_is_one_line_with_the_nearest_names(name):
    with pytest.raises(ValueError) as error:
        rpe_d2.get_cfg(name)
    start = f"There is no configuration file {name!r}; the nearest names: "
    assert str(error.value).startswith(start) and ".yaml" in str(error.value)
    assert "rpe_coco.yaml" in str(error.value) or not name.startswith("rpe")


def test_files_of_the_installed_package_come_first(tmp_path, monkeypatch):
    installed = tmp_path / "rpe_d2" / "configs"
    monkeypatch.setattr(config_files, "_FOLDERS", (installed, ROOT / "configs"))
    assert rpe_d2.get_config_file("rpe_coco.yaml") == str(ROOT / "configs" / "rpe_coco.yaml")
    installed.mkdir(parents=True)
    (installed / "rpe_coco.yaml").write_text("SEED: 5")
    assert rpe_d2.get_config_file("rpe_coco.yaml") == str(installed / "rpe_coco.yaml")
    assert rpe_d2.get_cfg("rpe_coco.yaml").SEED == 5
    monkeypatch.setattr(config_files, "_FOLDERS", (tmp_path,))
    with pytest.raises(ValueError, match="has no configuration files"):
        rpe_d2.get_config_file("rpe_coco.yaml")


def test_a_bare_name_is_read_in_any_folder_and_a_file_there_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = read_config("rpe_coco.yaml", ["SEED", "5"])
    assert cfg.MODEL.META_ARCHITECTURE == "PixelEmbeddingNet" and cfg.SEED == 5
    Path("rpe_coco.yaml").write_text("SEED: 6")
    assert read_config("rpe_coco.yaml", []).SEED == 6
    with pytest.raises(ValueError, match="There is no configuration file 'mine.yaml'"):
        read_config("mine.yaml", [])
