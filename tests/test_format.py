"""Formatting of the code and size of the files."""

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CODE = [name for name in ("rpe_d2", "dev", "tools", "tests", "setup.py") if (ROOT / name).exists()]
LARGEST_FILE = 1_000_000  # bytes


@pytest.mark.parametrize(
    "tool, pinned, check",
    [
        ("black", "25.1.0", ["--check", "-l", "100"]),
        ("isort", "6.0.1", ["--check-only", "--profile", "black", "-l", "100"]),
    ],
)
def test_code_is_formatted(tool: str, pinned: str, check: list[str]) -> None:
    assert f"{tool}=={pinned}" in (ROOT / "setup.py").read_text()
    try:
        installed = version(tool)
    except PackageNotFoundError:
        installed = None
    if installed != pinned:
        reason = f"{tool} {pinned} is needed, found {installed}: pip install {tool}=={pinned}"
        if Path(sys.prefix) == ROOT / ".venv":
            pytest.fail(reason)  # tools/env.sh installs it
        pytest.skip(reason)  # a borrowed environment, which has what it has
    command = [sys.executable, "-m", tool, *check, *CODE]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 0, f"run {tool} -l 100 {' '.join(CODE)}\n{answer.stderr}"


def test_no_large_file_is_tracked() -> None:
    command = ["git", "ls-files", "-z"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if answer.returncode:
        pytest.skip(f"no git repository: {answer.stderr.strip()}")
    files = [ROOT / name for name in answer.stdout.split("\0") if name]
    large = [str(file) for file in files if file.is_file() and file.stat().st_size > LARGEST_FILE]
    assert not large
