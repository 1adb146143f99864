"""kill -9 in the middle of a write: the old content is there, or the new, never a mix."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.errors import ArtifactCorrupt
from common.store import MANIFEST_NAME, verify_folder

KILLS = 8
SIZE = 1 << 20

WRITE_LOOP = """
import sys
from pathlib import Path
from common.store import write_atomic
path, size = Path(sys.argv[1]), int(sys.argv[2])
number = 0
while True:
    write_atomic(path, bytes([number % 256]) * size)
    number += 1
    if number == 1:
        print("going", flush=True)
"""

PUBLISH_LOOP = """
import sys
from pathlib import Path
from common.manifests import Manifest
from common.store import publish_folder
root, size, first = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
number = first
while True:
    content = bytes([number % 256]) * size
    files = {"a.bin": content, "deep/b.bin": content}
    publish_folder(root / f"v{number}", files, Manifest("adapter", f"v{number}", (), number))
    number += 1
    if number == first + 1:
        print("going", flush=True)
"""

STEPPED = """
import os, signal, sys
from pathlib import Path
from common.manifests import Manifest
from common.store import publish_folder, write_atomic
what, root, step = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
events = 0

def die_at_the_step(event, arguments):
    # the interpreter announces every file operation before it does it
    global events
    if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"):
        if events == step:
            os.kill(os.getpid(), signal.SIGKILL)
        events += 1

sys.addaudithook(die_at_the_step)
if what == "write":
    write_atomic(root / "old" / "file", b"new" * 2000)
else:
    publish_folder(root / "v1", {"a.bin": b"1", "deep/b.bin": b"2"}, Manifest("adapter", "v1", (), 0))
os._exit(0)
"""


def run_and_kill(program: str, arguments: list[str], seconds: float) -> None:
    """Start the loop, wait until it writes, kill it without warning after `seconds`."""
    process = subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"going\n"
        time.sleep(seconds)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL


def test_a_file_is_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    moments = random.Random(1)  # noqa: S311 - moments of death, not secrets
    path = tmp_path / "file"
    for _ in range(KILLS):
        run_and_kill(WRITE_LOOP, [str(path), str(SIZE)], moments.uniform(0.0, 0.03))
        content = path.read_bytes()
        assert len(content) == SIZE
        assert content == content[:1] * SIZE
    assert list(tmp_path.glob(".file.*.tmp")), "no death fell within a write: the test tested nothing"


def test_a_published_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    moments = random.Random(2)  # noqa: S311 - see above
    whole = 0
    for attempt in range(KILLS):
        run_and_kill(PUBLISH_LOOP, [str(tmp_path), str(SIZE // 4), str(1000 * attempt)], moments.uniform(0.0, 0.03))
        published = [path for path in tmp_path.iterdir() if not path.name.startswith(".")]
        for folder in published:
            manifest = verify_folder(folder)
            assert manifest.version == folder.name
            assert set(manifest.files) == {"a.bin", "deep/b.bin"}
            assert len(set(manifest.files.values())) == 1
        assert len(published) > whole
        whole = len(published)
    assert list(tmp_path.glob(".v*.tmp")), "no death fell within a publication: the test tested nothing"


@pytest.mark.parametrize("what", ["write", "publish"])
def test_death_at_every_step_leaves_the_old_or_the_new(tmp_path: Path, what: str) -> None:
    seen = set()
    for step in range(60):
        root = tmp_path / str(step)
        (root / "old").mkdir(parents=True)
        (root / "old" / "file").write_bytes(b"old" * 1000)
        done = subprocess.run([sys.executable, "-c", STEPPED, what, str(root), str(step)], check=False)
        assert done.returncode in (0, -signal.SIGKILL)
        if what == "write":
            content = (root / "old" / "file").read_bytes()
            assert content in (b"old" * 1000, b"new" * 2000)
            seen.add(content[:3])
        elif (root / "v1").exists():
            assert set(verify_folder(root / "v1").files) == {"a.bin", "deep/b.bin"}
            seen.add(b"new")
        else:
            seen.add(b"old")
        if done.returncode == 0:
            break
    assert done.returncode == 0, "the program never came to its end"
    assert seen == {b"old", b"new"}
    assert step >= 3


def test_a_torn_staging_folder_is_never_taken_for_an_artifact(tmp_path: Path) -> None:
    # what a power cut may leave: a staging folder that has its files but no manifest yet
    staging = tmp_path / ".v1.0123.tmp"
    staging.mkdir()
    (staging / "a.bin").write_bytes(b"half")
    with pytest.raises(ArtifactCorrupt, match=MANIFEST_NAME):
        verify_folder(staging)
