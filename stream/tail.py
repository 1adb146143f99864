"""Following a topic for what users do: each event once, noted where the caller says.

Every event is noted with its offset, and who asks names the offsets that the snapshot has read. So an event counts
once, in the snapshot or in the notes, whichever snapshot an answer is made from. The learner's rules decide what an
event says: `common.settings`.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from common.errors import MalformedEvent, OffsetLost, StreamError
from common.events import decode_event
from common.settings import feedback_of, was_tried
from stream.recent_ids import RecentIds
from stream.recent_notes import Note, Notes
from stream.source import Log, Record, Source, TopicInfo

log = logging.getLogger(__name__)
Offsets = Mapping[str, Mapping[str, int]]
GROUP = "anabranch-live"
POLL_S = 0.2
LOOK_AGAIN_S = 10.0
"""A topic is looked up so often, for partitions that were added and for a topic that was made anew."""
PAUSE_S = 1.0
GATHER_S = 0.01
"""Once all is read, so long is left to what comes next: each look costs the broker and this thread a turn on a core."""


class Tail:
    """Follows a topic, in a thread, and takes notes.

    Parameters
    ----------
    log
        Where the topic is.
    topic
        Its name.
    served
        Asked how far the snapshot that is served has read: reading begins there, and what is before is forgotten once
        the next snapshot is served.
    notes
        Where notes are kept.
    ids
        So many event ids are remembered, so that a second copy of an event is not noted.
    monotonic
        Seconds that never go back.
    """

    def __init__(
        self,
        log: Log,
        topic: str,
        served: Callable[[], Offsets],
        notes: Notes,
        *,
        ids: int = 100_000,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log, self._topic, self._served, self._notes = log, topic, served, notes
        self._most_ids, self._monotonic = ids, monotonic
        self._ids = RecentIds(ids)
        self._at: dict[int, int] = {}
        self._info: TopicInfo | None = None
        self._snapshot: Offsets = {}
        self._lag: int | None = None

    def lag(self) -> int | None:
        """Return how many records are not read yet, or None while no broker answers."""
        return self._lag

    def take(self, record: Record) -> None:
        """Take note of one record; one that is no event is the learner's concern."""
        try:
            event = decode_event(record.value or b"")
        except MalformedEvent:
            return
        feedback = feedback_of(event)
        tried = was_tried(event)
        if not feedback.sign and not tried:
            return
        if not self._ids.add(event.event_id):
            return
        self._notes.add(event.user_id, Note(str(record.partition), record.offset, event.item_id, feedback.sign, tried))

    @contextmanager
    def following(self) -> Iterator[None]:
        """Read in a thread until the block is left; a broker that is away is waited for."""
        stop = threading.Event()
        thread = threading.Thread(target=self._follow, args=(stop,), name="anabranch-live", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            # one that waits for a broker may be left behind: it holds nothing that must be kept
            thread.join(timeout=5.0)

    def _follow(self, stop: threading.Event) -> None:
        quiet = False
        while not stop.is_set():
            try:
                source = self._log.source(self._topic, GROUP)
                try:
                    quiet = False
                    self._read(source, stop)
                finally:
                    source.close()
            except StreamError as error:
                if not quiet:
                    log.warning("clicks wait for the next snapshot, the topic cannot be read: %s", error)
                quiet = True
            except Exception:  # the thread must outlive any surprise, or no later click would count until a snapshot
                log.exception("clicks wait for the next snapshot")
            self._tell(None)
            stop.wait(PAUSE_S)

    def _tell(self, lag: int | None) -> None:
        self._lag = lag
        self._notes.tell(lag)

    def _read(self, source: Source, stop: threading.Event) -> None:
        look_again, assigned = 0.0, False
        while not stop.is_set():
            if not assigned or self._monotonic() >= look_again:
                assigned = self._look(source, assigned)
                look_again = self._monotonic() + LOOK_AGAIN_S
            if not assigned:
                self._tell(None)
                stop.wait(PAUSE_S)
                continue
            self._forget()
            try:
                records = source.poll(POLL_S)
            except OffsetLost as lost:
                # deleted, or cut: what is left still says what users did
                for part, (begin, _) in source.bounds(tuple(lost.positions)).items():
                    log.warning("partition %d of %s is read from offset %d on: %s", part, self._topic, begin, lost)
                    source.seek(part, begin)
                continue
            for record in records:
                self.take(record)
            self._at, ends = source.positions(), source.ends()
            lag = sum(max(0, end - self._at.get(part, end)) for part, end in ends.items())
            self._tell(lag)
            if records and not lag:
                stop.wait(GATHER_S)

    def _look(self, source: Source, assigned: bool) -> bool:
        """Look the topic up, and read what it has now; return whether there is one."""
        info = source.topic()
        if info is None:
            return False
        if assigned and info == self._info:
            return True
        if self._info is not None and info.identity != self._info.identity:
            log.warning("topic %s was made anew: it is read from its beginning", self._topic)
            self._notes.clear()
            self._ids = RecentIds(self._most_ids)
            self._at = dict.fromkeys(info.partitions, 0)
        read = self._served().get(self._topic, {})
        source.assign({part: self._at.get(part, read.get(str(part))) for part in info.partitions})
        self._info = info
        return True

    def _forget(self) -> None:
        """Forget what the snapshot before the served one had read: no answer is made from an older one."""
        served = self._served()
        if served == self._snapshot:
            return
        read, self._snapshot = self._snapshot.get(self._topic, {}), served
        self._notes.forget(read)
