"""The rpe-d2 program: its help, its version, its errors and how it calls a command."""

import ast
import importlib.util
import sys

import pytest

from rpe_d2 import __version__
from rpe_d2.cli.main import COMMANDS, main
from tests.conftest import ROOT


def test_help_lists_every_command(capsys) -> None:
    assert main(["--help"]) == 0
    usage = capsys.readouterr().out.splitlines()
    for name, command in COMMANDS.items():
        assert [line.split() for line in usage].count([name, *command.help.split()]) == 1


def test_version(capsys) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"rpe-d2 {__version__}\n"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["trian", "--config-file", "x.yaml"], "has no command trian; did you mean train?"),
        (["refine_masks"], "has no command refine_masks; did you mean refine-masks?"),
        (["xyzzy"], "has no command xyzzy; allowed: predict, "),
    ],
)
def test_an_unknown_command_is_one_line(arguments, message, capsys) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: rpe-d2 {message}") and captured.err.count("\n") == 1
    assert captured.out == ""


def test_without_a_command_the_usage_is_an_error(capsys) -> None:
    assert main([]) == 2
    assert "usage: rpe-d2 COMMAND" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_documents_its_exit_status(name) -> None:
    source = importlib.util.find_spec(COMMANDS[name].module).origin
    with open(source, encoding="utf-8") as file:
        functions = {
            node.name: node
            for node in ast.parse(file.read()).body
            if isinstance(node, ast.FunctionDef)
        }
    assert "Returns:" in ast.get_docstring(functions["main"])
    assert [argument.arg for argument in functions["main"].args.args] == ["argv"]
    assert ast.unparse(functions["main"].returns) == "int"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_tool_is_a_shim_on_a_command(name) -> None:
    tool = "train_net" if name == "train" else name.replace("-", "_")
    source = (ROOT / "tools" / f"{tool}.py").read_text(encoding="utf-8")
    assert f"from {COMMANDS[name].module} import main\n" in source


def test_a_command_is_called_by_its_name(tmp_path, capsys, monkeypatch) -> None:
    """Its help names the program, and its exit status is the program's."""
    monkeypatch.setattr(sys, "argv", ["before"])
    with pytest.raises(SystemExit) as stop:
        main(["split-coco", "--help"])
    assert stop.value.code == 0
    assert "usage: rpe-d2 split-coco " in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(["split-coco", str(tmp_path / "none.json")])
    assert stop.value.code == 2 and "none.json" in capsys.readouterr().err
    assert sys.argv == ["before"]
