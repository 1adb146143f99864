"""Checkpoints and snapshots on disk: torn, damaged, many, locked."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import ArtifactCorrupt, CheckpointMismatch, StoreError
from common.snapshots import read_snapshot
from common.store import publish_folder
from stream.checkpoint import STATE_NAME, Checkpoint, CheckpointStore, sequence_name, sequences
from stream.snapshot import current_snapshot, publish_snapshot
from tests.stream.topics import small_mf


def arrays(value: int) -> dict[str, np.ndarray]:
    return {"a": np.full(5, value, dtype=np.int64), "empty": np.zeros((0, 3), dtype=np.float32)}


def write(store: CheckpointStore, *values: int) -> None:
    for value in values:
        store.write(value, arrays(value), {"events": value}, created_at=value)


def newest(store: CheckpointStore, notices: list[str] | None = None, **options: Any) -> Checkpoint:
    found = store.newest((notices if notices is not None else []).append, **options)
    assert found is not None
    return found


def test_the_newest_comes_back_and_three_stay(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    assert store.newest(pytest.fail) is None
    assert store.next_sequence() == 1
    write(store, 1, 2, 3, 4, 5)
    found = newest(store)
    assert (found.sequence, found.created_at, found.details["events"]) == (5, 5, 5)
    np.testing.assert_array_equal(found.arrays["a"], arrays(5)["a"])
    assert found.arrays["empty"].shape == (0, 3)
    assert sequences(store.folder) == [3, 4, 5]
    assert store.next_sequence() == 6


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_oldest_makes_room_and_the_newest_stays_until_there_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: int
) -> None:
    store, during = CheckpointStore(tmp_path, keep), list[list[int]]()

    def watched(*words: Any) -> None:
        during.append(sequences(store.folder))
        publish_folder(*words)

    monkeypatch.setattr("stream.checkpoint.publish_folder", watched)
    write(store, 1, 2, 3, 4)
    assert during[0] == []
    assert during[-1] == {1: [3], 2: [3], 3: [2, 3]}[keep]
    assert sequences(store.folder) == [1, 2, 3, 4][-keep:]

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("stream.checkpoint.publish_folder", full)
    with pytest.raises(OSError, match="No space"):
        write(store, 5)
    assert newest(store).sequence == 4


@pytest.mark.parametrize("damage", ["truncate", "flip", "no state", "no manifest", "empty manifest"])
def test_a_damaged_one_is_passed_over_aloud_and_set_aside(tmp_path: Path, damage: str) -> None:
    store = CheckpointStore(tmp_path)
    write(store, 1, 2)
    folder = store.folder / sequence_name(2)
    state = folder / STATE_NAME
    raw = state.read_bytes()
    if damage == "truncate":
        state.write_bytes(raw[:-3])
    elif damage == "flip":
        state.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    elif damage == "no state":
        state.unlink()
    else:
        (folder / "manifest.json").unlink() if damage == "no manifest" else (folder / "manifest.json").write_bytes(b"")
    notices: list[str] = []
    assert newest(store, notices).sequence == 1
    assert len(notices) == 1
    assert sequence_name(2) in notices[0]
    assert "falling back" in notices[0]
    assert newest(store, notices, set_aside=True).sequence == 1
    assert sequences(store.folder) == [1]
    assert store.next_sequence() == 3
    write(store, 3)
    assert newest(store).sequence == 3


def test_all_damaged_is_an_error_not_a_fresh_start(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    write(store, 1, 2)
    for sequence in (1, 2):
        (store.folder / sequence_name(sequence) / STATE_NAME).write_bytes(b"")
    notices: list[str] = []
    with pytest.raises(ArtifactCorrupt, match="all 2 checkpoints"):
        store.newest(notices.append)
    for _ in range(2):  # still an error the second time
        with pytest.raises(ArtifactCorrupt):
            store.newest(notices.append, set_aside=True)


def test_half_written_leftovers_are_passed_over_and_cleared(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    write(store, 1)
    torn = store.folder / f".{sequence_name(2)}.abc.tmp"
    torn.mkdir()
    (torn / STATE_NAME).write_bytes(b"half")
    assert newest(store).sequence == 1
    write(store, 2)
    assert not torn.exists()


def test_another_schema_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr("stream.checkpoint.SCHEMA", 99)
        write(store, 1)
    with pytest.raises(CheckpointMismatch, match="99"):
        store.newest(pytest.fail)


def test_one_worker_a_store(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    with store.lock(), pytest.raises(StoreError, match="another stream worker"), CheckpointStore(tmp_path).lock():
        pass
    with store.lock():
        pass


def test_a_dead_worker_holds_no_lock(tmp_path: Path) -> None:
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom stream.checkpoint import CheckpointStore\n"
        f"with CheckpointStore(Path({str(tmp_path)!r})).lock():\n    os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    with CheckpointStore(tmp_path).lock():
        pass


def test_a_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file"), CheckpointStore(tmp_path / "file").lock():
        pass


def test_the_pointer_moves_to_the_newest_snapshot(tmp_path: Path) -> None:
    learner = small_mf()
    assert current_snapshot(tmp_path) is None
    for sequence in range(1, 6):
        learner.learn_one(f"u{sequence}", f"i{sequence % 3}")
        folder = publish_snapshot(tmp_path, learner.snapshot({"t": {"0": sequence}}), sequence, created_at=1, keep=3)
        assert current_snapshot(tmp_path) == folder.name
    found = read_snapshot(folder)
    assert (found.events, found.offsets) == (5, {"t": {"0": 5}})
    assert sequences(folder.parent) == [3, 4, 5]
    assert sorted(os.listdir(folder.parent)) == sorted([sequence_name(n) for n in (3, 4, 5)] + ["current"])
