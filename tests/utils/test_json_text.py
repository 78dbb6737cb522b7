"""JSON that is nested too deeply or has numbers that are too long, and files that are no text."""

import gzip
import os

import pytest

from rpe_d2.cli.mask_refiner import check_header
from rpe_d2.utils.json_text import parse_json, read_text

DEEP = "[" * 100_000


def test_deep_json_is_refused_in_one_line(tmp_path):
    assert parse_json(b'{"a": [1]}', "x") == {"a": [1]}
    with pytest.raises(ValueError, match="^x.json: its JSON is nested too deeply; allowed: hundr"):
        parse_json(DEEP, "x.json")
    with pytest.raises(ValueError, match="was not written by an interrupted run"):
        check_header(tmp_path / "x", DEEP, {})


def test_long_numbers_are_refused_with_the_name_of_the_file():
    with pytest.raises(ValueError, match="^x.json is not JSON .Exceeds the limit"):
        parse_json("9" * 5000, "x.json")


def test_files_that_are_no_text_are_named(tmp_path):
    (tmp_path / "a.txt").write_text("名前", encoding="utf-8")
    assert read_text(tmp_path / "a.txt") == "名前"
    (tmp_path / "b.txt").write_bytes("à".encode("latin-1"))
    with pytest.raises(ValueError, match="^DATASETS.VOC: .*b.txt is not text in UTF-8"):
        read_text(tmp_path / "b.txt", "DATASETS.VOC")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe is a pipe or a device; allowed: a file"):
        read_text(tmp_path / "pipe")


def test_compressed_text(tmp_path, monkeypatch):
    path = tmp_path / "a.json.gz"
    path.write_bytes(gzip.compress("[名]".encode()))
    assert read_text(path) == "[名]"
    (tmp_path / "a.GZ").write_bytes(gzip.compress(b"a\r\nb\r"))
    assert read_text(tmp_path / "a.GZ") == "a\nb\n"
    whole = path.read_bytes()
    for content in (whole[:-4], whole[:12] + b"\0" + whole[13:], b"[1]"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="^--x: .*a.json.gz is not a whole gzip file"):
            read_text(path, "--x")
    monkeypatch.setattr("rpe_d2.utils.json_text._MOST_BYTES", 1000)
    path.write_bytes(gzip.compress(bytes(1001)))
    with pytest.raises(ValueError, match="a.json.gz is larger than 1000 bytes; allowed: at most"):
        read_text(path)
