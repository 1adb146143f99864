"""Where workers that share a topic keep what they know: checkpoints of each partition, by who owned it.

`<store>/stream/partitions/<partition>/<claim>/<sequence>/` is a checkpoint as `stream.checkpoint` writes it, of one
partition. Whoever takes a partition over makes the folder of the next claim, which the file system gives to one only.
The newest checkpoint of a partition is that with the highest claim, and of these the highest sequence. So a worker that
lost its partition and does not know it can write what it likes: a checkpoint of a lower claim is never the newest again
once the new owner has written one, and before that the new owner has told nobody anything.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.errors import ArtifactCorrupt, StoreError
from stream.checkpoint import Checkpoint, CheckpointFolder, sequence_name, sequences

PARTITIONS = Path("stream") / "partitions"
_LOOKS = 5
"""So often a partition is looked through anew when what was found was deleted meanwhile."""


class Mark(NamedTuple):
    """Which checkpoint of a partition it is; the highest is the newest."""

    claim: int
    sequence: int


class PartitionStore:
    """The checkpoints of all partitions of one store.

    Parameters
    ----------
    store
        The store's folder; what is needed inside is made when first written.
    keep
        How many of the newest of each claim stay.
    """

    def __init__(self, store: Path, keep: int = 3) -> None:
        self.folder = store / PARTITIONS
        self._keep = keep

    def numbers(self) -> list[int]:
        """Return the partitions that were ever claimed, rising."""
        return sequences(self.folder)

    def mark(self, partition: int) -> Mark | None:
        """Return the newest checkpoint's mark, damaged or not; None when there is none yet."""
        return next(self._marks(partition), None)

    def newest(self, partition: int, notice: Callable[[str], None]) -> tuple[Mark, Checkpoint] | None:
        """Return the newest whole checkpoint of a partition, or None when there is none yet.

        Parameters
        ----------
        partition
            Its number.
        notice
            Told about each damaged one that was passed over.

        Raises
        ------
        ArtifactCorrupt
            When there are some and all are damaged.
        CheckpointMismatch
            When it was written by another version of the program.
        """
        for _ in range(_LOOKS):
            marks, gone = list(self._marks(partition)), False
            for mark in marks:
                folder = self._of(partition, mark.claim)
                try:
                    return mark, CheckpointFolder(folder).read(mark.sequence)
                except ArtifactCorrupt as error:
                    gone = not (folder / sequence_name(mark.sequence)).is_dir()
                    if gone:  # its owner has written newer ones and deleted it
                        break
                    notice(f"{error}; falling back to the checkpoint before")
            if not marks:
                return None
            if not gone:
                break
        raise ArtifactCorrupt(
            f"all checkpoints of partition {partition} in {self.folder} are damaged",
            consequence="nothing of it was learned",
            mend="restore the folder from a copy, or use a new store to learn the topic from its beginning",
        )

    def claim(self, partition: int) -> "Claim":
        """Take a partition over: all older claims to it end.

        Raises
        ------
        StoreError
            When the folder cannot be written.
        """
        folder = self.folder / sequence_name(partition)
        while True:
            number = max([0, *sequences(folder)]) + 1
            try:
                folder.mkdir(parents=True, exist_ok=True)
                (folder / sequence_name(number)).mkdir()
            except FileExistsError:  # somebody else was quicker; ours must be above theirs
                continue
            except OSError as error:
                raise StoreError(
                    f"{folder} cannot be written: {error.strerror}", mend="choose another --store"
                ) from error
            return Claim(folder, partition, number, self._keep)

    def _marks(self, partition: int) -> Iterator[Mark]:
        folder = self.folder / sequence_name(partition)
        for claim in reversed(sequences(folder)):
            for sequence in reversed(sequences(folder / sequence_name(claim))):
                yield Mark(claim, sequence)

    def _of(self, partition: int, claim: int) -> Path:
        return self.folder / sequence_name(partition) / sequence_name(claim)


class Claim:
    """One owner's right to write checkpoints of a partition, until somebody claims it anew.

    Parameters
    ----------
    folder
        Of the partition.
    partition, number
        Of which partition, and the how-manieth claim to it.
    keep
        How many of its newest checkpoints stay.
    """

    def __init__(self, folder: Path, partition: int, number: int, keep: int) -> None:
        self._folder, self.partition, self.number = folder, partition, number
        self._own = CheckpointFolder(folder / sequence_name(number), keep)
        self._written = 0

    @property
    def holds(self) -> bool:
        """Whether nobody claimed the partition since."""
        return self.number == max([0, *sequences(self._folder)])

    def write(
        self, arrays: Mapping[str, np.ndarray], details: Mapping[str, Any], created_at: int
    ) -> tuple[Mark, int] | None:
        """Publish a checkpoint of the partition, and delete what older claims left once it is not needed.

        Returns
        -------
        tuple[Mark, int] | None
            Which one it is, and the bytes of its state; None when the partition was claimed anew: nothing counts.
        """
        if not self.holds:
            return None
        mark = Mark(self.number, self._written + 1)
        try:
            size = self._own.write(mark.sequence, arrays, details, created_at)
        except OSError:
            if self.holds:
                raise
            return None  # the newer owner has deleted the folder already
        self._written += 1
        if not self.holds:
            return None
        self._forget_others()
        return mark, size

    def _forget_others(self) -> None:
        """Delete older claims, all but the newest with a checkpoint: what to fall back on while ours are few."""
        spare = 0 if self._written >= 2 else 1
        for claim in reversed(sequences(self._folder)):
            folder = self._folder / sequence_name(claim)
            if claim >= self.number:
                continue
            if spare and sequences(folder):
                spare -= 1
                continue
            doomed = self._folder / f".{sequence_name(claim)}.old.tmp"
            try:
                os.rename(folder, doomed)
            except OSError:  # a predecessor is at it too
                continue
            shutil.rmtree(doomed, ignore_errors=True)
