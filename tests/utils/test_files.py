"""Writing files under unused names."""

from pathlib import Path

from rpe_d2.utils.files import write_new_file


def test_existing_files_stay_and_new_ones_are_numbered(tmp_path: Path) -> None:
    names = [write_new_file(tmp_path / "a.b.png", bytes([i])).name for i in range(3)]
    assert names == ["a.b.png", "a.b-2.png", "a.b-3.png"]
    assert (tmp_path / "a.b.png").read_bytes() == b"\0"
