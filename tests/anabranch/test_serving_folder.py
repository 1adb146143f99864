"""The shared folder of a service: in memory where there is room, and nothing is left there."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from anabranch.serving_folder import service_folder


@pytest.fixture(autouse=True)
def _no_tmpdir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TMPDIR", raising=False)


def test_it_is_in_memory_where_there_is_room_and_gone_afterwards(tmp_path: Path) -> None:
    with service_folder(tmp_path, room=1) as folder:
        assert folder.parent == tmp_path
        assert folder.stat().st_mode & 0o777 == 0o700
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("why", ["no room", "no folder", "named"])
def test_it_is_where_temporary_files_are_otherwise(why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, room = tmp_path, 1
    if why == "no room":
        room = 1 << 62
    elif why == "no folder":
        memory = tmp_path / "nothing"
    else:
        monkeypatch.setenv("TMPDIR", "/named/by/somebody")
    with service_folder(memory, room) as folder:
        assert tmp_path not in folder.parents


def test_what_a_killed_service_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    program = f"""
import os, signal
from pathlib import Path
from anabranch.serving_folder import service_folder
with service_folder(Path({str(tmp_path)!r}), 1) as folder:
    (folder / "bundle").mkdir()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", program], check=False, env={**os.environ})
    assert killed.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    others = [tmp_path / f"anabranch-serve-{os.getpid()}-abc", tmp_path / "anabranch-serve-mine", tmp_path / "other"]
    for other in others:
        other.mkdir()
    # a link that only looks like one that was left leads nowhere
    link = tmp_path / f"{left.name}x"
    link.symlink_to(tmp_path / "other")
    with service_folder(tmp_path, 1):
        assert not left.exists()
        assert all(other.is_dir() for other in others)
        assert link.is_symlink()
