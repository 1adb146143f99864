"""The stream worker: polls bytes, learns from each record, and checkpoints state and offsets in one write.

A checkpoint is these steps, in this order, once the topic was looked up and is still the one that was read:

1. Dead letters are flushed: each is acknowledged before its offset is stored.
2. State, counters, recent ids, drift detector and offsets are written as one artifact (`stream.checkpoint`).
3. The snapshot for serving is published and `current` moved to it (`stream.snapshot`).
4. The offsets are committed to the consumer group, for dashboards only; the worker never reads them.

A crash between any two loses nothing and applies nothing twice: the worker restarts from the artifact of step 2, whose
state and offsets belong together. Where the topic ends is never asked (some brokers answer too low): a run ends by its
count of events, by idleness, or when it is told to.
"""

import logging
import time
from collections.abc import Sequence

from common.errors import BrokerUnavailable, OffsetLost, StoreMismatch
from stream.breaker import HOLD_S, Breaker
from stream.checkpoint import CheckpointStore
from stream.deadletter import DeadLetter, DeadLetters, attempts_of
from stream.partitions import PartitionStore
from stream.policies import another_topic, resumed
from stream.settings import LearnReport, WorkerSettings
from stream.snapshot import publish_snapshot
from stream.source import Record, TopicInfo
from stream.state import StreamState
from stream.worker import LOOK_AGAIN_S, POLL_S, TEXTS_S, Worker, report_of

__all__ = ["LearnReport", "StreamWorker", "WorkerSettings"]

_LOG = logging.getLogger("anabranch.stream")
_LETTER_BYTES = 16 * 1024 * 1024
"""Dead letters of this size are stored and sent, however few records that took."""
STORING_SHARE = 0.1
"""Of a worker's time, about, where its checkpoints take long: see `pause_after`."""
LONGEST_PAUSE_S = 60.0
"""One write that hung must not keep the next checkpoint away for long."""


def pause_after(took: float, seconds: float) -> float:
    """Return how many seconds pass after a checkpoint until the next one.

    One of a large model is hundreds of megabytes. Written as often as a small one's they would take the worker's time
    and the disk of all that share the machine, and each is replaced by the next.

    Parameters
    ----------
    took
        Seconds that the checkpoint took.
    seconds
        The longest interval that was asked for; what takes less than `STORING_SHARE` of it may be repeated at once.
    """
    return min(LONGEST_PAUSE_S, took / STORING_SHARE) if took > STORING_SHARE * seconds else 0.0


class StreamWorker(Worker):
    """Learns a topic into a store; its parameters are those of `stream.worker.Worker`."""

    def _prepare(self) -> None:
        settings = self.settings
        self.state = StreamState(
            self._fresh, every=settings.evaluate_every, dedup_window=settings.dedup_window, decode=self._decode
        )
        self._checkpoints = CheckpointStore(settings.store, settings.keep)
        self._breaker = Breaker(settings.bad_share, settings.bad_window)
        self._changed = False  # whether there is anything that the last checkpoint lacks
        self._assigned = self._stored_events = self._sequence = 0
        self._pause = 0.0
        self._stored_offsets = "the beginning"

    def run(self) -> LearnReport:
        """Restore, read, learn and checkpoint until a stop condition holds.

        Raises
        ------
        BrokerUnavailable
            When no broker answers, at the start or after the topic fell silent; what was learned is stored.
        UnknownName
            When the topic does not appear.
        CheckpointMismatch
            When the checkpoint belongs to another topic or to other settings.
        OffsetLost
            When the broker no longer has the next record and the policy is to fail.
        TooManyBadRecords
            When more of a window of records cannot be read than the settings allow; its offsets are not stored.
        StoreError
            When the store cannot be used.
        StreamError
            When dead letters cannot be delivered.
        """
        started = time.monotonic()
        settings = self.settings
        with self._checkpoints.lock():
            self._restore()
            resumed_from = self.state.events
            info = self._log.await_topic(settings.topic, settings.topic_wait_s)
            self._identify(info)
            self._letters = DeadLetters(self._log, settings.topic)
            self._source = self._log.source(settings.topic, settings.group)
            try:
                self._assign(info)
                self._consume()
                if not self.checkpoint():
                    self.checkpoint()
                self._source.commit(self._offsets(), wait=True)
            finally:
                self._letters.close()
                self._source.close()
        return report_of(self.state, resumed_from, time.monotonic() - started)

    # --- starting ---------------------------------------------------------------------------------------------------

    def _restore(self) -> None:
        if PartitionStore(self.settings.store).numbers():
            raise StoreMismatch(
                f"the store {self.settings.store} is that of workers that share a topic",
                expected="a new one, or one of a worker that learns alone",
                mend="add --scale-out, or choose another --store, which learns the topic from its beginning",
            )
        self._sequence = self._checkpoints.next_sequence()
        found = self._checkpoints.newest(self._notice, set_aside=True)
        if found is not None:
            for line in self.state.restore(found.arrays, found.details):
                self._notice(line)
            self._stored_events = self.state.events
            self._stored_offsets = self._shown_offsets()
        known = self.state.learner.n_items
        self.state.add_items(self._items)
        described = self._describe()
        self._changed = found is None or described or self.state.learner.n_items > known
        self._stored_at = self._last_record = self._answered = time.monotonic()

    def _describe(self) -> bool:
        """Tell the learner newer texts, if there are any; return whether that changed anything."""
        self._described_at = time.monotonic()
        texts = self._texts()
        return texts is not None and self.state.describe(texts)

    def _identify(self, info: TopicInfo) -> None:
        """Compare the topic with the one that was learned, and act by the policy when it is another."""
        known = self.state.topic_ids.get(info.name)
        if known is not None and known != info.identity:
            self._notice(another_topic(self.settings, self._log.address, info, known))
            self.state.forget_topic(info.name, info.identity)
            self._changed = True
        elif known is None and self.state.offsets and info.name not in self.state.offsets:
            others = ", ".join(sorted(self.state.offsets))
            raise StoreMismatch(
                f"the store {self.settings.store} learns topic {others}",
                expected=f"that topic, not {info.name!r}",
                mend="choose another --store",
            )
        self.state.topic_ids[info.name] = info.identity

    def _assign(self, info: TopicInfo) -> None:
        """Read all partitions, each from its stored offset, a new one from its beginning."""
        stored = self._offsets()
        epochs = self.state.epochs.get(self.settings.topic, {})
        self._source.assign({number: stored.get(number) for number in info.partitions}, epochs)
        self._assigned = len(info.partitions)
        self._meter.assigned(self._assigned)
        self._last_record = time.monotonic()  # idle is who reads and gets nothing, not who waits for a slow broker

    def _offsets(self) -> dict[int, int]:
        return self.state.offsets.get(self.settings.topic, {})

    def _shown_offsets(self) -> str:
        shown = ", ".join(f"partition {number} offset {offset}" for number, offset in sorted(self._offsets().items()))
        return shown or "the beginning"

    # --- reading ----------------------------------------------------------------------------------------------------

    def _consume(self) -> None:
        looked = time.monotonic()
        while not self._enough():
            try:
                records = self._source.poll(POLL_S)
            except OffsetLost as error:
                if self.checkpoint():
                    self._lost(error)
                continue
            except BrokerUnavailable:
                self.checkpoint()
                raise
            if records:
                self._apply(records)
                self._last_record = self._answered = looked = time.monotonic()
                ends, offsets = self._source.ends(), self._offsets()
                self._meter.polled({part: max(0, end - offsets.get(part, 0)) for part, end in ends.items()})
            elif self._idle() or time.monotonic() - looked > LOOK_AGAIN_S:
                self._look_again()
                if self._idle():
                    return
                looked = time.monotonic()
            if time.monotonic() - self._described_at > TEXTS_S and self._describe():
                self._changed = True
                if not self._breaker.suspects:
                    self.checkpoint()
            if self._checkpoint_due():
                self.checkpoint()

    def _apply(self, records: Sequence[Record]) -> None:
        """Apply a batch in its order, and stop within it when there is enough."""
        for record in records:
            if self._enough():
                return
            began = time.perf_counter()
            place = (record.topic, record.partition, record.offset)
            outcome = self.state.apply(*place, record.value, record.leader_epoch)
            self._meter.applied(outcome, time.perf_counter() - began)
            self._changed = True
            self._breaker.count(outcome)
            if outcome.kind == "dead":
                if self._breaker.tripped:
                    raise self._breaker.refusal(self.settings.topic, self._stored_offsets)
                tried = attempts_of(record.headers)
                self._letters.add(DeadLetter(*place, record.key, record.value, outcome.error, outcome.reason, tried))
            if self._checkpoint_due() and not self.checkpoint():
                return  # the rest of the batch is of a topic that is no more
        self._meter.alarms(self.state.progressive.drift_alarms)
        self._progress("learning", self.state.events, self.settings.until_events or 0)

    def _enough(self) -> bool:
        until = self.settings.until_events
        return (until is not None and self.state.events >= until) or self._stopping()

    def _another(self, info: TopicInfo) -> None:
        """Go over to a topic that took the place of the one that was read, or refuse to."""
        self._identify(info)
        self._assign(info)

    def _same(self, info: TopicInfo) -> None:
        if len(info.partitions) != self._assigned:
            self._assign(info)

    def _known_identity(self) -> str:
        return self.state.topic_ids[self.settings.topic]

    def _unsent(self) -> int:
        return len(self._letters)

    def _lost(self, error: OffsetLost) -> None:
        """Act by the policy when the broker no longer has the next record."""
        info = self._source.topic()
        if info is not None and info.identity != self._known_identity():
            self._another(info)
            return
        # the ids of the last records are remembered over all partitions alike, so each may go back by its part
        ids_each = self.settings.dedup_window // max(1, self._assigned)
        targets, told = resumed(self.settings, error, self._source.bounds(error.positions), ids_each)
        self._notice(told)
        for part, target in targets.items():
            self._source.seek(part, target)
            self.state.read_on(self.settings.topic, part, target)
        self._changed = True

    # --- storing ----------------------------------------------------------------------------------------------------

    def _checkpoint_due(self) -> bool:
        fresh = self.state.events - self._stored_events
        if fresh <= 0:
            return False
        age = time.monotonic() - self._stored_at
        if self._breaker.suspects and age < HOLD_S + self.settings.checkpoint_seconds:
            return False
        full = fresh >= self.settings.checkpoint_events or age >= self.settings.checkpoint_seconds
        return self._letters.size >= _LETTER_BYTES or (full and age >= self._pause)

    def checkpoint(self) -> bool:
        """Store everything; the numbers are those of the module's text. Return False when the topic is another now."""
        state = self.state
        if not self._changed:
            return True
        if not self._same_topic():
            return False
        began = time.monotonic()
        self._letters.flush(self._letters_within())  # 1
        now = self._clock()
        size = self._checkpoints.write(self._sequence, state.arrays(), state.details(), now)  # 2
        snapshot = state.learner.snapshot(state.json_offsets)
        publish_snapshot(self.settings.store, snapshot, self._sequence, now, self.settings.keep)  # 3
        self._source.commit(self._offsets())  # 4
        self._sequence += 1
        self._stored_events, self._stored_at, self._changed = state.events, time.monotonic(), False
        self._pause = pause_after(self._stored_at - began, self.settings.checkpoint_seconds)
        self._stored_offsets = self._shown_offsets()
        self._breaker.begin()
        self._meter.checkpointed(self._stored_at - began, size)
        counts = {"events": state.events, "dead_letters": state.dead_letters, "bytes": size}
        _LOG.info("checkpoint", extra={"data": {"checkpoint": self._sequence - 1, **counts}})
        return True
