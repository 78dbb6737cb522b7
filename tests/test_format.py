"""Format of the code, size of the files, and independence of the test modules."""

import ast
import re
import subprocess
import sys
import textwrap
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.helpers.environment import lacking

CODE = ["rpe_d2", "dev", "tools", "tests", "configs", "setup.py"]
# Stems of British spellings. Endings that other words share, such as "raise", are no stems.
BRITISH = re.compile(
    "behaviour|cancell(?:ed|ing)|cent(?:re|ring)|colour|favour|grey|label(?:led|ling)"
    "|modell(?:ed|ing)|neighbour|(?:binar|character|custom|discret|equal|final|general|initial"
    "|local|maxim|memor|minim|normal|optim|organ|parametr|penal|quant|random|recogn|regular|serial"
    "|special|stabil|summar|synchron|token|util|vector|visual)is(?:e|ing|ation|able)",
    re.IGNORECASE,
)
PROSE = {".cff", ".cpp", ".css", ".ipynb", ".md", ".py", ".sh", ".toml", ".yaml", ".yml"}
LARGEST_FILE = 1_000_000  # bytes
LONGEST_LINE = 100  # characters


def python_files(*names: str) -> list[Path]:
    """Returns the Python files of folders and files in the repository."""
    paths = [ROOT / name for name in names]
    nested = [sorted(path.rglob("*.py")) if path.is_dir() else [path] for path in paths]
    return [path for paths in nested for path in paths]


@pytest.mark.parametrize(
    "tool, pinned, check",
    [
        ("black", "25.1.0", ["--check", "-l", "100"]),
        ("isort", "6.0.1", ["--check-only", "--profile", "black", "-l", "100"]),
    ],
)
def test_code_is_formatted(tool: str, pinned: str, check: list[str]) -> None:
    assert f'"{tool}=={pinned}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    try:
        installed = version(tool)
    except PackageNotFoundError:
        installed = None
    if installed != pinned:
        lacking(f"{tool} {pinned} is needed, found {installed}: pip install {tool}=={pinned}")
    files = [str(path.relative_to(ROOT)) for path in python_files(*CODE)]
    command = [sys.executable, "-m", tool, *check, *files]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 0, f"run {tool} -l 100 {' '.join(CODE)}\n{answer.stderr}"


def test_lines_are_short() -> None:
    scripts = [*(ROOT / "tools").glob("*.sh"), ROOT / ".ci" / "run"]
    long = [
        f"{path.relative_to(ROOT)}:{number} has {len(line)} characters"
        for path in [*python_files(*CODE), *scripts]
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if len(line) > LONGEST_LINE
    ]
    assert not long, "\n".join(long)


def tracked_files() -> list[Path]:
    """Returns the files in the repository; the test is skipped outside of one."""
    command = ["git", "ls-files", "-z"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if answer.returncode:
        pytest.skip(f"no git repository: {answer.stderr.strip()}")
    files = [ROOT / name for name in answer.stdout.split("\0") if name]
    return [file for file in files if file.is_file()]


def test_no_large_file_is_tracked() -> None:
    """Only the weights that come with rpe_d2 are larger, within limits of their own."""
    large = [file for file in tracked_files() if file.stat().st_size > LARGEST_FILE]
    weights = set((ROOT / "rpe_d2" / "weights").glob("*/model.safetensors"))
    assert not [str(file) for file in large if file not in weights]
    sizes = [file.stat().st_size for file in weights]
    assert max(sizes) < 12e6 and sum(sizes) < 30e6


def test_spelling_is_american() -> None:
    files = [path for path in tracked_files() if path.suffix in PROSE and path != Path(__file__)]
    assert len(files) > 300
    british = [
        f"{path.relative_to(ROOT)}:{number}: {match[0]}"
        for path in files
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        for match in BRITISH.finditer(line)
    ]
    assert not british, "\n".join(british)


def test_reasons_of_errors_in_docstrings_are_sentences() -> None:
    """Below "Raises:" each reason begins with a capital letter or code, and ends with a period."""
    wrong = []
    for path in python_files(*CODE):
        for section in re.findall(
            r"^( *)Raises:\n((?:\1 .*\n|\n(?=\1 ))+)",
            path.read_text(encoding="utf-8"),
            re.MULTILINE,
        ):
            text = textwrap.dedent(section[1])
            for name, reason in re.findall(r"^(\S[^:\n]*): (.*(?:\n .*)*)", text, re.MULTILINE):
                if not re.match(r"[^a-z].*\.\Z", reason.strip(), re.DOTALL):
                    wrong.append(f"{path.relative_to(ROOT)}: {name}: {reason}")
    assert not wrong, "\n".join(wrong)


def test_no_test_module_imports_another() -> None:
    """What several test modules need is in tests/helpers or tests/reference."""
    found = []
    for path in python_files("tests"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [f"{node.module or ''}.{alias.name}" for alias in node.names]
            for module in modules:
                if any(part.startswith("test_") for part in module.split(".")):
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno} imports {module}")
    assert not found, "\n".join(found)
