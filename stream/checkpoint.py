"""Checkpoints of the stream worker: state and offsets in one artifact, the newest whole one wins.

`<store>/stream/checkpoints/<sequence>/` holds `state.safetensors` and the manifest. It is written aside, synced and
renamed (`common.store.publish_folder`), so a crash leaves the one before.
"""

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import ArtifactCorrupt, CheckpointMismatch, StoreError
from common.manifests import Manifest, TensorSpec
from common.store import array_parts, publish_folder, unpack_arrays, verify_folder

KIND = "checkpoint"
SCHEMA = 1
"""Version of what is inside; another one is refused."""
STATE_NAME = "state.safetensors"
CHECKPOINTS = Path("stream") / "checkpoints"
SNAPSHOTS = Path("stream") / "snapshots"
_CORRUPT = ".corrupt-"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One checkpoint as read.

    Parameters
    ----------
    sequence
        Its number; later ones are newer.
    arrays
        The state.
    details
        Counters, offsets and topic identities (JSON values).
    created_at
        Milliseconds since the epoch.
    size
        Bytes of the state.
    """

    sequence: int
    arrays: Mapping[str, np.ndarray]
    details: Mapping[str, Any]
    created_at: int
    size: int


def sequence_name(sequence: int) -> str:
    """Return the folder's name of a sequence number, sortable as text."""
    return f"{sequence:012d}"


def sequences(folder: Path) -> list[int]:
    """Return the numbers of the artifacts in a folder, rising; anything else there is passed over."""
    if not folder.is_dir():
        return []
    return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdigit() and entry.is_dir())


@contextmanager
def replacing_oldest(folder: Path, keep: int) -> Iterator[None]:
    """Write one more artifact in the block; all but the newest `keep` are deleted, at least one of them never before.

    The oldest goes first, so that the new one can have its place in memory and on the disk at once: pages that lie free
    for seconds may be taken back by the host of a virtual machine, which stands still meanwhile.
    """
    if folder.is_dir():
        keep_newest(folder, max(1, keep - 1))
    yield
    keep_newest(folder, keep)


def keep_newest(folder: Path, keep: int) -> None:
    """Delete all artifacts but the newest `keep`, and what a crash left half-written or half-deleted."""
    for sequence in sequences(folder)[:-keep]:
        doomed = folder / f".{sequence_name(sequence)}.old.tmp"
        os.rename(folder / sequence_name(sequence), doomed)
        shutil.rmtree(doomed, ignore_errors=True)
    for entry in folder.iterdir():
        if entry.name.startswith(".") and entry.name.endswith(".tmp"):
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:  # a pointer that was being moved
                entry.unlink(missing_ok=True)


class CheckpointFolder:
    """A folder of checkpoints.

    Parameters
    ----------
    folder
        Where they lie; made when first written.
    keep
        How many of the newest stay.
    """

    def __init__(self, folder: Path, keep: int = 3) -> None:
        self.folder = folder
        self._keep = keep

    def write(
        self, sequence: int, arrays: Mapping[str, np.ndarray], details: Mapping[str, Any], created_at: int
    ) -> int:
        """Publish one checkpoint in the place of the oldest beyond `keep`; return the bytes of the state.

        The arrays are read and not copied, so they may be a learner's own while it rests.
        """
        packed = array_parts(arrays)
        manifest = Manifest(
            kind=KIND,
            version=sequence_name(sequence),
            parents=(),
            created_at=created_at,
            tensors={name: TensorSpec(array.shape, array.dtype.name) for name, array in arrays.items()},
            details={**details, "schema": SCHEMA},
        )
        with replacing_oldest(self.folder, self._keep):
            publish_folder(self.folder / sequence_name(sequence), {STATE_NAME: packed}, manifest)
        return sum(map(len, packed))

    def read(self, sequence: int) -> Checkpoint:
        """Return the checkpoint of a number.

        Raises
        ------
        ArtifactCorrupt
            When it is damaged, or not there.
        CheckpointMismatch
            When it was written by another version of the program.
        """
        path = self.folder / sequence_name(sequence)
        manifest = verify_folder(path)
        try:
            raw = (path / STATE_NAME).read_bytes()
        except OSError as error:
            raise ArtifactCorrupt(f"{path / STATE_NAME} cannot be read: {error.strerror}") from error
        arrays = unpack_arrays(raw, str(path / STATE_NAME))
        if manifest.details.get("schema") != SCHEMA:
            raise CheckpointMismatch(
                f"{path} has schema {manifest.details.get('schema')!r}",
                expected=str(SCHEMA),
                mend="use the program version that wrote it, or a new store",
            )
        return Checkpoint(sequence, arrays, manifest.details, manifest.created_at, len(raw))

    def newest(self, notice: Callable[[str], None], *, set_aside: bool = False) -> Checkpoint | None:
        """Return the newest whole checkpoint, or None when there is none yet.

        Parameters
        ----------
        notice
            Told about each damaged one that was passed over.
        set_aside
            Rename the damaged ones, so they are kept but never tried again.

        Raises
        ------
        ArtifactCorrupt
            When there are some and all are damaged: starting over would forget everything without a word.
        CheckpointMismatch
            When it was written by another version of the program.
        """
        found = sequences(self.folder)
        for sequence in reversed(found):
            try:
                return self.read(sequence)
            except ArtifactCorrupt as error:
                notice(f"{error}; falling back to the checkpoint before")
                if set_aside and sequence != found[0]:
                    name = sequence_name(sequence)
                    os.rename(self.folder / name, self.folder / f"{_CORRUPT}{name}")
        if found:
            raise ArtifactCorrupt(
                f"all {len(found)} checkpoints in {self.folder} are damaged",
                consequence="nothing was learned",
                mend="restore the folder from a copy, or use a new store to learn the topic from its beginning",
            )
        return None


class CheckpointStore(CheckpointFolder):
    """The checkpoints of one store whose topic one worker learns.

    Parameters
    ----------
    store
        The store's folder.
    keep
        How many of the newest stay.
    """

    def __init__(self, store: Path, keep: int = 3) -> None:
        super().__init__(store / CHECKPOINTS, keep)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other workers out while this one learns; freed by the system when the process dies.

        Raises
        ------
        StoreError
            When another one is at work, or the folder cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise StoreError(
                f"{self.folder} cannot be written: {error.strerror}", mend="choose another --store"
            ) from error
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    raise
                raise StoreError(
                    f"another stream worker learns into {self.folder}",
                    expected="one worker a store",
                    mend="stop it, or choose another --store",
                ) from error
            yield
        finally:
            os.close(handle)

    def next_sequence(self) -> int:
        """Return a number above all that were ever used here, those set aside and the snapshots included."""
        aside = [int(entry.name.removeprefix(_CORRUPT)) for entry in self.folder.glob(f"{_CORRUPT}*")]
        return max([0, *sequences(self.folder), *sequences(self.folder.parent / "snapshots"), *aside]) + 1
