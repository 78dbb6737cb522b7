"""Directions of the imports between the packages of rpe_d2, as CONTRIBUTING.md describes them."""

import ast
import re
from functools import lru_cache
from pathlib import Path

import pytest

import rpe_d2  # noqa: F401  registers the components
from tests.conftest import ROOT
from tests.helpers.registries import REGISTRIES

PACKAGE = ROOT / "rpe_d2"
BASE = {"ops", "utils", "config"}
# What each package may import besides itself.
ALLOWED = {
    "ops": set(),
    "utils": set(),
    "config": {"ops", "utils"},
    "data": BASE,
    "evaluation": BASE,
    "visualization": BASE,
    "refinement": {"ops", "utils"},
    "modeling": {"refinement", *BASE},
    "baselines": {"modeling", *BASE},
    "engine": {"data", "evaluation", "visualization", "modeling", *BASE},
    "inference": {"engine", "data", "evaluation", "visualization", "modeling", *BASE},
    "cli": {
        "inference",
        "engine",
        "data",
        "evaluation",
        "visualization",
        "modeling",
        "refinement",
        *BASE,
    },
}
ALLOWED["rpe_d2"] = set(ALLOWED) - {"cli"}  # rpe_d2/__init__.py
ENGINE_FILES = 14
# The one file that names classes of models, all of them Detectron2's.
HOST_NAMES = PACKAGE / "engine" / "host_models.py"


@lru_cache(maxsize=None)
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def room(path: Path) -> str:
    """Returns the package of a file of rpe_d2, or its module for files at the top."""
    first = path.relative_to(PACKAGE).parts[0]
    return "rpe_d2" if first == "__init__.py" else first.removesuffix(".py")


def imported_modules(path: Path) -> set[str]:
    """Returns the full names of everything that a file imports, anywhere in it."""
    package = ".".join(path.relative_to(ROOT).parts[:-1])
    modules = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parent, *([node.module] if node.module else [])])
            modules.update(f"{base}.{alias.name}" for alias in node.names)
    return modules


def imported_rooms(path: Path) -> set[str]:
    """Returns the packages of rpe_d2 that a file imports from."""
    rooms = set()
    for module in imported_modules(path):
        first, _, rest = module.partition(".")
        if first == "rpe_d2" and rest and rest != "__version__":  # a constant, no dependency
            name = rest.split(".")[0]
            rooms.add(name if name in ALLOWED else "rpe_d2")
    return rooms


def test_every_package_has_a_place() -> None:
    assert {room(path) for path in PACKAGE.rglob("*.py")} <= set(ALLOWED)


@pytest.mark.parametrize("name", ALLOWED)
def test_imports_point_downwards(name: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {other}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if room(path) == name
        for other in sorted(imported_rooms(path) - ALLOWED[name] - {name})
    ]
    assert not wrong, "\n".join(wrong)


def test_tools_import_only_the_command_lines() -> None:
    wrong = [
        f"{path.name} imports {other}"
        for path in sorted((ROOT / "tools").glob("*.py"))
        for other in imported_rooms(path) - {"cli"}
    ]
    assert not wrong


def test_baselines_are_imported_by_the_package_alone() -> None:
    importers = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if room(path) != "baselines" and "baselines" in imported_rooms(path)
    }
    assert importers == {"__init__.py"}


def test_operators_need_neither_detectron2_nor_a_configuration() -> None:
    wrong = []
    for path in sorted((PACKAGE / "ops").glob("*.py")):
        foreign = {module.split(".")[0] for module in imported_modules(path)}
        wrong += [f"{path.name} imports {m}" for m in foreign & {"detectron2", "fvcore", "yacs"}]
        names = {node.id for node in ast.walk(tree(path)) if isinstance(node, ast.Name)}
        names |= {node.arg for node in ast.walk(tree(path)) if isinstance(node, ast.arg)}
        wrong += [f"{path.name} uses {name}" for name in names & {"cfg", "CfgNode"}]
    assert not wrong


def test_the_engine_is_small() -> None:
    files = sorted(path.name for path in (PACKAGE / "engine").glob("*.py"))
    assert len(files) <= ENGINE_FILES, files


def docstrings(module: ast.Module) -> set[int]:
    """Returns the ids of the constants that are docstrings."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return {
        id(node.body[0].value)
        for node in ast.walk(module)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }


def words(path: Path) -> dict[str, int]:
    """Returns the identifiers of a file and the words of its strings, with their lines."""
    found = {}
    excluded = docstrings(tree(path))
    for node in ast.walk(tree(path)):
        texts = []
        if isinstance(node, ast.Name):
            texts = [node.id]
        elif isinstance(node, ast.Attribute):
            texts = [node.attr]
        elif isinstance(node, ast.alias):
            texts = node.name.split(".")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts = re.findall(r"\w+", node.value) if id(node) not in excluded else []
        found.update((text, getattr(node, "lineno", 0)) for text in texts)
    return found


def test_models_are_not_named_above_modeling() -> None:
    """Models declare what the engine needs, so a new one changes no file of these packages."""
    registered = [(name, entry) for registry in REGISTRIES for name, entry in registry]
    own = {name for name, entry in registered if entry.__module__.startswith("rpe_d2.")}
    hosts = {name for name, _ in registered} - own
    assert "PixelEmbeddingNet" in own and "GeneralizedRCNN" in hosts
    wrong = []
    for package in ("engine", "inference", "cli"):
        for path in sorted((PACKAGE / package).rglob("*.py")):
            names = own if path == HOST_NAMES else own | hosts
            wrong += [
                f"{path.relative_to(ROOT)}:{line} names {word}"
                for word, line in words(path).items()
                if word in names
            ]
    assert not wrong, "\n".join(wrong)


def test_durations_do_not_depend_on_the_clock_on_the_wall() -> None:
    """It may be set back, and durations would be negative."""
    sources = (ROOT / "rpe_d2").rglob("*.py")
    assert [str(path) for path in sources if "time.time()" in path.read_text()] == []
