"""Benchmarks on tiny inputs."""

import argparse
import json
import math
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from fvcore.nn import FlopCountAnalysis

from rpe_d2.cli.benchmark.main import BENCHMARKS, main
from rpe_d2.cli.benchmark.processes import predicted_seconds
from rpe_d2.cli.benchmark.spn import _launch_seconds, _Limits, _step_seconds
from rpe_d2.engine.setup import load_config
from rpe_d2.utils.flops import attention_flops
from tests.conftest import ROOT


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
    small = [*"--points 300 --dim 16 --groups 5 --repeat 2 --json".split(), str(path)]
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
        # 0 if 300 points fit into memory that the process already had.
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
    with pytest.raises(SystemExit) as stop:
        main(["pair-loss", "--json", str(path)])
    assert stop.value.code == 2 and path.read_text() == "mine"
    error = capsys.readouterr().err
    assert error == f"error: {path} exists already; it is not overwritten\n"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--json", "{file}/result.json"], "--json {file} cannot be written: "),
        (["--device", "foo"], "--device is foo; this machine has "),
    ],
)
def test_errors_are_reported_before_the_measurement(
    arguments, message, tmp_path: Path, capsys, monkeypatch
) -> None:
    measured = BENCHMARKS["pair-loss"]._replace(run=lambda args: pytest.fail("measured"))
    monkeypatch.setitem(BENCHMARKS, "pair-loss", measured)
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(SystemExit) as stop:
        main(["pair-loss", *(part.format(file=file) for part in arguments)])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {message.format(file=file)}")


def test_models_are_timed(tmp_path: Path, capsys) -> None:
    path = tmp_path / "result.json"
    config = str(Path(__file__).resolve().parents[2] / "configs/quick/rpe_instant_test.yaml")
    size = ["--height", "64", "--width", "96", "--instances", "3", "--repeat", "1"]
    assert main(["model", config, *size, "--batch", "2", "--parts", "--json", str(path)]) == 0
    result = json.loads(path.read_text())["results"][config]
    assert result["training_step_seconds"] > result["inference_seconds"] > 0
    assert result["training_step_cpu_seconds"] > 0
    parts = result["training_step_parts_seconds"]
    assert {"backbone", "embedding_head", "embedding_loss", "backward pass"} < parts.keys()
    # There is one step: its parts are all of it.
    assert sum(parts.values()) == pytest.approx(result["training_step_seconds"], rel=0.05)
    model = build_model(load_config(config, ["MODEL.DEVICE", "cpu"]))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert result["parameters_million"] == pytest.approx(parameters / 1e6, rel=1e-3)
    # The minimum: parameters, their gradients and two moments, in float32.
    assert result["training_peak_mb"] > 4 * 4 * result["parameters_million"]
    assert result["inference_gflops"] > 0.1
    assert (
        result["training_step_ratio"] == result["inference_ratio"] == 1
    )  # the first configuration
    assert config in capsys.readouterr().out


@pytest.mark.slow
def test_models_are_timed_on_their_own_data(real_data, tmp_path: Path) -> None:
    nuclei = real_data("nuclei")
    configs = [str(ROOT / f"configs/nuclei/{name}_R_18.yaml") for name in ("mask_rcnn", "rpe")]
    jsons = json.dumps([f"nuclei_{split}={nuclei}/{split}.json" for split in ("train", "val")])
    path = tmp_path / "result.json"
    options = ["--repeat", "1", "--data", "1", "--json", str(path)]
    small = ["SOLVER.IMS_PER_BATCH", "1", "INPUT.MIN_SIZE_TEST", "160"]
    assert main(["model", *configs, *options, "--opts", "DATASETS.COCO_JSONS", jsons, *small]) == 0
    results = json.loads(path.read_text())["results"]
    mask_rcnn, rpe = (results[config] for config in configs)
    ratio = rpe["training_step_seconds"] / mask_rcnn["training_step_seconds"]
    assert rpe["training_step_ratio"] == pytest.approx(ratio, rel=0.05)
    assert all(item["inference_gflops"] > 0.1 for item in (mask_rcnn, rpe))


def test_attention_counts_two_products() -> None:
    class Attention(torch.nn.Module):
        def forward(self, query, key, value):
            return torch.nn.functional.scaled_dot_product_attention(query, key, value)

    query, key, value = torch.rand(2, 3, 5, 8), torch.rand(2, 3, 7, 8), torch.rand(2, 3, 7, 4)
    counts = FlopCountAnalysis(Attention(), (query, key, value))
    counts.set_op_handle("aten::scaled_dot_product_attention", attention_flops)
    assert counts.total() == 2 * 3 * 5 * 7 * (8 + 4)


def test_a_missing_configuration_is_one_line(tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["model", str(tmp_path / "none.yaml")])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "none.yaml" in error and error.count("\n") == 1


def test_processes_are_timed_and_larger_numbers_are_predicted(tmp_path: Path, capfd) -> None:
    path = tmp_path / "result.json"
    config = str(ROOT / "configs/quick/rpe_instant_test.yaml")
    size = ["--height", "128", "--width", "128", "--instances", "3"]
    options = ["--threads", "1", "--repeat", "1", "--json", str(path)]
    assert main(["processes", config, *size, *options]) == 0
    results = json.loads(path.read_text())["results"]
    assert results["1"]["bytes_all_reduced"] == 0 and "all_reduce_seconds" not in results["1"]
    assert min(results["2"][f"{part}_seconds"] for part in ("step", "compute", "all_reduce")) > 0
    model = build_model(load_config(config, ["MODEL.WEIGHTS", ""]))
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert results["2"]["bytes_all_reduced"] == 4 * parameters
    assert "predicted" in capfd.readouterr().out


def test_predicted_seconds_of_a_ring() -> None:
    model = {"compute_seconds": 1.0, "exchange_seconds": 0.2}
    assert [predicted_seconds(n, model) for n in (1, 2, 4)] == pytest.approx([1.0, 1.2, 1.3])


def test_lower_bounds_of_propagation() -> None:
    """The bound is memory for large maps, steps for long ones, and the launch for small ones."""
    limits = _Limits(bandwidth=4e12, launch=5e-6, step=1e-7)
    large, long, small = (16, 8, 1024, 1024), (1, 1, 8, 512), (100, 1, 28, 28)
    assert limits.seconds(large, 4, False) == pytest.approx(23 * 4 * 2**27 / 4e12)
    assert limits.seconds(large, 4, True) == pytest.approx(63 * 4 * 2**27 / 4e12)
    assert limits.seconds(long, 4, False) == pytest.approx(512 * 1e-7)
    assert limits.seconds(long, 4, True) == pytest.approx(2 * 512 * 1e-7)
    assert limits.seconds(small, 4, False) == pytest.approx(5e-6)
    on_cpu = _Limits(bandwidth=1e10, launch=0.0, step=0.0)
    assert on_cpu.seconds(small, 4, False) == pytest.approx(23 * 4 * 78400 / 1e10)
    args = argparse.Namespace(device="cpu", repeat=5)
    assert 0 < _launch_seconds(args) < 1e-3
    assert _step_seconds(1, args) == 0 and 0 < _step_seconds(100, args) < 0.1


def test_propagation_agrees_with_the_naive_forms(tmp_path: Path, capsys) -> None:
    path = tmp_path / "result.json"
    shapes = ["--shape", "1x2x8x8", "--shape", "2x3x6x9"]
    assert main(["spn", *shapes, "--repeat", "1", "--no-crf", "--json", str(path)]) == 0
    results = json.loads(path.read_text())["results"]
    assert results.pop("copy_gb_per_second") > 0
    assert list(results) == [
        f"{shape} {part}"
        for shape in ("1x2x8x8", "2x3x6x9")
        for part in ("forward", "forward+backward")
    ]
    for name, row in results.items():
        assert row["relative_difference"] < 1e-5 and row["limit_milliseconds"] >= 0
        assert ("op_faster_than_index" in row) == name.startswith("1x2x8x8")  # the square one
    assert "unbind ms" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["spn", "--shape", "8x8"])
    assert "allowed: four sizes" in capsys.readouterr().err
