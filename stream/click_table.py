"""What users did of late, noted by one process and read by others: a ring of events in a mapped file.

The topic is read and decoded once a machine, and a question costs a few memory reads, however many clicks come in.

The file holds a few numbers, then the chains of the buckets, then the ring. A user's hash names a bucket; a bucket
names its newest event, and each event names the one before it in its bucket. So nothing is ever moved or deleted: the
oldest event is written over, and a chain ends where it leaves the ring.

There are no locks. The writer first says which event it begins, then writes it, then lets its bucket name it. A reader
goes through a chain and afterwards leaves out what may have been written over meanwhile: an event counts as long as
fewer than the ring holds were begun after it.
"""

import mmap
import os
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path

from common.recent import NOTHING, Recent
from stream.recent_notes import Note, recent_of

EVENTS, BUCKETS = 1 << 19, 1 << 18
MOST_NOTES, MOST_STEPS = 200, 4_096
"""So many notes of a user are read, the newest, and so many events of a bucket looked at: others share it."""
MOST_BEHIND = 8
"""After so many of a user's events that do not count, older ones are not looked for."""
CAUGHT_UP = 1_000
"""A table takes the place of the one before once it is no more records behind than this."""
SILENT_S = 5.0
"""A writer that told nothing for so long does not read."""
_BEGUN, _FLOOR, _LAG, _TOLD_AT, _EVENTS, _BUCKETS = range(6)
_HEADER, _UNKNOWN, _MEGABYTE = 64, -1, 1 << 20
_ENTRY = struct.Struct("<16sqqiibb6xq8x")
"""User's hash, event before in its bucket, offset, partition, item row, sign, whether tried, and its own number."""


_Entry = tuple[bytes, int, int, int, int, int, int, int]
"""What `_ENTRY` says, in its order: a tuple, for a list of many is on the way of an answer."""


class _Mapped:
    """A mapped table; the numbers of its events rise from 1."""

    def __init__(self, mapped: mmap.mmap) -> None:
        self.mapped = mapped
        self.header = memoryview(mapped)[:_HEADER].cast("q")
        self.events, self.buckets = self.header[_EVENTS], self.header[_BUCKETS]
        self.heads = memoryview(mapped)[_HEADER : _HEADER + 8 * self.buckets].cast("q")

    def place(self, number: int) -> int:
        """Return where an event is."""
        return _HEADER + 8 * self.buckets + (number % self.events) * _ENTRY.size

    def bucket(self, who: bytes) -> int:
        """Return the bucket of a user's hash."""
        return int.from_bytes(who[:8], "little") % self.buckets

    def entries_of(self, user_id: str, read: Mapping[int, int]) -> list[_Entry]:
        """Return a user's events, oldest first, those that count: at or above the offset of their partition."""
        who = _hash_of(user_id)
        found: list[_Entry] = []
        behind = 0
        gone, number = self._gone(), self.heads[self.bucket(who)]
        for _ in range(MOST_STEPS):
            if number <= gone or len(found) == MOST_NOTES:
                break
            entry: _Entry = _ENTRY.unpack_from(self.mapped, self.place(number))
            owner, before, offset, partition, *_, written = entry
            if written != number:
                break  # written over while we looked
            if owner == who and offset >= read.get(partition, 0):
                found.append(entry)
            elif owner == who:
                # a user's events are in one partition, in their order; others are there only if partitions were added
                behind += 1
                if behind == MOST_BEHIND:
                    break
            number = before
        gone = self._gone()
        return [entry for entry in reversed(found) if entry[-1] > gone]

    def _gone(self) -> int:
        """Return the newest event that may have been written over, or was forgotten."""
        return max(self.header[_FLOOR], self.header[_BEGUN] - self.events)


def _hash_of(user_id: str) -> bytes:
    return blake2b(user_id.encode("utf-8", errors="surrogatepass"), digest_size=16).digest()


class ClickTable:
    """Writes a table; see `stream.recent_notes.Notes`. It has its name once it has caught up with the topic.

    Parameters
    ----------
    path
        Its name; readers of a table that had it before go over to this one.
    index
        Row of an item, or None for one that is not in the catalogue.
    events, buckets
        How many events it holds, the newest, and how many chains lead to them.

    Raises
    ------
    OSError
        When there is no room for it.
    """

    def __init__(
        self, path: Path, index: Callable[[str], int | None], events: int = EVENTS, buckets: int = BUCKETS
    ) -> None:
        self._path, self._aside, self._index = path, path.with_name(f".{path.name}"), index
        self._aside.unlink(missing_ok=True)
        size = _HEADER + 8 * buckets + events * _ENTRY.size
        with self._aside.open("xb+") as file:
            # written, not left as a hole: a disk that is full shows here, not as a signal in the middle of an event
            file.write(struct.pack("<6q", 0, 0, -1, 0, events, buckets).ljust(_HEADER, b"\0"))
            for start in range(_HEADER, size, _MEGABYTE):
                file.write(bytes(min(_MEGABYTE, size - start)))
            file.flush()
            self._table = _Mapped(mmap.mmap(file.fileno(), size))
        self._shown = False
        self.tell(None)

    def add(self, user_id: str, note: Note) -> None:
        """Write the note."""
        table, row, who = self._table, self._index(note.item_id), _hash_of(user_id)
        number, bucket = table.header[_BEGUN] + 1, table.bucket(who)
        item = _UNKNOWN if row is None else row
        table.header[_BEGUN] = number
        _ENTRY.pack_into(
            table.mapped, table.place(number),
            who, table.heads[bucket], note.offset, int(note.partition), item, note.sign, note.tried, number,
        )  # fmt: skip
        table.heads[bucket] = number

    def forget(self, read: Mapping[str, int]) -> None:
        """Leave it to what comes to write over what was."""

    def clear(self) -> None:
        """Forget everything."""
        self._table.header[_FLOOR] = self._table.header[_BEGUN]

    def tell(self, lag: int | None) -> None:
        """Let readers know that the topic is read, and how far behind."""
        self._table.header[_LAG] = -1 if lag is None else lag
        self._table.header[_TOLD_AT] = time.monotonic_ns()
        if not self._shown and lag is not None and lag <= CAUGHT_UP:
            self._aside.replace(self._path)
            self._shown = True


class ClickReader:
    """Answers what a user did of late from a table; see `common.recent.RecentEvents`.

    Parameters
    ----------
    path
        Of the table; until there is one nobody did anything.
    topic
        Which the table is about.
    ids
        Gives the item ids by row, as the writer's `index` found them.
    """

    def __init__(self, path: Path, topic: str, ids: Callable[[], Sequence[str]]) -> None:
        self._path, self._topic, self._ids = path, topic, ids
        self._mapped: tuple[int, _Mapped] | None = None

    def since(self, user_id: str, offsets: Mapping[str, Mapping[str, int]]) -> Recent:
        """Return the user's events at or above the offsets."""
        table, read = self._table(), offsets.get(self._topic, {})
        if table is None:
            return NOTHING
        entries = table.entries_of(user_id, {int(part): offset for part, offset in read.items()})
        if not entries:
            return NOTHING
        ids = self._ids()
        notes = (
            Note(str(partition), offset, ids[item] if item >= 0 else "", sign, bool(tried))
            for _, _, offset, partition, item, sign, tried, _ in entries
        )
        return recent_of(notes, read)

    def lag(self) -> int | None:
        """Return how many records are not read yet, or None while nobody reads."""
        table = self._table()
        if table is None or time.monotonic_ns() - table.header[_TOLD_AT] > SILENT_S * 1e9:
            return None
        lag = table.header[_LAG]
        return None if lag < 0 else lag

    def _table(self) -> _Mapped | None:
        """Return the table that has the name now."""
        try:
            inode = os.stat(self._path).st_ino
            if self._mapped is None or self._mapped[0] != inode:
                with self._path.open("rb") as file:
                    inode = os.fstat(file.fileno()).st_ino
                    self._mapped = inode, _Mapped(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except FileNotFoundError:
            return None
        return self._mapped[1]
