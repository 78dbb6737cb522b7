"""Tiny real runs of tools/benchmark.py."""

import json
import math
from pathlib import Path

import pytest

from rpe_d2.engine.benchmark import main


@pytest.mark.parametrize(
    "arguments, cases, tolerance",
    [
        (["mean-shift", "--loops", "2"], ["forward", "forward+backward"], 1e-4),
        (["pair-loss"], ["forward+backward"], 1e-3),
        (["cluster", "--dense-points", "150"], ["150 points", "300 points"], 0),
    ],
)
def test_record_and_agreement(arguments, cases, tolerance, tmp_path: Path, capsys) -> None:
    path = tmp_path / "result.json"
    small = [
        "--points",
        "300",
        "--dim",
        "16",
        "--groups",
        "5",
        "--repeat",
        "2",
        "--json",
        str(path),
    ]
    assert main([*arguments, *small]) == 0

    record = json.loads(path.read_text())
    assert record["benchmark"] == arguments[0]
    assert record["command"].startswith(f"tools/benchmark.py {arguments[0]}")
    assert record["settings"]["points"] == 300 and record["settings"]["threads"] >= 1
    assert record["hardware"] and set(record["versions"]) == {"python", "torch"}
    assert {"commit", "finished", "load_before"} <= set(record)
    assert list(record["results"]) == cases
    table = capsys.readouterr().out
    for name, result in record["results"].items():
        assert name in table
        assert (
            0 < result["op"]["fastest"] <= result["op"]["milliseconds"] <= result["op"]["slowest"]
        )
        # 0 where 300 points fit into memory that the process had already.
        assert result["op"]["peak_mb"] is None or result["op"]["peak_mb"] >= 0
        assert result["matmul"]["milliseconds"] > 0 and result["fraction_of_matmul_peak"] > 0
        if name == "300 points":  # above --dense-points
            assert "dense" not in result
            continue
        assert math.isclose(
            result["speedup"],
            result["dense"]["milliseconds"] / result["op"]["milliseconds"],
            rel_tol=0.05,
        )
        assert 0 <= result["difference"] <= tolerance


def test_existing_file_stays(tmp_path: Path, capsys) -> None:
    path = tmp_path / "result.json"
    path.write_text("mine")
    assert main(["pair-loss", "--json", str(path)]) == 2
    assert path.read_text() == "mine"
    error = capsys.readouterr().err
    assert error == f"error: {path} exists already; it is not overwritten\n"
