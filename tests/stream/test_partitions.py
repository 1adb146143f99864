"""Checkpoints of partitions: the newest owner's count, whatever an older one still writes."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from common.errors import ArtifactCorrupt, StoreError
from stream.checkpoint import STATE_NAME, sequence_name
from stream.partitions import Claim, Mark, PartitionStore


def write(claim: Claim, value: int) -> Mark | None:
    written = claim.write({"x": np.array([value])}, {"value": value}, 0)
    return None if written is None else written[0]


def value_of(store: PartitionStore, partition: int = 0, notices: list[str] | None = None) -> int | None:
    found = store.newest(partition, ([] if notices is None else notices).append)
    return None if found is None else int(found[1].details["value"])


def damage(store: PartitionStore, partition: int, mark: Mark) -> None:
    path = (
        store.folder / sequence_name(partition) / sequence_name(mark.claim) / sequence_name(mark.sequence) / STATE_NAME
    )
    path.write_bytes(path.read_bytes()[:-1] + b"\x00\x01")


def test_the_newest_of_the_newest_claim_counts(tmp_path: Path) -> None:
    store = PartitionStore(tmp_path)
    assert store.numbers() == []
    assert (store.mark(0), value_of(store)) == (None, None)
    first = store.claim(0)
    assert value_of(store) is None
    assert [write(first, value) for value in (1, 2, 3)] == [Mark(1, 1), Mark(1, 2), Mark(1, 3)]
    second = store.claim(0)
    assert not first.holds
    assert second.holds
    assert value_of(store) == 3
    assert write(second, 4) == Mark(2, 1)
    assert (store.mark(0), value_of(store)) == (Mark(2, 1), 4)
    assert store.numbers() == [0]


def test_who_lost_a_partition_writes_nothing(tmp_path: Path) -> None:
    store = PartitionStore(tmp_path)
    zombie = store.claim(0)
    write(zombie, 1)
    store.claim(0)
    assert write(zombie, 2) is None
    assert value_of(store) == 1


def test_a_write_that_was_under_way_counts_only_while_the_new_owner_has_written_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The zombie looked before the claim and writes after it."""
    store = PartitionStore(tmp_path)
    zombie = store.claim(0)
    write(zombie, 1)
    owner = store.claim(0)
    with monkeypatch.context() as patched:
        patched.setattr(Claim, "holds", True)
        assert write(zombie, 2) == Mark(1, 2)
    assert value_of(store) == 2  # a whole checkpoint that nobody has gone on from: as good as the one before
    assert write(owner, 3) == Mark(2, 1)
    with monkeypatch.context() as patched:
        patched.setattr(Claim, "holds", True)
        write(zombie, 4)
    assert value_of(store) == 3


def test_a_zombie_whose_folder_is_gone_is_told_that_it_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = PartitionStore(tmp_path)
    zombie, owner = store.claim(0), store.claim(0)
    for value in range(3):
        write(owner, value)
    assert write(zombie, 9) is None
    monkeypatch.setattr("stream.checkpoint.publish_folder", _no_folder)
    with pytest.raises(FileNotFoundError):  # an owner is told of its disk
        write(owner, 9)


def _no_folder(*arguments: object) -> None:
    raise FileNotFoundError("no such folder")


def test_older_claims_are_deleted_once_there_is_something_to_fall_back_on(tmp_path: Path) -> None:
    store = PartitionStore(tmp_path, keep=2)
    folder = store.folder / sequence_name(5)
    for value in range(4):
        claim = store.claim(5)
        write(claim, value)
    assert sorted(entry.name for entry in folder.iterdir()) == [sequence_name(3), sequence_name(4)]
    write(claim, 4)
    assert [entry.name for entry in folder.iterdir()] == [sequence_name(4)]
    assert value_of(store, 5) == 4


def test_a_damaged_checkpoint_is_passed_over_and_said(tmp_path: Path) -> None:
    store = PartitionStore(tmp_path)
    write(store.claim(0), 1)
    owner = store.claim(0)
    newest = write(owner, 2)
    assert newest is not None
    damage(store, 0, newest)
    notices: list[str] = []
    assert value_of(store, 0, notices) == 1
    assert len(notices) == 1
    assert "falling back" in notices[0]
    damage(store, 0, Mark(1, 1))
    with pytest.raises(ArtifactCorrupt, match="all checkpoints of partition 0"):
        value_of(store)


def test_one_that_is_deleted_while_it_is_looked_for_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = PartitionStore(tmp_path)
    old, new = store.claim(0), store.claim(0)
    write(new, 2)
    monkeypatch.setattr(Claim, "holds", True)
    write(old, 1)
    looked = PartitionStore._marks

    def stale(self: PartitionStore, partition: int) -> object:
        monkeypatch.setattr(PartitionStore, "_marks", looked)
        found = iter([Mark(1, 1), Mark(2, 1)])
        shutil.rmtree(store.folder / sequence_name(0) / sequence_name(1))
        return found

    monkeypatch.setattr(PartitionStore, "_marks", stale)
    notices: list[str] = []
    assert value_of(store, 0, notices) == 2
    assert notices == []


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "stream").write_text("no folder")
    with pytest.raises(StoreError, match="cannot be written"):
        PartitionStore(tmp_path).claim(0)
