"""The partitions that a worker of several has in hand: stored together, brought to what all learned, dropped."""

import logging
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from stream.meter import Meter
from stream.partitions import PartitionStore
from stream.shard import Shard
from stream.shared_items import SharedItems

_LOG = logging.getLogger("anabranch.stream")
_WRITERS = 8
"""So many partitions are written at once."""


class Shards:
    """Shards by the number of their partition.

    Parameters
    ----------
    store
        Where all partitions are stored.
    shared
        What all learned about items.
    notice
        Told which partition has a newer owner.
    meter
        Told how many there are.
    """

    def __init__(self, store: PartitionStore, shared: SharedItems, notice: Callable[[str], None], meter: Meter) -> None:
        self.by_number: dict[int, Shard] = {}
        self._store, self._shared, self._notice, self._meter = store, shared, notice, meter

    def drop(self, partitions: Collection[int]) -> list[Shard]:
        """Have these in hand no more; return those that were. Their dead letters are still to be closed."""
        gone = [self.by_number.pop(number) for number in sorted(set(partitions) & self.by_number.keys())]
        self._meter.assigned(len(self.by_number))
        return gone

    def store(self, chosen: Sequence[Shard], now: int, letters_within_s: float) -> int:
        """Do steps 1 and 2 of `stream.group_worker` for shards; one that somebody else owns is dropped.

        Parameters
        ----------
        chosen
            In hand, or dropped a moment ago.
        now
            Dates the checkpoints, in milliseconds.
        letters_within_s
            How long the dead letters of each may take.

        Returns
        -------
        int
            The bytes that were written.

        Raises
        ------
        StreamError
            When a dead letter is not delivered; nothing is written then.
        StoreError
            When the store cannot be written.
        """
        for shard in chosen:
            shard.prepare(self._shared, letters_within_s)
        with ThreadPoolExecutor(_WRITERS) as pool:  # the disk makes them wait, not the processor
            written = list(pool.map(partial(Shard.write, now=now), chosen))
        for shard, stored in zip(chosen, written, strict=True):
            if stored is None:
                self.drop([shard.partition])
                shard.letters.close()
                self._notice(f"partition {shard.partition} has a newer owner: nothing of it is stored here")
                continue
            shard.written(self._shared, stored[0])
            counts = {"partition": shard.partition, "events": shard.state.events, "bytes": stored[1]}
            _LOG.info("checkpoint", extra={"data": {"checkpoint": stored[0].sequence, **counts}})
        return sum(stored[1] for stored in written if stored is not None)

    def share(self, chosen: Sequence[Shard]) -> None:
        """Bring shards to the sum of what all learned about items."""
        self._shared.refresh(self._store, self.by_number, self._notice)
        for shard in self.by_number.values():
            if shard.changed:
                shard.refresh_own(self._shared)
                self._shared.put(shard.partition, None, shard.own, shard.state.events)
        told = next(iter(self.by_number.values()), None)
        self._shared.add_up(None if told is None else told.own)
        for shard in chosen:
            shard.take_up(self._shared)
