"""The sdist and the wheel, and the installed program in an empty folder."""

import os
import shutil
import subprocess
import sys
import tarfile
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

from rpe_d2 import __version__
from tests.conftest import ROOT
from tests.helpers.environment import required

pytestmark = pytest.mark.release
CONFIGS = {str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.yaml")}
TRAIN = """
train --config-file quick/rpe_instant_test.yaml
MODEL.DEVICE cpu SOLVER.MAX_ITER 2 OUTPUT_DIR output
"""


def run(*command: object, cwd: Path, **environment: str) -> str:
    """Runs a command that has to succeed, without PYTHONPATH, and returns its output."""
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**inherited, "PYTHONWARNINGS": "ignore", **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and with the wheel that is built from the sdist."""
    required("build", "-e '.[dev]'")
    source = tmp_path_factory.mktemp("source") / "rpe_d2"
    ignored = ".git", ".venv*", "output", "build", "*.egg-info", "__pycache__"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*ignored))
    folder = tmp_path_factory.mktemp("packages")
    # Without isolation, because an isolated build downloads setuptools.
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, source, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def installed(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a new environment with the wheel, which borrows torch and Detectron2."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    site = run(python, "-c", "import site; print(site.getsitepackages()[0])", cwd=folder).strip()
    # A path file lends the packages of this environment. Path files in lent folders are not read,
    # so an editable installation of rpe_d2 there has no effect.
    lent = dict.fromkeys(path for path in sys.path if Path(path).name.endswith("-packages"))
    (Path(site) / "lent.pth").write_text("\n".join(lent))
    (wheel,) = packages.glob("*.whl")
    pip = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--force-reinstall"]
    run(python, *pip, wheel, cwd=folder)
    return folder / "bin"


def test_sdist(packages: Path) -> None:
    (path,) = packages.glob("*.tar.gz")
    assert path.name == f"rpe_d2-{__version__}.tar.gz"
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert CONFIGS <= names
    assert {"LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff"} <= names
    assert {"pyproject.toml", "setup.py", "rpe_d2/ops/propagation.cpp"} <= names
    assert not any(name.startswith(("tests", "results")) for name in names)


def test_wheel(packages: Path) -> None:
    (path,) = packages.glob("*.whl")
    assert path.name == f"rpe_d2-{__version__}-py3-none-any.whl"
    with ZipFile(path) as archive:
        names = set(archive.namelist())
    assert {f"rpe_d2/{name}" for name in CONFIGS} <= names
    sources = {str(file.relative_to(ROOT)) for file in (ROOT / "rpe_d2").rglob("*.py")}
    assert sources | {"rpe_d2/ops/propagation.cpp"} <= names
    info = f"rpe_d2-{__version__}.dist-info"
    assert f"{info}/licenses/LICENSE" in names
    assert {name.partition("/")[0] for name in names} == {"rpe_d2", info}


def test_the_program_prints_its_version_and_its_commands(installed: Path, tmp_path: Path) -> None:
    assert run(installed / "rpe-d2", "--version", cwd=tmp_path) == f"rpe-d2 {__version__}\n"
    assert "refine-masks" in run(installed / "rpe-d2", "--help", cwd=tmp_path)
    assert "--eval-only" in run(installed / "rpe-d2", "train", "--help", cwd=tmp_path)
    assert [path.name for path in installed.glob("rpe*")] == ["rpe-d2"]


def test_configurations_are_found_by_name(installed: Path, tmp_path: Path) -> None:
    script = (
        "import rpe_d2; print(rpe_d2.__file__);"
        "print(rpe_d2.get_config_file('rpe_coco.yaml'));"
        "print(rpe_d2.get_config_file('quick/rpe_instant_test.yaml'))"
    )
    package, *configs = run(installed / "python", "-c", script, cwd=tmp_path).split()
    folder = Path(package).parent
    assert folder.is_relative_to(installed.parent)
    assert [Path(config) for config in configs] == [
        folder / "configs" / "rpe_coco.yaml",
        folder / "configs" / "quick" / "rpe_instant_test.yaml",
    ]
    assert all(Path(config).is_file() for config in configs)


def test_training_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    output = run(installed / "rpe-d2", *TRAIN.split(), cwd=tmp_path)
    assert "run record: output/result.json" in output
    assert (tmp_path / "output" / "model_final.pth").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["output"]
