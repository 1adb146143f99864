"""The snapshot for serving when several workers learn a topic: made of the newest checkpoints of all partitions."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from stream.checkpoint import SNAPSHOTS, Checkpoint, sequences
from stream.learner.sharing import Sharing
from stream.partitions import PARTITIONS, PartitionStore
from stream.shared_items import whole_state
from stream.snapshot import publish_snapshot
from stream.state import StreamState


class SharedSnapshot:
    """Publishes snapshots; one worker at a time, whichever it is.

    Parameters
    ----------
    store
        The store's folder.
    keep
        How many snapshots stay.
    partitions
        Where the checkpoints are.
    make
        Gives a state that learned nothing, with the settings of all.
    sharings
        As for `whole_state`.
    """

    def __init__(
        self,
        store: Path,
        keep: int,
        partitions: PartitionStore,
        make: Callable[[], StreamState],
        sharings: Mapping[str, Sharing],
    ) -> None:
        self._store, self._keep, self._partitions = store, keep, partitions
        self._make, self._sharings = make, sharings

    def publish(self, now: int, notice: Callable[[str], None], wait_s: float = 0.0) -> StreamState | None:
        """Publish what is stored now, unless another worker is at it for longer than `wait_s`.

        Returns
        -------
        StreamState | None
            What is stored, of all partitions together; None when nothing is.
        """
        with self._alone(wait_s) as alone:
            found = self._newest(notice)
            if not found:
                return None
            whole = whole_state(self._make(), self._sharings, found)
            if alone:
                sequence = max([0, *sequences(self._store / SNAPSHOTS)]) + 1
                publish_snapshot(self._store, whole.learner.snapshot(whole.json_offsets), sequence, now, self._keep)
        return whole

    def _newest(self, notice: Callable[[str], None]) -> list[Checkpoint]:
        found = [self._partitions.newest(number, notice) for number in self._partitions.numbers()]
        return [each[1] for each in found if each is not None]

    @contextmanager
    def _alone(self, wait_s: float) -> Iterator[bool]:
        """Keep other publishers out within the block; give whether that was possible in time."""
        folder = self._store / PARTITIONS
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / ".publishing", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            deadline = time.monotonic() + wait_s
            while not (alone := _locked(handle)) and time.monotonic() < deadline:
                time.sleep(0.05)
            yield alone
        finally:
            os.close(handle)


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
