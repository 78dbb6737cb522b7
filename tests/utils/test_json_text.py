"""JSON that is nested too deeply or has numbers that are too long."""

import pytest

from rpe_d2.cli.mask_refiner import check_header
from rpe_d2.utils.json_text import parse_json

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
