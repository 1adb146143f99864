"""The folder that the processes of a service share while it runs: in memory, where there is room."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MEMORY = Path("/dev/shm")  # noqa: S108  a folder of our own is made in it
ROOM = 4 << 30
"""Bytes that must be free there: a catalogue of 100,000 items takes a tenth, twice while a version is taken up.

Containers have 64 MB unless they are told otherwise, and use the temporary folder.
"""
_NAME = "anabranch-serve-"


@contextmanager
def service_folder(memory: Path = MEMORY, room: int = ROOM) -> Iterator[Path]:
    """Give a folder of our own, removed at the end; in the folder that TMPDIR names, where it is set.

    Everything written there is read back at once, so a disk would only be written to for nothing, and a new page in its
    cache costs several times what one in memory does. What services left that were killed is removed first.
    """
    where = None if "TMPDIR" in os.environ or not _has_room(memory, room) else str(memory)
    for path in Path(where or tempfile.gettempdir()).glob(f"{_NAME}*-*"):
        _remove_if_left(path)
    with tempfile.TemporaryDirectory(prefix=f"{_NAME}{os.getpid()}-", dir=where) as folder:
        yield Path(folder)


def _has_room(memory: Path, room: int) -> bool:
    try:
        return os.access(memory, os.W_OK | os.X_OK) and shutil.disk_usage(memory).free >= room
    except OSError:
        return False


def _remove_if_left(path: Path) -> None:
    """Remove the folder of a process of ours that is gone."""
    pid = path.name.removeprefix(_NAME).partition("-")[0]
    try:
        if not pid.isdecimal() or path.is_symlink() or path.stat().st_uid != os.getuid():
            return
        os.kill(int(pid), 0)
    except ProcessLookupError:
        shutil.rmtree(path, ignore_errors=True)
    except (OSError, OverflowError):  # somebody else's, or gone meanwhile
        return
