"""The power goes, or the process dies, at any moment: `current` names a whole version, and no version is half."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import NoModel
from server.registry import CURRENT, Registry
from server.retention import collect
from server.storage.local import LocalStorage
from server.store_info import StoreInfo
from tests.common.power_cut import RecordingDisk, lay_out
from tests.server.serving.stores import SHA256, checker_board, new_store, publish, version_manifest

INFO = StoreInfo("words", SHA256, "checker-board", 1_000)
FILES = {"adapter/adapter_config.json": b"{}", "adapter/weights.bin": b"0123456789", "vectors.bin": b"9876543210"}


def states_after_a_cut(disk: RecordingDisk, folder: Path) -> set[tuple[str, tuple[str, ...]] | None]:
    """Open every store that a power cut could leave; each must be whole. Return what was current and what was there."""
    states: set[tuple[str, tuple[str, ...]] | None] = set()
    for number, tree in enumerate(sorted(disk.trees, key=sorted)):
        root = folder / str(number)
        root.mkdir(parents=True)
        lay_out(tree, root)
        try:
            registry = Registry.open(root)
            current = registry.current()
        except NoModel:
            states.add(None)
            continue
        assert registry.verify(CURRENT) == current
        assert all(registry.verify(name) for name in registry.names())
        assert set(registry.pointers().values()) <= set(registry.names())
        states.add((current.version, registry.names()))
    return states


def recorded(root: Path) -> tuple[Registry, RecordingDisk]:
    """Return the store with a disk that remembers; what is there counts as durable."""
    disk = RecordingDisk(root)
    return Registry.of(LocalStorage(root, disk)), disk


def put(registry: Registry, number: int) -> None:
    parents = (f"v{number - 1}",) if number > 1 else ()
    registry.publish(FILES, version_manifest(f"v{number}", parents=parents, created_at=number))
    registry.point(CURRENT, f"v{number}")


def test_a_power_cut_while_the_next_version_is_published(tmp_path: Path) -> None:
    put(new_store(tmp_path / "store"), 1)
    registry, disk = recorded(tmp_path / "store")
    put(registry, 2)
    assert states_after_a_cut(disk, tmp_path / "left") == {
        ("v1", ("v1",)),
        ("v1", ("v1", "v2")),
        ("v2", ("v1", "v2")),
    }
    # once `point` has returned, nothing can bring the old one back
    assert len(disk.now) == 1


def test_a_power_cut_while_the_first_version_is_published(tmp_path: Path) -> None:
    # the folders of versions and pointers are new, too
    new_store(tmp_path / "store")
    registry, disk = recorded(tmp_path / "store")
    put(registry, 1)
    assert states_after_a_cut(disk, tmp_path / "left") == {None, ("v1", ("v1",))}
    assert len(disk.now) == 1


def test_a_power_cut_while_versions_are_removed(tmp_path: Path) -> None:
    for number in range(1, 5):
        put(new_store(tmp_path / "store"), number)
    registry, disk = recorded(tmp_path / "store")
    assert collect(registry, keep=1, now=1 << 50).removed == ("v1", "v2")
    assert states_after_a_cut(disk, tmp_path / "left") == {
        ("v4", ("v1", "v2", "v3", "v4")),
        ("v4", ("v2", "v3", "v4")),
        ("v4", ("v3", "v4")),
    }


def test_a_power_cut_while_a_store_is_made(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    disk = RecordingDisk(tmp_path / "store")
    storage = LocalStorage(tmp_path / "store", disk)
    storage.write("catalogue.jsonl", (new_store(tmp_path / "twin").root / "catalogue.jsonl").read_bytes())
    storage.write("store.json", (tmp_path / "twin" / "store.json").read_bytes())
    opened = 0
    for number, tree in enumerate(disk.trees):
        root = tmp_path / "left" / str(number)
        root.mkdir(parents=True)
        lay_out(tree, root)
        try:
            assert tuple(Registry.open(root).catalogue) == tuple(checker_board())
            opened += 1
        except NoModel:
            # nobody was told that there is a store; it is made anew
            Registry.create(root, INFO, checker_board())
            assert Registry.open(root).info == INFO
    assert opened == 1
    assert len(disk.trees) > 1


PUBLISHERS = """
import os, random, signal, sys, time
from pathlib import Path
from server.registry import CURRENT, Registry
from server.retention import collect
from tests.server.serving.stores import version_files, version_manifest

root, deaths = Path(sys.argv[1]), int(sys.argv[2])
registry, moments = Registry.open(root), random.Random(3)
files = version_files(registry, 1)


def work(first):
    number = first
    while True:
        made = version_manifest(f"v{number:09d}", parents=registry.names()[-1:], created_at=number)
        registry.publish(files, made)
        registry.point(CURRENT, made.version)
        collect(registry, 2, 1 << 40)
        number += 1


torn, span, before = set(), 0.04, None
for death in range(deaths):
    child = os.fork()
    if child == 0:
        work(1000 * (death + 1))
    time.sleep(moments.uniform(0.0, span))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the publisher failed by itself"
    opened = Registry.open(root)
    current = opened.current()
    assert opened.verify(CURRENT) == current, death
    assert all(opened.verify(name) for name in opened.names()), death
    # about every second one shall get as far as a new version, on a busy machine as on an idle one
    span = span / 1.5 if current.version != before else min(2.0, span * 1.5)
    before = current.version
    torn |= {path.suffix for path in (root / "versions").glob(".*")}
    torn |= {path.suffix for path in (root / "pointers").glob(".*")}
print(opened.current().version, *sorted(torn))
"""


def kill_publishers(root: Path, deaths: int) -> None:
    """Kill a publisher that also removes versions, many times, at random instants; the store is checked after each."""
    publish(new_store(root), "v000000000", seed=1)
    done = subprocess.run(
        [sys.executable, "-c", PUBLISHERS, str(root), str(deaths)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).resolve().parents[2],
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    current, *torn = done.stdout.split()
    assert current > "v000000000", "no version was ever published"
    assert ".tmp" in torn, "no death fell within a publication: the test tested nothing"


def test_kill_9_at_random_instants_leaves_a_whole_current(tmp_path: Path) -> None:
    kill_publishers(tmp_path, 30)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kill_9_at_random_instants_for_long(tmp_path: Path) -> None:
    kill_publishers(tmp_path, 1000)
