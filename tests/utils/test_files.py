"""Writing files under unused names."""

import os
from pathlib import Path

from rpe_d2.utils.files import LOCK, locked_folder, make_new_folder, write_new_file


def test_existing_files_stay_and_new_ones_are_numbered(tmp_path: Path) -> None:
    names = [write_new_file(tmp_path / "a.b.png", bytes([i])).name for i in range(3)]
    assert names == ["a.b.png", "a.b-2.png", "a.b-3.png"]
    assert (tmp_path / "a.b.png").read_bytes() == b"\0"


def test_the_name_of_a_dangling_link_is_taken(tmp_path: Path) -> None:
    """It used to count as unused, but cannot be created: an endless loop."""
    for name in ("a.png", "folder"):
        (tmp_path / name).symlink_to(tmp_path / "nowhere")
    assert write_new_file(tmp_path / "a.png", b"0").name == "a-2.png"
    assert make_new_folder(tmp_path / "folder").name == "folder-2"
    assert not (tmp_path / "nowhere").exists()


def test_a_pipe_with_the_name_of_the_lock_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / LOCK)
    with locked_folder(tmp_path):
        (tmp_path / "result").write_text("written")
    assert (tmp_path / LOCK).is_fifo() and (tmp_path / "result").read_text() == "written"
