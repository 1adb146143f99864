"""The laws that every storage of models keeps: a local folder, a file system in memory, an object store."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import ArtifactCorrupt, InvalidSetting, NoModel, StoreError, VersionExists, VersionNotFound
from common.manifests import Manifest
from server.registry import Registry
from server.storage import storage_at
from server.storage.base import Storage
from server.storage.local import LocalStorage
from server.storage.remote import RemoteStorage
from server.store_info import StoreInfo
from tests.contracts.conftest import Place
from tests.server.serving.stores import SHA256, checker_board, publish, version_files, version_manifest

FILES = {"adapter/weights.bin": b"\x00\x01" * 50, "notes.json": b"{}"}
FOREVER = 1 << 60
INFO = StoreInfo("words", SHA256, "checker-board", 1_000)


def manifest_of(version: str) -> Manifest:
    return Manifest("adapter", version, (), 5, details={"round": 3})


def test_what_is_published_is_read_back(place: Place) -> None:
    storage = place.storage()
    assert (storage.versions(), storage.pointers(), storage.pointer("current")) == ((), (), None)
    written = storage.publish("v2", FILES, manifest_of("v2"))
    storage.publish("v1", {}, manifest_of("v1"))
    assert storage.versions() == ("v1", "v2")
    assert set(written.files) == set(FILES)
    for again in (storage, place.storage()):
        assert again.manifest("v2") == written
        assert {name: again.read_file("v2", name) for name in FILES} == FILES
        assert again.size("v2") > sum(map(len, FILES.values()))
        assert not again.has("v3")
    with pytest.raises(FileNotFoundError):
        storage.read_file("v2", "other")
    with pytest.raises(ArtifactCorrupt):
        storage.manifest("v3")


def test_files_at_the_top_are_replaced(place: Place) -> None:
    storage = place.storage()
    with pytest.raises(FileNotFoundError):
        storage.read("store.json")
    for content in (b"old", b"new, and longer", b""):
        storage.write("store.json", content)
        assert place.storage().read("store.json") == content


def test_a_version_is_never_replaced(place: Place) -> None:
    storage = place.storage()
    storage.publish("v1", FILES, manifest_of("v1"))
    with pytest.raises(FileExistsError):
        storage.publish("v1", {"notes.json": b"other"}, manifest_of("v1"))
    assert storage.read_file("v1", "notes.json") == b"{}"
    assert storage.sweep(FOREVER) == 0, "the loser left something behind"


def test_names_move_and_stand_for_what_is_there(place: Place) -> None:
    storage = place.storage()
    assert not storage.point("current", "v1")
    assert storage.pointers() == ()
    for version in ("v1", "v2"):
        storage.publish(version, {}, manifest_of(version))
    assert storage.point("current", "v1")
    assert storage.point("champion", "v2")
    assert storage.point("current", "v2")
    assert not storage.point("current", "v3")
    again = place.storage()
    assert {name: again.pointer(name) for name in again.pointers()} == {"champion": "v2", "current": "v2"}


def test_a_flipped_bit_never_makes_a_name_stand_for_another_version(place: Place) -> None:
    storage = place.storage()
    for version in ("v000002", "v000003"):
        storage.publish(version, {}, manifest_of(version))
    storage.point("current", "v000002")
    whole = storage.read("pointers/current")
    for bit in range(8 * len(whole)) if place.kind != "s3" else [8 * 6]:
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        storage.write("pointers/current", bytes(flipped))
        with suppress(ArtifactCorrupt):
            # another kind of white space at the end changes nothing
            assert storage.pointer("current") == "v000002" or not storage.has(str(storage.pointer("current")))
    storage.write("pointers/current", b"v000003\n")
    assert storage.pointer("current") == "v000003", "a name alone, as a person writes it"
    for nonsense in (b"", b"v000003 v000002\n", b"a b c", b"\xff"):
        storage.write("pointers/current", nonsense)
        with pytest.raises(ArtifactCorrupt, match=r"pointer .*current cannot be read"):
            storage.pointer("current")


def test_what_a_name_stands_for_is_not_removed(place: Place) -> None:
    storage = place.storage()
    for version in ("v1", "v2"):
        storage.publish(version, FILES, manifest_of(version))
    storage.point("champion", "v1")
    assert not storage.delete("v1")
    assert not storage.delete("v3")
    assert storage.delete("v2")
    assert storage.versions() == ("v1",)
    assert storage.read_file("v1", "notes.json") == b"{}"
    assert storage.sweep(FOREVER) == 0, "something was left behind"
    storage.publish("v2", {}, manifest_of("v2"))
    assert storage.point("champion", "v2")


def test_of_publishers_at_once_one_wins_whole(place: Place) -> None:
    for number in range(1 if place.kind == "s3" else 10):
        version, barrier, storage = f"v{number}", threading.Barrier(4), place.storage()

        def run(
            mark: int, version: str = version, barrier: threading.Barrier = barrier, storage: Storage = storage
        ) -> int | None:
            barrier.wait()
            try:
                storage.publish(version, {"a": bytes([mark]), "b": bytes([mark])}, manifest_of(version))
            except FileExistsError:
                return None
            return mark

        with ThreadPoolExecutor(4) as pool:
            winners = [mark for mark in pool.map(run, range(4)) if mark is not None]
        assert len(winners) == 1
        assert {storage.read_file(version, name) for name in "ab"} == {bytes(winners)}
        assert storage.sweep(FOREVER) == 0


def store_with_two_versions(place: Place) -> Registry:
    registry = Registry.create(place.address, INFO, checker_board())
    publish(registry, "v000001", seed=1)
    publish(registry, "v000002", seed=2, parents=("v000001",))
    return registry


def pieces(storage: Storage, version: str) -> tuple[list[str], Callable[[str], bytes], Callable[[str, bytes], object]]:
    """Return the names of all pieces of a version, and how each is read and written past the storage."""
    if isinstance(storage, LocalStorage):
        folder = storage.folder(version)
        names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
        return names, lambda name: (folder / name).read_bytes(), lambda name, raw: (folder / name).write_bytes(raw)
    assert isinstance(storage, RemoteStorage)
    files, start = storage._files, f"{storage._root}/versions/{version}"
    names = storage._below(f"versions/{version}")
    return names, lambda name: files.cat_file(f"{start}/{name}"), lambda n, raw: files.pipe_file(f"{start}/{n}", raw)


def test_a_registry_works_anywhere_and_every_flipped_byte_is_found(place: Place) -> None:
    registry = store_with_two_versions(place)
    opened = Registry.open(place.address)
    assert opened.current() == registry.verify("v000002") == registry.versions()[1]
    assert tuple(opened.catalogue) == tuple(registry.catalogue)
    assert opened.pointers() == {"current": "v000002"}
    with pytest.raises(VersionExists, match=r"'v000002' of .* exists already"):
        opened.publish({}, version_manifest("v000002"))
    with pytest.raises(VersionNotFound, match="'current' stays at v000002"):
        opened.point("current", "v000003")
    names, read, write = pieces(registry.storage, "v000002")
    assert len(names) == len(version_files(registry, 2)) + (2 if place.kind == "local" else 3)
    # over the network each piece takes its time: one of each kind
    for name in names if place.kind != "s3" else [name for name in names if not name.endswith((".sha256", "g.json"))]:
        whole = read(name)
        for at in {len(whole) // 2} if place.kind == "s3" else {0, len(whole) // 2, len(whole) - 1}:
            write(name, whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            if name.endswith("published") and at == len(whole) - 1:
                continue  # the line's end says nothing
            with pytest.raises(ArtifactCorrupt):
                registry.verify("v000002")
        write(name, whole)
    registry.verify("v000002")


def test_what_a_dead_publisher_left_is_invisible_and_swept_when_it_is_old(place: Place) -> None:
    storage = place.storage()
    storage.publish("v1", FILES, manifest_of("v1"))
    storage.write(
        "versions/.v2.0123.tmp/manifest.json" if place.kind == "local" else "versions/v2/0123/manifest.json", b"{}"
    )
    assert storage.versions() == ("v1",)
    assert not storage.has("v2")
    assert storage.sweep(0) == 0, "what may belong to somebody alive was removed"
    assert storage.sweep(FOREVER) == 1
    assert storage.sweep(FOREVER) == 0
    storage.publish("v2", FILES, manifest_of("v2"))
    assert storage.versions() == ("v1", "v2")


RACER = """
import sys
from common.errors import VersionExists
from common.manifests import Manifest
from server.registry import Registry

registry, mark = Registry.open(sys.argv[1]), bytes([int(sys.argv[2])])
files = {"a.bin": mark * 20_000, "deep/b.bin": mark * 20_000}
print("ready", flush=True)
for line in sys.stdin:
    manifest = Manifest("adapter", line.strip(), (), 5, "words", registry.info.encoder_sha256)
    try:
        registry.publish(files, manifest)
    except VersionExists as error:
        assert repr(line.strip()) in str(error)
        print("told", flush=True)
    else:
        print("won", flush=True)
"""


@pytest.mark.parametrize("place", ["local"], indirect=True)
def test_of_processes_that_publish_at_once_one_wins_and_the_others_are_told(place: Place) -> None:
    race(place, 60)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("place", "rounds"), [("local", 1000), ("s3", 150)], indirect=["place"], ids=["local", "s3"])
def test_of_processes_that_publish_at_once_one_wins_many_times(place: Place, rounds: int) -> None:
    race(place, rounds)


def race(place: Place, rounds: int) -> None:
    """Let three processes publish each of many versions in the same moment."""
    registry = Registry.create(place.address, INFO, checker_board())
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, place.address, str(mark)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **place.environment},
            cwd=Path(__file__).resolve().parents[2],
            text=True,
        )
        for mark in range(3)
    ]
    winners = []
    try:
        assert [process.stdout.readline() for process in processes if process.stdout] == ["ready\n"] * 3
        for number in range(rounds):
            # who is asked first has an advantage; it goes round
            for process in [*processes[number % 3 :], *processes[: number % 3]]:
                assert process.stdin is not None
                process.stdin.write(f"v{number}\n")
                process.stdin.flush()
            said = [process.stdout.readline().strip() for process in processes if process.stdout]
            assert sorted(said) == ["told", "told", "won"], number
            winners.append(said.index("won"))
    finally:
        for process in processes:
            process.communicate()
    for number, winner in enumerate(winners):
        registry.verify(f"v{number}")
        assert registry.storage.read_file(f"v{number}", "a.bin")[:1] == bytes([winner])
    assert len(registry.versions()) == rounds
    assert registry.storage.sweep(FOREVER) == 0
    assert len(set(winners)) > 1, "no two publishers ever met: the test tested nothing"


def test_moving_a_name_and_removing_never_leaves_a_name_without_a_version(place: Place) -> None:
    storage = place.storage()
    storage.publish("kept", {}, manifest_of("kept"))
    outcomes = set()
    for _ in range(1 if place.kind == "s3" else 10):
        storage.publish("v1", FILES, manifest_of("v1"))
        storage.point("current", "kept")
        barrier = threading.Barrier(2)

        def meet(work: Callable[[], bool], barrier: threading.Barrier = barrier) -> bool:
            barrier.wait()
            return work()

        with ThreadPoolExecutor(2) as pool:
            moved = pool.submit(meet, lambda: place.storage().point("current", "v1"))
            removed = pool.submit(meet, lambda: place.storage().delete("v1"))
            outcome = moved.result(), removed.result()
        check_moved_and_removed(storage, *outcome)
        outcomes.add(outcome)
        storage.point("current", "kept")
        storage.delete("v1")
    assert (True, True) not in outcomes


def check_moved_and_removed(storage: Storage, moved: bool, removed: bool) -> None:
    assert storage.has("v1") is not removed
    assert storage.pointer("current") == ("v1" if moved else "kept")
    assert not (moved and removed)


def test_a_bucket_that_is_not_there(s3: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(NoModel, match="s3://nowhere/store is no model store"):
        Registry.open("s3://nowhere/store")
    with pytest.raises(StoreError, match="make the bucket first"):
        Registry.create("s3://nowhere/store", INFO, checker_board())


def test_an_address_that_needs_another_package_says_which() -> None:
    with pytest.raises(StoreError, match=r"pip install 'anabranch\[remote\]'"):
        RemoteStorage("nonsense://x")


def test_an_address_where_a_folder_is_needed_is_refused() -> None:
    with pytest.raises(InvalidSetting, match=r"'s3:/bucket/x'; expected a local folder"):
        storage_at(Path("s3://bucket/x"))


@pytest.mark.parametrize("place", ["local", "memory"], indirect=True)
def test_a_version_cannot_hold_the_manifest_of_another(place: Place) -> None:
    registry = store_with_two_versions(place)
    registry.storage.publish("v000003", {}, replace(version_manifest("v000001")))
    with pytest.raises(ArtifactCorrupt, match="holds the manifest of 'v000001'"):
        registry.manifest("v000003")
