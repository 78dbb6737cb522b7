"""The commit and the CPU time in records of runs."""

import subprocess
import sys

import pytest

from rpe_d2.engine import run_record
from tests.conftest import ROOT


@pytest.fixture
def repository(tmp_path):
    """A git repository with one commit, and a folder in it that is no repository of its own."""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    (tmp_path / "inner" / "rpe_d2").mkdir(parents=True)
    (tmp_path / "rpe_d2").mkdir()
    for folder in (tmp_path, tmp_path / "inner"):
        (folder / "rpe_d2" / "code.py").write_text("")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    return tmp_path


def test_the_commit_is_that_of_the_package_s_own_repository(repository, monkeypatch):
    monkeypatch.setattr(run_record, "_REPOSITORY", repository)
    commit = run_record.current_commit()
    assert len(commit) == 12 and int(commit, 16) >= 0
    (repository / "README.md").write_text("not code")
    assert run_record.current_commit() == commit
    (repository / "rpe_d2" / "code.py").write_text("changed")
    assert run_record.current_commit() == f"{commit}+changes"


def test_a_package_inside_another_repository_has_no_commit(repository, monkeypatch):
    """As in site-packages of an environment that lies inside a user's repository."""
    monkeypatch.setattr(run_record, "_REPOSITORY", repository / "inner")
    assert run_record.current_commit() == ""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(run_record, "_REPOSITORY", repository)
    assert run_record.current_commit() == ""  # no git


def test_this_source_tree_is_where_the_commit_is_looked_up():
    assert run_record._REPOSITORY == ROOT


def test_cpu_time_includes_processes_that_run_and_that_have_ended():
    burn = "import time\nwhile time.process_time() < 0.6: pass\nprint('done', flush=True)\n"
    start = run_record.cpu_seconds()
    subprocess.run([sys.executable, "-c", burn], capture_output=True, check=True)
    assert run_record.cpu_seconds() - start >= 0.55
    command = [sys.executable, "-c", burn + "input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        running.stdout.readline()
        assert run_record.cpu_seconds() - start >= 1.1
        running.communicate(b"\n")
    assert run_record.cpu_seconds() - start >= 1.1
