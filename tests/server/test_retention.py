"""What a store can do without goes; what anybody needs stays, whoever works on the store meanwhile."""

import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InvalidSetting
from server.registry import Registry
from server.retention import FRESH, GRACE, collect, plan_retention
from tests.server.serving.stores import new_store, publish, version_files, version_manifest

NOW = 1 << 50


def chain(registry: Registry, count: int) -> None:
    """Publish v1, v2, ..., each made from the one before."""
    files = {"a.bin": b"1"}
    for number in range(1, count + 1):
        parents = (f"v{number - 1}",) if number > 1 else ()
        registry.publish(files, version_manifest(f"v{number}", parents=parents, created_at=number))


def test_the_newest_the_named_and_their_parents_stay(tmp_path: Path) -> None:
    registry = new_store(tmp_path)
    chain(registry, 9)
    registry.point("current", "v7")
    registry.point("champion", "v3")
    plan = plan_retention(registry, keep=1, now=NOW)
    assert plan.kept == {
        "v9": "among the newest",
        "v8": "parent of v9",
        "v7": "current stands for it",
        "v6": "parent of v7",
        "v3": "champion stands for it",
        "v2": "parent of v3",
    }
    assert plan.removed == ("v1", "v4", "v5")
    sizes = sum(registry.storage.size(name) for name in plan.removed)
    done = collect(registry, keep=1, now=NOW)
    assert (done.removed, done.freed, done.kept, done.leftovers) == (("v1", "v4", "v5"), sizes, plan.kept, 0)
    assert registry.names() == ("v2", "v3", "v6", "v7", "v8", "v9")
    assert all(registry.verify(name) for name in registry.names())
    assert collect(registry, keep=1, now=NOW).removed == ()
    assert {path.name[0] for path in (tmp_path / "versions").iterdir()} == {"v"}


def test_a_damaged_version_stays_for_a_person_to_judge(tmp_path: Path) -> None:
    registry = new_store(tmp_path)
    chain(registry, 5)
    (registry.folder("v1") / "manifest.json").write_bytes(b"{")
    assert plan_retention(registry, keep=1, now=NOW).kept["v1"] == "damaged"
    collect(registry, keep=1, now=NOW)
    assert registry.names() == ("v1", "v4", "v5")


def test_a_fresh_version_without_a_child_stays_though_it_seems_old(tmp_path: Path) -> None:
    registry = new_store(tmp_path)
    chain(registry, 4)
    registry.publish({}, version_manifest("aside", parents=("v1",), created_at=0))
    assert plan_retention(registry, keep=1, now=FRESH - 1).kept["aside"] == "fresh"
    assert plan_retention(registry, keep=1, now=FRESH - 1).removed == ("v2",)
    assert plan_retention(registry, keep=1, now=FRESH).removed == ("aside", "v1", "v2")


def test_one_version_at_least_is_kept(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match="keep = 0; expected 1 or more"):
        plan_retention(new_store(tmp_path), keep=0, now=NOW)


def test_what_dead_publishers_left_goes_after_a_day(tmp_path: Path) -> None:
    registry = new_store(tmp_path)
    chain(registry, 1)
    staging = tmp_path / "versions" / ".v2.0123.tmp"
    staging.mkdir()
    (staging / "a.bin").write_bytes(b"half")
    born = staging.stat().st_mtime_ns // 1_000_000
    assert collect(registry, keep=1, now=born + GRACE).leftovers == 0
    assert staging.is_dir()
    assert collect(registry, keep=1, now=born + GRACE + 1).leftovers == 1
    assert not staging.exists()


# each version: the numbers of older ones that it is made from; then the names, and how many to keep
histories = st.lists(st.lists(st.integers(0, 11), max_size=2), min_size=1, max_size=12)


@given(histories, st.lists(st.integers(0, 11), max_size=3), st.integers(1, 4))
def test_whatever_the_history_nothing_that_is_needed_goes(
    history: list[list[int]], named: list[int], keep: int
) -> None:
    registry = new_store(f"memory://{uuid.uuid4().hex}")
    for number, older in enumerate(history):
        parents = tuple(sorted({f"v{each}" for each in older if each < number}))
        registry.publish({}, version_manifest(f"v{number}", parents=parents, created_at=number))
    pointers = {f"name{at}": f"v{number}" for at, number in enumerate(named) if number < len(history)}
    for name, version in pointers.items():
        registry.point(name, version)
    before = {manifest.version: manifest for manifest in registry.versions()}
    collect(registry, keep, NOW)
    # the slow twin: a version stays if it is named, young, or has a child that is named or young
    stays = set()
    for version in before:
        number = int(version[1:])
        family = [version, *(child for child, manifest in before.items() if version in manifest.parents)]
        if any(member in pointers.values() or int(member[1:]) >= len(history) - keep for member in family):
            stays.add(version)
        assert number < len(history)
    assert set(registry.names()) == stays
    assert registry.pointers() == pointers


WORKER = """
import sys
from common.clock import wall_clock
from common.errors import ArtifactCorrupt, VersionNotFound
from server.registry import CURRENT, Registry
from server.retention import collect
from tests.server.serving.stores import version_files, version_manifest

role, registry, rounds = sys.argv[1], Registry.open(sys.argv[2]), int(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
seen = 0
if role == "publisher":
    files = version_files(registry, 1)
    for number in range(10, 10 + rounds):
        parents = (f"v{number - 1:06d}",)
        registry.publish(files, version_manifest(f"v{number:06d}", parents=parents, created_at=9_000 + number))
        registry.point(CURRENT, f"v{number:06d}")
        if number % 3 == 0:
            registry.point("champion", f"v{number - 1:06d}")
elif role == "collector":
    # until the publisher is done
    while registry.pointer(CURRENT) != f"v{9 + rounds:06d}":
        seen += len(collect(registry, 1, wall_clock()).removed)
else:
    while registry.pointer(CURRENT) != f"v{9 + rounds:06d}":
        version = registry.pointer(CURRENT)
        try:
            registry.verify(version)
            registry.versions()
            assert registry.current()
            seen += 1
        except (ArtifactCorrupt, VersionNotFound) as error:
            # it may only have gone after the name moved on
            assert registry.pointer(CURRENT) != version, error
print(seen, flush=True)
"""


def run_together(address: str, rounds: int) -> dict[str, int]:
    """Let a publisher, two collectors and a reader work on one store; return what each counted."""
    roles = ("publisher", "collector", "collector", "reader")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, role, address, str(rounds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=Path(__file__).resolve().parents[2],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            text=True,
        )
        for role in roles
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        counts: dict[str, int] = {}
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        for role, process in zip(roles, processes, strict=True):
            out, err = process.communicate(timeout=1500)
            assert process.returncode == 0, err
            counts[role] = counts.get(role, 0) + int(out)
        return counts
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def check_beside_others(folder: Path, rounds: int) -> None:
    registry = new_store(folder)
    publish(registry, "v000009", seed=1)
    counts = run_together(str(folder), rounds)
    # one collector or the other removed it, never both; the last sweep is ours
    removed = counts["collector"] + len(collect(registry, 1, NOW).removed)
    assert removed == 1 + rounds - len(registry.names())
    assert counts["collector"] > 0, "nothing was removed beside others: the test tested nothing"
    assert counts["reader"] > 0
    assert registry.current().version == f"v{9 + rounds:06d}"
    assert all(registry.verify(name) for name in registry.names())
    assert set(registry.pointers().values()) <= set(registry.names())
    assert len(registry.names()) <= 4


def test_collectors_beside_a_publisher_and_a_reader(tmp_path: Path) -> None:
    check_beside_others(tmp_path, 30)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_collectors_beside_a_publisher_and_a_reader_for_long(tmp_path: Path) -> None:
    check_beside_others(tmp_path, 1000)


def test_a_version_that_is_taken_up_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = new_store(tmp_path)
    chain(registry, 4)
    registry.point("current", "v4")
    size = registry.storage.size

    def promoted_now(version: str) -> int:
        # between the plan and the removal
        if version == "v1":
            Registry.open(tmp_path).point("champion", "v1")
        return size(version)

    monkeypatch.setattr(registry.storage, "size", promoted_now)
    done = collect(registry, keep=1, now=NOW)
    assert done.removed == ("v2",)
    assert done.kept["v1"] == "taken up meanwhile"
    assert registry.manifest("champion").version == "v1"


def test_a_removed_name_can_be_published_again(tmp_path: Path) -> None:
    registry = new_store(tmp_path)
    chain(registry, 3)
    collect(registry, keep=1, now=NOW)
    assert registry.names() == ("v2", "v3")
    registry.publish(version_files(registry, 1), version_manifest("v1"))
    assert registry.verify("v1")
