"""The example of docs/extending.md: a new meta-architecture is one file and its configuration."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.helpers.runs import few_images


def code_block(page: str, language: str) -> str:
    """The first fenced code block of a language."""
    return re.search(rf"^```{language}\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)[1]


@pytest.fixture
def example(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    """Runs the command of the page on two images, with more KEY VALUE pairs."""
    page = (ROOT / "docs" / "extending.md").read_text()
    (tmp_path / "component_net.py").write_text(code_block(page, "python"))
    (tmp_path / "component_net.yaml").write_text(code_block(page, "yaml"))
    program, *arguments = code_block(page, "bash").split()
    assert program == "python"
    small = "MODEL.DEVICE cpu DATALOADER.NUM_WORKERS 0 SOLVER.IMS_PER_BATCH 2 SOLVER.MAX_ITER 2"
    arguments += [*few_images(tmp_path, 2), *small.split(), "OUTPUT_DIR", str(tmp_path / "run")]

    def run(*options: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, *arguments, *options],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"},
            capture_output=True,
            text=True,
            timeout=150,
        )

    return run


def test_the_example_has_at_most_40_lines_of_code():
    page = (ROOT / "docs" / "extending.md").read_text()
    assert len([line for line in code_block(page, "python").splitlines() if line]) <= 40


def test_the_example_trains_and_is_evaluated(example, tmp_path: Path):
    done = example()
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    assert record["iterations"] == 2 and record["metrics"]["segm"]["AP"] >= 0
    parts = record["training_cpu_seconds"], record["evaluation_cpu_seconds"]
    assert min(parts) > 0 and sum(parts) < record["cpu_seconds"]  # the set-up is in no part


def test_the_declared_number_of_classes_is_checked(example):
    done = example("MODEL.ROI_HEADS.NUM_CLASSES", "7")
    assert done.returncode == 2
    assert "error: MODEL.ROI_HEADS.NUM_CLASSES is 7; few_2 has 4 classes" in done.stderr
