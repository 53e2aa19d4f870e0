from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from distillrs.files import folder_lock, whole_file, write_whole


def test_a_file_appears_whole_and_readable_like_any_other(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    with whole_file(path) as file:
        file.write(b"12")
        assert not path.exists()
        file.write(b"34")
    assert path.read_bytes() == b"1234"
    other = tmp_path / "plain"
    other.write_bytes(b"")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(other.stat().st_mode)


def test_a_failure_on_the_way_keeps_the_old_content_and_leaves_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_whole(path, b"old")

    def interrupted() -> None:
        with whole_file(path) as file:
            file.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


TRY = """
import sys
from pathlib import Path
from distillrs.files import folder_lock
try:
    with folder_lock(Path(sys.argv[1])):
        print("held")
except BlockingIOError:
    print("refused")
"""


def test_a_folder_is_one_process_s_at_a_time(tmp_path: Path) -> None:
    def other() -> str:
        command = [sys.executable, "-c", TRY, str(tmp_path)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    with folder_lock(tmp_path):
        assert other() == "refused"
    assert other() == "held"
