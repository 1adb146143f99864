"""The stream worker: polls bytes, learns from each record, and checkpoints state and offsets in one write.

A checkpoint is these steps, in this order:

1. Dead letters are flushed: each is acknowledged before its offset is stored.
2. State, counters, recent ids, drift detector and offsets are written as one artifact (`stream.checkpoint`).
3. The snapshot for serving is published and `current` moved to it (`stream.snapshot`).
4. The offsets are committed to the consumer group, for dashboards only; the worker never reads them.

A crash between any two loses nothing and applies nothing twice: the worker restarts from the artifact of step 2, whose
state and offsets belong together. Where the topic ends is never asked (some brokers answer too low): a run ends by its
count of events, by idleness, or when it is told to.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from kafka import KafkaConsumer, OffsetAndMetadata, TopicPartition
from kafka.errors import KafkaError, OffsetOutOfRangeError

from common.clock import Clock, wall_clock
from common.errors import BrokerUnavailable, CheckpointMismatch, OffsetLost, StoreMismatch
from common.events import decode_event
from common.progress import Progress, silent
from stream.checkpoint import CheckpointStore
from stream.deadletter import DeadLetter, DeadLetters
from stream.learner.mf import MF
from stream.settings import LearnReport, WorkerSettings
from stream.snapshot import publish_snapshot
from stream.state import Decoder, ItemTexts, Served, StreamState
from stream.topics import (
    ANSWER_WITHIN_MS,
    TopicInfo,
    admin_client,
    await_topic,
    broker_answers,
    describe,
)

__all__ = ["LearnReport", "StreamWorker", "WorkerSettings"]

_POLL_MS = 200
_LOOK_AGAIN_S = 10.0
"""A silent topic is looked up this often: a broker that was replaced answers polls with nothing, for ever."""


class StreamWorker:
    """Learns a topic into a store.

    Parameters
    ----------
    settings
        What to do.
    learner
        Fresh; taken over from the checkpoint when there is one.
    items
        Candidates from the start (a catalogue's ids).
    texts
        Text vectors of items, for a learner that takes them; newer ones than the checkpoint's take their place.
    decode
        Bytes to event.
    stopping
        Asked before every record; True ends the run with a checkpoint.
    notice
        Told what people must hear: a fallback, a new topic, a lost offset.
    progress
        Told how far it is.
    clock
        Dates checkpoints.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        learner: Served | None = None,
        *,
        items: tuple[str, ...] = (),
        texts: ItemTexts | None = None,
        decode: Decoder = decode_event,
        stopping: Callable[[], bool] = lambda: False,
        notice: Callable[[str], None] = lambda _: None,
        progress: Progress = silent,
        clock: Clock = wall_clock,
    ) -> None:
        self.settings = settings
        self.state = StreamState(
            learner or MF(),
            every=settings.evaluate_every,
            dedup_window=settings.dedup_window,
            decode=decode,
        )
        self._items, self._texts = items, texts
        self._stopping, self._notice, self._progress, self._clock = stopping, notice, progress, clock
        self._checkpoints = CheckpointStore(settings.store, settings.keep)
        self._changed = False  # whether there is anything that the last checkpoint lacks
        self._stored_events = 0
        self._stored_at = 0.0
        self._last_record = 0.0
        self._sequence = 0

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
            info = await_topic(settings.servers, settings.topic, settings.topic_wait_s)
            self._identify(info)
            letters = DeadLetters(settings.servers, settings.topic)
            consumer = self._connect()
            try:
                self._assign(consumer, info)
                self._consume(consumer, letters)
                self._checkpoint(consumer, letters)
                self._commit(consumer, wait=True)
            finally:
                letters.close()
                consumer.close(timeout_ms=2000)
        return self._report(resumed_from, time.monotonic() - started)

    # --- starting ---------------------------------------------------------------------------------------------------

    def _restore(self) -> None:
        self._sequence = self._checkpoints.next_sequence()
        found = self._checkpoints.newest(self._notice, set_aside=True)
        if found is not None:
            for line in self.state.restore(found.arrays, found.details):
                self._notice(line)
            self._stored_events = self.state.events
        known = self.state.learner.n_items
        self.state.add_items(self._items)
        described = self._texts is not None and self.state.describe(self._texts)
        self._changed = found is None or described or self.state.learner.n_items > known
        self._stored_at = self._last_record = time.monotonic()

    def _identify(self, info: TopicInfo) -> None:
        """Compare the topic with the one that was learned, and act by the policy when it is another."""
        known = self.state.topic_ids.get(info.name)
        if known is not None and known != info.identity:
            if self.settings.on_new_topic == "fail":
                raise CheckpointMismatch(
                    f"topic {info.name!r} at {self.settings.servers} has identity {info.identity or 'unknown'}",
                    expected=f"{known or 'unknown'}, which the checkpoint was made from",
                    consequence="its stored offsets mean nothing here; nothing was read",
                    mend="--on-new-topic continue keeps what was learned and reads the new topic from its beginning",
                )
            self._notice(
                f"topic {info.name!r} is a new one (identity {info.identity or 'unknown'}, was {known or 'unknown'}):"
                " what was learned stays, the topic is read from its beginning"
            )
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

    def _connect(self) -> KafkaConsumer:
        with broker_answers(self.settings.servers):
            return KafkaConsumer(
                bootstrap_servers=self.settings.servers,
                bootstrap_timeout_ms=ANSWER_WITHIN_MS,
                client_id="anabranch-worker",
                group_id=self.settings.group,
                enable_auto_commit=False,
                auto_offset_reset="none",
                allow_auto_create_topics=False,
                isolation_level="read_committed",
                max_poll_records=5000,
                max_partition_fetch_bytes=4 * 1024 * 1024,
                metadata_max_age_ms=30_000,
            )

    def _assign(self, consumer: KafkaConsumer, info: TopicInfo) -> None:
        """Read all partitions, each from its stored offset, a new one from its beginning."""
        parts = [TopicPartition(info.name, number) for number in info.partitions]
        consumer.assign(parts)
        stored = self.state.offsets.get(info.name, {})
        for part in parts:
            if part.partition in stored:
                consumer.seek(part, stored[part.partition])
            else:
                consumer.seek_to_beginning(part)

    # --- reading ----------------------------------------------------------------------------------------------------

    def _consume(self, consumer: KafkaConsumer, letters: DeadLetters) -> None:
        looked = time.monotonic()
        while not self._enough():
            try:
                polled = consumer.poll(timeout_ms=_POLL_MS)
            except OffsetOutOfRangeError as error:
                self._checkpoint(consumer, letters)
                self._lost(consumer, error)
                continue
            except KafkaError as error:
                self._checkpoint(consumer, letters)
                raise BrokerUnavailable(f"reading {self.settings.topic} failed: {error}") from error
            if polled:
                self._apply(consumer, letters, polled)
                self._last_record = looked = time.monotonic()
            elif self._idle() or time.monotonic() - looked > _LOOK_AGAIN_S:
                self._look_again(consumer, letters)
                if self._idle():
                    return
                looked = time.monotonic()
            if self._checkpoint_due():
                self._checkpoint(consumer, letters)

    def _apply(self, consumer: KafkaConsumer, letters: DeadLetters, polled: Mapping[TopicPartition, Any]) -> None:
        """Apply a batch, partition after partition, and stop within it when there is enough."""
        for part in sorted(polled):
            for record in polled[part]:
                if self._enough():
                    return
                outcome = self.state.apply(part.topic, part.partition, record.offset, record.value)
                self._changed = True
                if outcome.kind == "dead":
                    place = (part.topic, part.partition, record.offset)
                    letters.send(DeadLetter(*place, record.key, record.value, outcome.error, outcome.reason))
                if self._checkpoint_due():
                    self._checkpoint(consumer, letters)
        self._progress("learning", self.state.events, self.settings.until_events or 0)

    def _enough(self) -> bool:
        until = self.settings.until_events
        return (until is not None and self.state.events >= until) or self._stopping()

    def _idle(self) -> bool:
        timeout = self.settings.idle_timeout_s
        return timeout is not None and time.monotonic() - self._last_record > timeout

    def _look_again(self, consumer: KafkaConsumer, letters: DeadLetters) -> None:
        """Look up a silent topic: the broker may be gone, the topic be another, or have more partitions."""
        try:
            with admin_client(self.settings.servers) as client:
                info = describe(client, self.settings.topic)
        except BrokerUnavailable:
            self._checkpoint(consumer, letters)
            raise
        if info is None:  # deleted: perhaps it is made again
            return
        another = info.identity != self.state.topic_ids[info.name]
        if another:
            self._checkpoint(consumer, letters)
            self._identify(info)
            self._last_record = time.monotonic()
        if another or len(info.partitions) != len(consumer.assignment()):
            self._assign(consumer, info)

    def _lost(self, consumer: KafkaConsumer, error: OffsetOutOfRangeError) -> None:
        """Act by the policy when the broker no longer has the next record."""
        parts = (
            sorted(error.args[0]) if error.args and isinstance(error.args[0], dict) else sorted(consumer.assignment())
        )
        lost = {part.partition: consumer.position(part) for part in parts}
        begin, end = consumer.beginning_offsets(parts), consumer.end_offsets(parts)
        shown = ", ".join(
            f"partition {part.partition} offset {lost[part.partition]} (it has {begin[part]} to {end[part]})"
            for part in parts
        )
        if self.settings.on_lost_offset == "fail":
            raise OffsetLost(
                f"the broker no longer has {self.settings.topic}: {shown}",
                consequence="nothing further was learned",
                mend="--on-lost-offset earliest goes on with the oldest record it has, latest with the next new one",
            )
        target = begin if self.settings.on_lost_offset == "earliest" else end
        self._notice(f"lost offset of {self.settings.topic}: {shown}; going on from the {self.settings.on_lost_offset}")
        for part in parts:
            consumer.seek(part, target[part])
            self.state.offsets.setdefault(part.topic, {})[part.partition] = int(target[part])
        self._changed = True

    # --- storing ----------------------------------------------------------------------------------------------------

    def _checkpoint_due(self) -> bool:
        fresh = self.state.events - self._stored_events
        if fresh <= 0:
            return False
        if fresh >= self.settings.checkpoint_events:
            return True
        return time.monotonic() - self._stored_at >= self.settings.checkpoint_seconds

    def _checkpoint(self, consumer: KafkaConsumer, letters: DeadLetters) -> None:
        """Store everything; the numbers are those of the module's text."""
        state = self.state
        if not self._changed:
            return
        letters.flush()  # 1
        now = self._clock()
        self._checkpoints.write(self._sequence, state.arrays(), state.details(), now)  # 2
        snapshot = state.learner.snapshot(state.json_offsets)
        publish_snapshot(self.settings.store, snapshot, self._sequence, now, self.settings.keep)  # 3
        self._commit(consumer)  # 4
        self._sequence += 1
        self._stored_events, self._stored_at, self._changed = state.events, time.monotonic(), False

    def _commit(self, consumer: KafkaConsumer, *, wait: bool = False) -> None:
        offsets = {
            TopicPartition(self.settings.topic, part): OffsetAndMetadata(offset, "", -1)
            for part, offset in self.state.offsets.get(self.settings.topic, {}).items()
        }
        if not offsets:
            return
        # a commit that fails shows on dashboards only
        if wait:
            with suppress(KafkaError):
                consumer.commit(offsets, timeout_ms=2000)
        else:
            consumer.commit_async(offsets, callback=lambda *_: None)

    def _report(self, resumed_from: int, seconds: float) -> LearnReport:
        state = self.state
        return LearnReport(
            events=state.events,
            learned=state.learned,
            duplicates_skipped=state.duplicates_skipped,
            dead_letters=state.dead_letters,
            drift_alarms=state.progressive.drift_alarms,
            offsets=state.json_offsets,
            state_sha256=state.learner.state_sha256(),
            metrics={name: row.as_json() for name, row in state.progressive.rows().items()},
            resumed_from=resumed_from,
            seconds=seconds,
        )
