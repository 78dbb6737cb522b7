"""Installs Detectron2 and its dependencies for the Python that runs this script.

The official source is tried first. If it cannot be reached or built, a redistribution on PyPI is
used instead: the wheel of labgym, pinned by its hash, contains Detectron2's tree of January 2024
with only its import prefix changed. The prefix is changed back, and the tree is installed as an
ordinary distribution ``detectron2``. A Detectron2 that can already be imported is never changed.
"""

from __future__ import annotations  # so that an old Python reaches the check of its version

import argparse
import base64
import hashlib
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

OFFICIAL_SOURCE = "https://github.com/facebookresearch/detectron2.git"
OFFICIAL_TIMEOUT = 15  # seconds to wait for an answer of the official source
REDISTRIBUTION = "labgym==3.1.2"
REDISTRIBUTION_SHA256 = "a2900cff8a3fb508e1975f19b5f9abd9f261966db87b0c332697fb4138c1cb2b"
REDISTRIBUTION_VERSION = "0.6"
# Imports of Detectron2 besides torch, torchvision and OpenCV, with Detectron2's own bounds.
NEEDS = [
    "cloudpickle",
    "fvcore>=0.1.5,<0.1.6",
    "hydra-core>=1.1",
    "iopath>=0.1.7,<0.1.10",
    "matplotlib",
    "omegaconf>=2.1,<2.4",
    "packaging",
    "Pillow>=7.1",
    "pycocotools>=2.0.2",
    "setuptools<82",  # has pkg_resources, which detectron2.model_zoo imports
    "tabulate",
    "tensorboard",
    "termcolor>=1.1",
    "tqdm>4.29.0",
    "yacs>=0.1.8",
]


def check_sha256(wheel: Path) -> None:
    """Exits with one line unless ``wheel`` is the pinned redistribution."""
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != REDISTRIBUTION_SHA256:
        raise SystemExit(
            f"error: {wheel.name} has sha256 {found}, not {REDISTRIBUTION_SHA256}: nothing is "
            "installed; delete it and download it again, or install Detectron2 by hand"
        )


def build_wheel(redistribution: Path, folder: Path) -> Path:
    """Builds a wheel that contains Detectron2 alone, under its own import name.

    Args:
        redistribution: wheel of labgym, with Detectron2 under ``LabGym/detectron2``.
        folder: folder in which the new wheel is written.

    Returns:
        The path of the new wheel.
    """
    dist_info = f"detectron2-{REDISTRIBUTION_VERSION}.dist-info"
    with ZipFile(redistribution) as source:
        files = {
            name.removeprefix("LabGym/"): source.read(name).replace(
                b"LabGym.detectron2", b"detectron2"
            )
            for name in source.namelist()
            if name.startswith("LabGym/detectron2/") and not name.endswith("/")
        }
    metadata = [
        "Metadata-Version: 2.1",
        "Name: detectron2",
        f"Version: {REDISTRIBUTION_VERSION}",
        "Summary: Detectron2 (January 2024, without C extension) as redistributed in "
        f"{REDISTRIBUTION}",
        "License: Apache-2.0",
        *(f"Requires-Dist: {need}" for need in NEEDS),
    ]
    tags = ["Wheel-Version: 1.0", "Generator: rpe_d2", "Root-Is-Purelib: true", "Tag: py3-none-any"]
    files[f"{dist_info}/METADATA"] = ("\n".join(metadata) + "\n").encode()
    files[f"{dist_info}/WHEEL"] = ("\n".join(tags) + "\n").encode()
    record = [f"{name},{_record_hash(content)},{len(content)}" for name, content in files.items()]
    record.append(f"{dist_info}/RECORD,,")
    files[f"{dist_info}/RECORD"] = ("\n".join(record) + "\n").encode()

    wheel = folder / f"detectron2-{REDISTRIBUTION_VERSION}-py3-none-any.whl"
    with ZipFile(wheel, "w", ZIP_DEFLATED) as target:
        for name, content in files.items():
            target.writestr(name, content)
    return wheel


def _record_hash(content: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest())
    return "sha256=" + digest.decode().rstrip("=")


def _pip(*arguments: str, environment: dict[str, str] | None = None) -> bool:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, env={**os.environ, **(environment or {})}).returncode == 0


def _imported_detectron2() -> str | None:
    """Returns version and folder of the Detectron2 that this Python imports, or None."""
    # A new process, because this one does not see modules that were installed since it started.
    probe = (
        "import detectron2 as d; from detectron2.config import get_cfg;"
        "print(d.__version__, *d.__path__)"
    )
    # -c puts the current folder on the path, where a clone of Detectron2 may lie.
    answer = subprocess.run(
        [sys.executable, "-c", probe], cwd=sys.prefix, capture_output=True, text=True
    )
    return answer.stdout.strip() if answer.returncode == 0 else None


def _official_source_fails() -> str | None:
    """Returns why the official source cannot be reached, or None if it can."""
    try:
        answer = subprocess.run(
            ["git", "ls-remote", OFFICIAL_SOURCE, "HEAD"],
            env={**os.environ, "GIT_TERMINAL_PROMPT": "0"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=OFFICIAL_TIMEOUT,
        )
    except FileNotFoundError:
        return "git is not installed"
    except subprocess.TimeoutExpired:
        return f"no answer within {OFFICIAL_TIMEOUT} s"
    if answer.returncode == 0:
        return None
    return (answer.stderr.strip().splitlines() or ["git ls-remote failed"])[-1]


def _install_official() -> bool:
    reason = _official_source_fails()
    if reason:
        print(f"The official source cannot be reached ({reason}).", flush=True)
        return False
    print(f"Detectron2 from its official source, {OFFICIAL_SOURCE}", flush=True)
    # A connection that stalls (under 1 kB/s for 30 s) ends instead of hanging.
    git = {
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_HTTP_LOW_SPEED_LIMIT": "1000",
        "GIT_HTTP_LOW_SPEED_TIME": "30",
    }
    built = _pip("install", "setuptools<82", "wheel") and _pip(
        "install", "--no-build-isolation", f"git+{OFFICIAL_SOURCE}", environment=git
    )
    if not built:
        print("The official source could not be built (it needs a C++ compiler).", flush=True)
    return built


def _install_redistribution(wheel: Path | None) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if wheel is None:
            print(f"Detectron2 from its redistribution, {REDISTRIBUTION} on PyPI", flush=True)
            download = ["download", "--quiet", "--no-deps", "--ignore-requires-python"]
            if not _pip(*download, "--only-binary=:all:", "--dest", name, REDISTRIBUTION):
                raise SystemExit(
                    f"error: {REDISTRIBUTION} could not be downloaded: check the connection to the "
                    "package index and run again"
                )
            wheel = next(folder.glob("*.whl"))
            check_sha256(wheel)
        build_wheel(wheel, folder)
        # By name, so that `pip freeze` shows no path of a temporary folder.
        local = ["--no-deps", "--no-index", "--find-links", name]
        if not _pip("install", *local, f"detectron2=={REDISTRIBUTION_VERSION}"):
            raise SystemExit("error: pip could not install Detectron2: see its message above")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument(
        "--wheel", type=Path, help=f"the wheel of {REDISTRIBUTION}, downloaded beforehand"
    )
    wheel = parser.parse_args().wheel

    if sys.version_info < (3, 10):
        raise SystemExit(f"error: Python 3.10 or newer is needed, this is {sys.version.split()[0]}")
    found = _imported_detectron2()
    if found:
        print(f"Detectron2 is already installed: {found}")
        return
    if wheel:
        check_sha256(wheel)
    for module, remedy in {
        "torch": "pip install torch torchvision",
        "torchvision": "pip install torch torchvision",
        "pip": "python -m ensurepip",
    }.items():
        if not find_spec(module):
            raise SystemExit(f"error: {sys.executable} has no {module}: {remedy}, then run again")

    opencv = [] if find_spec("cv2") else ["opencv-contrib-python-headless"]  # any OpenCV works
    if not _pip("install", *NEEDS, *opencv):
        raise SystemExit("error: Detectron2's dependencies cannot be installed: see pip's message")
    if not find_spec("detectron2"):
        if wheel or not _install_official():
            _install_redistribution(wheel)
    found = _imported_detectron2()
    if not found:
        raise SystemExit(
            "error: the installed Detectron2 cannot be imported: see what `python -c 'import "
            "detectron2.config'` says; to have it replaced, pip uninstall detectron2 and run again"
        )
    print(f"Detectron2 is installed: {found}")


if __name__ == "__main__":
    main()
