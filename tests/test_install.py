"""The environment, the installation of Detectron2 and the metadata, tested without a network."""

import ast
import fcntl
import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import Distribution, PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from zipfile import ZipFile

import pytest

from tests.helpers.environment import lacking, required

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ["tools/env.sh", "tools/run_tests.sh", "tools/quickstart.sh"]
# .venv is created from these.
DEFINING = ["pyproject.toml", "setup.py", "tools/env.sh", "tools/install_detectron2.py"]
COMMANDS = "awk bash cat cksum df dirname grep head mkdir rm tail tee".split()


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A copy of the files that the environment is created from."""
    folder = tmp_path / "clone"
    (folder / "tools").mkdir(parents=True)
    for name in {*DEFINING, *SCRIPTS}:
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    """A folder for the whole PATH, with the commands that the scripts call but without a Python."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in COMMANDS:
        (folder / name).symlink_to(shutil.which(name))
    return folder


def add_python(commands: Path, script: str) -> None:
    (commands / "python3").write_text(f"#!/bin/sh\n{script}\n")
    (commands / "python3").chmod(0o755)


def add_python_without_packages(commands: Path) -> None:
    pytest.importorskip("ensurepip", reason="this Python cannot make environments (python3-venv)")
    add_python(commands, f'exec "{sys.executable}" -S "$@"')


def run(clone: Path, path: Path, script: str = "tools/env.sh", **variables: str):
    variables = {"PATH": str(path), "HOME": str(clone.parent), "PIP_NO_INDEX": "1", **variables}
    command = [shutil.which("bash"), script]
    return subprocess.run(
        command, cwd=clone, env=variables, capture_output=True, text=True, timeout=120
    )


def add_finished_environment(clone: Path) -> Path:
    """Adds a .venv with its marker, but without packages, to the clone."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", clone / ".venv"], check=True)
    python = clone / ".venv" / "bin" / "python"
    version = subprocess.check_output([python, "-V"], text=True)
    content = b"".join((clone / name).read_bytes() for name in DEFINING)
    checksum = subprocess.check_output(["cksum"], input=content).decode()
    (clone / ".venv" / "rpe_d2.complete").write_text(f"{clone} {version}{checksum}")
    return python


def error_line(answer: subprocess.CompletedProcess) -> str:
    """Returns the last line of stderr and checks that all other lines report progress."""
    *progress, error = answer.stderr.splitlines()
    assert answer.returncode == 1
    assert answer.stdout == ""
    assert error.startswith("error: ")
    assert all(line.startswith("[env] ") for line in progress), answer.stderr
    return error


def test_without_python_the_error_says_which(clone: Path, commands: Path) -> None:
    assert "found: none; install" in error_line(run(clone, commands))


def test_old_python_is_named(clone: Path, commands: Path) -> None:
    add_python(commands, '[ "$1" = -V ] && echo "Python 3.9.18"')
    error = error_line(run(clone, commands))
    assert "3.10, 3.11, 3.12 or 3.13" in error and "found: Python 3.9.18; install" in error


def test_the_base_python_can_be_chosen(clone: Path, commands: Path) -> None:
    add_python_without_packages(commands)
    answer = run(clone, commands, RPE_D2_PYTHON="python3.99")
    assert "found: none; install" in error_line(answer)
    answer = run(clone, commands, RPE_D2_PYTHON="python3", RPE_D2_DISK_GB="1000000")
    assert "needs 1000000: free some space" in error_line(answer)


@pytest.mark.parametrize("script", SCRIPTS)
def test_full_disk_stops_before_anything_is_created(
    clone: Path, commands: Path, script: str
) -> None:
    add_python_without_packages(commands)
    error = error_line(run(clone, commands, script, RPE_D2_DISK_GB="1000000"))
    assert "needs 1000000: free some space" in error
    assert not (clone / ".venv").exists()


def test_interrupted_environment_is_recreated_and_a_lost_network_is_named(
    clone: Path, commands: Path
) -> None:
    add_python_without_packages(commands)
    (clone / ".venv.lock").write_text("unfinished\n")
    (clone / ".venv").mkdir()
    (clone / ".venv" / "leftover").touch()
    answer = run(clone, commands, RPE_D2_DISK_GB="0")
    assert "an earlier run was interrupted" in answer.stderr
    assert "package index cannot be reached" in error_line(answer)
    assert not (clone / ".venv" / "leftover").exists()
    assert not (clone / ".venv" / "rpe_d2.complete").exists()
    assert (clone / ".venv.lock").read_text() == "unfinished\n"


def test_environment_of_someone_else_stays(clone: Path, commands: Path) -> None:
    add_python_without_packages(commands)
    (clone / ".venv").mkdir()
    (clone / ".venv" / "theirs").touch()
    assert "was not created by this script" in error_line(run(clone, commands))
    assert (clone / ".venv" / "theirs").exists()


def test_finished_environment_is_used_at_once(clone: Path, commands: Path) -> None:
    python = add_finished_environment(clone)  # no other Python is on the PATH
    for _ in range(2):
        answer = run(clone, commands)
        assert (answer.returncode, answer.stdout) == (0, f"{python}\n"), answer.stderr
    assert not (clone / ".venv.lock").exists()


@pytest.mark.parametrize("name", DEFINING)
def test_changed_definition_brings_the_environment_up_to_date(
    clone: Path, commands: Path, name: str
) -> None:
    add_python_without_packages(commands)
    python = add_finished_environment(clone)
    with open(clone / name, "a") as file:
        file.write("\n# changed\n")
    answer = run(clone, commands)
    assert "up to date" in answer.stderr
    assert "No module named pip" in error_line(answer)  # the environment of this test has none
    assert python.exists()


def test_second_run_waits_for_the_first(clone: Path, commands: Path) -> None:
    add_python_without_packages(commands)
    with open(clone / ".venv.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = subprocess.Popen(
            [shutil.which("bash"), "tools/env.sh"],
            cwd=clone,
            env={"PATH": str(commands)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert "another run is creating" in second.stderr.readline()
        assert second.poll() is None
        python = add_finished_environment(clone)
    stdout, stderr = second.communicate(timeout=60)
    assert (second.returncode, stdout) == (0, f"{python}\n"), stderr


def test_active_environment_is_used_as_it_is(clone: Path, commands: Path) -> None:
    add_python(commands, f'exec "{sys.executable}" "$@"')
    variables = {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}
    answer = run(clone, commands, **variables)
    assert (answer.returncode, answer.stdout) == (0, f"{commands / 'python3'}\n"), answer.stderr
    assert not (clone / ".venv").exists() and not (clone / ".venv.lock").exists()


@pytest.fixture(scope="module")
def installer() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "install_detectron2", ROOT / "tools" / "install_detectron2.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tiny_redistribution(tmp_path: Path) -> Path:
    """A wheel with the layout of the redistribution of Detectron2."""
    wheel = tmp_path / "labgym-3.1.2-py3-none-any.whl"
    with ZipFile(wheel, "w") as file:
        file.writestr("LabGym/__init__.py", "raise ImportError('not Detectron2')")
        file.writestr("LabGym/detectron2/__init__.py", "from .config import name")
        file.writestr("LabGym/detectron2/config/__init__.py", "name = 'its config'")
        file.writestr(
            "LabGym/detectron2/layers.py", "from LabGym.detectron2.config import name as of_layers"
        )
        file.writestr("LabGym/detectron2/model_zoo/configs/Base.yaml", "A: LabGym.detectron2.B")
        file.writestr("labgym-3.1.2.dist-info/METADATA", "Name: labgym")
    return wheel


def test_redistribution_becomes_detectron2(
    installer: ModuleType, tiny_redistribution: Path, tmp_path: Path
) -> None:
    try:
        # Importing pip, or looking for its spec, would break a later import of setuptools.
        version("pip")
    except PackageNotFoundError:
        lacking("pip is missing: python -m ensurepip")
    wheel = installer.build_wheel(tiny_redistribution, tmp_path)
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", site, wheel], check=True, capture_output=True)
    assert sorted(path.name for path in site.iterdir()) == [
        "detectron2",
        "detectron2-0.6.dist-info",
    ]
    assert (site / "detectron2/model_zoo/configs/Base.yaml").read_text() == "A: detectron2.B"
    probe = (
        "import detectron2.layers as l, importlib.metadata as m;"
        "print(l.__file__, l.of_layers, m.version('detectron2'))"
    )
    found = subprocess.check_output(
        [sys.executable, "-c", probe], env={**os.environ, "PYTHONPATH": str(site)}, text=True
    )
    assert found == f"{site}/detectron2/layers.py its config 0.6\n"


def test_wheel_with_another_hash_is_refused(tiny_redistribution: Path, tmp_path: Path) -> None:
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    before = sorted((tmp_path / "env").rglob("*"))
    script = ROOT / "tools" / "install_detectron2.py"
    answer = subprocess.run(
        [python, "-I", script, "--wheel", tiny_redistribution], capture_output=True, text=True
    )
    assert (answer.returncode, answer.stdout) == (1, "")
    assert len(answer.stderr.splitlines()) == 1
    assert "has sha256" in answer.stderr and "nothing is installed" in answer.stderr
    assert sorted((tmp_path / "env").rglob("*")) == before


def test_detectron2_that_is_there_is_not_touched(tiny_redistribution: Path) -> None:
    script = ROOT / "tools" / "install_detectron2.py"
    answer = subprocess.run(
        [sys.executable, script, "--wheel", tiny_redistribution], capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith("Detectron2 is already installed: ")


@pytest.fixture(scope="module")
def declared(tmp_path_factory: pytest.TempPathFactory) -> Distribution:
    """The metadata of the package, built by a Python that cannot import torch."""
    try:
        enough = int(version("setuptools").split(".")[0]) >= 77
    except PackageNotFoundError:
        enough = False
    if not enough:
        lacking("setuptools 77 or newer is missing: pip install 'setuptools>=77,<82'")
    source, output = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("metadata")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("rpe_d2", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    script = """
import sys
sys.modules["torch"] = None
from setuptools.build_meta import prepare_metadata_for_build_wheel
prepare_metadata_for_build_wheel(sys.argv[1])
"""
    command = [sys.executable, "-c", script, output]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    return Distribution.at(next(output.glob("*.dist-info")))


def test_an_import_without_opencv_says_what_to_install() -> None:
    pytest.importorskip("detectron2")
    script = "import sys; sys.modules['cv2'] = None; import rpe_d2"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    *_, line = done.stderr.splitlines()
    assert line.startswith("ImportError: rpe_d2 needs OpenCV: pip install opencv-contrib-python-")


def test_no_opencv_package_is_forced_on_an_environment(declared: Distribution) -> None:
    needs = [need for need in declared.requires if "opencv" in need]
    assert needs == ['opencv-contrib-python-headless; extra == "opencv"']


def test_metadata_needs_no_torch(declared: Distribution) -> None:
    package = (ROOT / "rpe_d2" / "__init__.py").read_text(encoding="utf-8")
    assert declared.metadata["Name"] == "rpe_d2"
    assert f'__version__ = "{declared.version}"' in package
    assert declared.metadata["Requires-Python"] == ">=3.10"
    assert declared.metadata["License-Expression"] == "Apache-2.0"
    extras = {"crf", "dev", "digits", "docs", "formats", "large", "napari", "opencv", "serve"}
    extras |= {"spectral"}
    assert set(declared.metadata.get_all("Provides-Extra")) == {*extras, "timm", "wandb"}


def test_there_is_one_program(declared: Distribution) -> None:
    groups = {entry.group: entry.value for entry in declared.entry_points}
    assert groups.pop("napari.manifest") == "rpe_d2:napari.yaml"
    scripts = {e.name: e.value for e in declared.entry_points if e.group == "console_scripts"}
    assert set(groups) == {"console_scripts"} and set(scripts) == {"rpe-d2"}
    for value in scripts.values():
        module, function = value.split(":")
        assert callable(getattr(importlib.import_module(module), function))


def test_every_import_is_declared(declared: Distribution) -> None:
    modules = {"Pillow": "PIL", "PyYAML": "yaml", "scikit-image": "skimage"}
    bare = [re.match(r"[\w-]+", need)[0] for need in declared.requires if "extra ==" not in need]
    allowed = {modules.get(name, name) for name in bare}
    allowed |= {"torch", "torchvision", "triton", "detectron2", "rpe_d2", "wandb", "pydensecrf"}
    allowed |= {"sklearn"}  # an extra, for the digits of a toy data set
    allowed |= {"roifile"}  # an extra, for the ROIs of ImageJ
    allowed |= {"zarr"}  # an extra, for arrays that are larger than memory
    allowed |= {"magicgui", "napari"}  # the plugin for napari
    allowed |= {"gradio"}  # an extra, for the page in the browser
    allowed |= {"cv2"}  # of any package
    undeclared = {}
    sources = (ROOT / "rpe_d2").rglob("*.py"), (ROOT / "tools").glob("*.py")
    for file in [*sources[0], *sources[1]]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            else:
                continue
            for name in {name.split(".")[0] for name in names} - allowed - sys.stdlib_module_names:
                undeclared.setdefault(name, []).append(str(file.relative_to(ROOT)))
    assert not undeclared


@pytest.mark.parametrize("own", [True, False])
def test_a_missing_package_fails_in_our_environment_and_skips_in_a_borrowed_one(
    own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "prefix", str(ROOT / ".venv") if own else "/usr")
    outcome = pytest.fail.Exception if own else pytest.skip.Exception
    with pytest.raises(outcome, match="no_such_package is missing: pip install it"):
        required("no_such_package", "it")
    assert required("json", "it").dumps([1]) == "[1]"
