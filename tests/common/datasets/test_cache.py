"""The cache: whole copies under their names, whatever happens."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import platformdirs
import pytest

from common.datasets.cache import CACHE_VARIABLE, DatasetCache, cache_folder
from common.errors import ArtifactCorrupt, DatasetUnavailable

FILES = {"a.txt": b"1" * 100, "b.txt": b"2"}

STEPPED = """
import os, signal, sys
from pathlib import Path
from common.datasets.cache import DatasetCache
root, step = Path(sys.argv[1]), int(sys.argv[2])
events = 0

def die_at_the_step(event, arguments):
    # the interpreter announces every file operation before it does it
    global events
    if event in ("open", "os.mkdir", "os.rename", "os.symlink", "os.remove", "os.rmdir", "shutil.rmtree"):
        if events == step:
            os.kill(os.getpid(), signal.SIGKILL)
        events += 1

sys.addaudithook(die_at_the_step)
DatasetCache(root).write("shop", {"a.txt": b"new"}, {"origin": "new"}, 2)
os._exit(0)
"""


def test_the_folder_is_what_is_asked_else_the_variable_else_the_users(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "named"))
    assert cache_folder(tmp_path) == tmp_path
    assert cache_folder() == tmp_path / "named"
    monkeypatch.delenv(CACHE_VARIABLE)
    assert cache_folder() == Path(platformdirs.user_cache_dir("anabranch", appauthor=False))


def test_what_is_written_is_read_and_listed(tmp_path: Path) -> None:
    cache = DatasetCache(tmp_path)
    assert (cache.names(), cache.holds("shop")) == ((), False)
    cache.write("shop", FILES, {"origin": "here"}, 1)
    found = cache.read("shop")
    assert (found.files, found.details, cache.details("shop")) == (FILES, {"origin": "here"}, {"origin": "here"})
    assert (cache.names(), cache.holds("shop")) == (("shop",), True)


def test_a_newer_copy_takes_the_place_of_the_older_and_leaves_no_litter(tmp_path: Path) -> None:
    cache = DatasetCache(tmp_path)
    for number in range(3):
        cache.write("shop", {"a.txt": str(number).encode()}, {}, number)
    assert cache.read("shop").files == {"a.txt": b"2"}
    assert len(list(cache.folder.iterdir())) == 2


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_copy_is_not_read(tmp_path: Path, damage: str) -> None:
    cache = DatasetCache(tmp_path)
    cache.write("shop", FILES, {}, 1)
    path = cache.path("shop") / "a.txt"
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(b"3" + FILES["a.txt"][1:] if damage == "flip" else FILES["a.txt"][1:])
    with pytest.raises(ArtifactCorrupt, match=r"a\.txt"):
        cache.read("shop")
    cache.write("shop", FILES, {}, 2)
    assert cache.read("shop").files == FILES


def test_a_cache_that_cannot_be_written_says_so_and_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / "datasets").write_bytes(b"a file where the folder should be")
    with pytest.raises(DatasetUnavailable, match=CACHE_VARIABLE):
        DatasetCache(tmp_path).write("shop", FILES, {}, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["datasets"]


def test_a_folder_in_the_way_is_not_removed(tmp_path: Path) -> None:
    cache = DatasetCache(tmp_path)
    cache.path("shop").mkdir(parents=True)
    (cache.path("shop") / "mine.txt").write_bytes(b"1")
    with pytest.raises(DatasetUnavailable):
        cache.write("shop", FILES, {}, 1)
    assert [path.name for path in cache.folder.iterdir()] == ["shop"]
    assert (cache.path("shop") / "mine.txt").read_bytes() == b"1"


def test_death_at_every_step_leaves_the_old_copy_or_the_new(tmp_path: Path) -> None:
    seen = set()
    for step in range(60):
        root = tmp_path / str(step)
        cache = DatasetCache(root)
        cache.write("shop", {"a.txt": b"old"}, {"origin": "old"}, 1)
        done = subprocess.run([sys.executable, "-c", STEPPED, str(root), str(step)], check=False)
        assert done.returncode in (0, -signal.SIGKILL)
        found = cache.read("shop")
        assert found.files["a.txt"].decode() == found.details["origin"]
        assert cache.names() == ("shop",)
        seen.add(found.details["origin"])
        if done.returncode == 0:
            break
    assert done.returncode == 0, "the program never came to its end"
    assert seen == {"old", "new"}
    assert step >= 6


def test_several_writers_at_once_leave_one_whole_copy(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from common.datasets.cache import DatasetCache\n"
        "cache = DatasetCache(Path(sys.argv[1]))\n"
        "for n in range(20): cache.write('shop', {'a.txt': sys.argv[2].encode() * 10000}, {}, n)"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path), letter], env={**os.environ}) for letter in "xyz"
    ]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    content = DatasetCache(tmp_path).read("shop").files["a.txt"]
    assert content in {letter.encode() * 10_000 for letter in "xyz"}
