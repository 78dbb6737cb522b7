"""The script of the quickstart."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_quickstart_ends_with_a_table_and_pictures(tmp_path):
    """The script runs in a copy of the tree, with few iterations and a smaller embedding."""
    for folder in ("rpe_d2", "configs", "tools", "examples"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    overrides = "SOLVER.MAX_ITER 5 MODEL.RPE.EMBEDDING_DIM 6"
    command = ["bash", "tools/quickstart.sh", *overrides.split()]
    for folder in ("quickstart", "quickstart-2"):  # a second run overwrites nothing
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        pictures = sorted((tmp_path / "output" / folder / "pictures").iterdir())
        assert len(pictures) == 4
        lines = done.stdout.strip().splitlines()
        examples = sorted((tmp_path / "output" / folder / "examples" / "overlays").iterdir())
        assert len(examples) == len(list((ROOT / "examples").glob("*.png"))) == 4
        first = next(n for n, line in enumerate(lines) if line.startswith("Pictures, after "))
        assert [tmp_path / line for line in lines[first + 1 : first + 5]] == examples
        assert [tmp_path / line for line in lines[-4:]] == pictures
        assert any("AP50" in line for line in lines) and any(
            line.startswith("segm") for line in lines
        )
