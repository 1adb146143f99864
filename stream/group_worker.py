"""A stream worker among others: they share the partitions of a topic as a Kafka consumer group, and one store.

The user's partition owns what is known of the user; what is known of items is everybody's (`stream.shared_items`). A
partition is stored as the lone worker stores its state (`stream.consumer`), in the same numbered steps, under the
owner's claim (`stream.partitions`):

1. Its dead letters are flushed.
2. State, counters, recent ids and offset of the partition are written as one artifact.
3. What the partitions of others have stored since is taken up; the owner of the lowest partition publishes the snapshot
   for serving, made of the newest checkpoints of all.
4. The offsets are committed to the group, for dashboards only.

Taken over: claimed, restored from the newest checkpoint, read on from the offset in it. Revoked: stored and dropped,
before the group gives it to another. Lost (the group took this worker for dead): dropped, nothing is written; whoever
owns it by then reads the same records from the same checkpoint.
"""

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

from common.errors import AnabranchError, BrokerUnavailable, OffsetLost, StoreMismatch
from stream.breaker import HOLD_S, Breaker
from stream.checkpoint import CheckpointStore
from stream.deadletter import DeadLetter, DeadLetters, attempts_of
from stream.partitions import PartitionStore
from stream.policies import another_topic, resumed
from stream.progressive import Row
from stream.settings import LearnReport
from stream.shard import Shard, other_partitions
from stream.shards import Shards
from stream.shared_items import SharedItems
from stream.shared_snapshot import SharedSnapshot
from stream.source import NO_EPOCH, Record, TopicInfo, in_time
from stream.state import ItemTexts, Served, StreamState
from stream.worker import LEAVE_WITHIN_S, LOOK_AGAIN_S, POLL_S, TEXTS_S, Worker, report_of

_JOIN_WITHIN_S = 30.0
"""So long a worker that has no partitions yet is not idle."""
_SHARE_AT_MOST = 0.5
"""Taking up what others learned may take this share of the time; on a large catalogue it is done less often then."""
_STAY_S = 20.0
"""A worker that learns for longer than this without a poll says that it is alive; the group waits for two minutes."""


class GroupWorker(Worker):
    """Learns the partitions that its group leaves to it.

    Its parameters are those of `stream.worker.Worker`; `checkpoint_events` and `checkpoint_seconds` are those of this
    worker, over its partitions, and each partition gets a learner like the one that is given.

    Raises
    ------
    InvalidSetting
        When what such a learner knows about items cannot be shared.
    """

    def _prepare(self) -> None:
        settings = self.settings
        self._store = PartitionStore(settings.store, settings.keep)
        self._partitions = 1
        self.shared = SharedItems(self._make)
        self._snapshot = SharedSnapshot(settings.store, settings.keep, self._store, self._make, self.shared.sharing)
        self._held = Shards(self._store, self.shared, self._notice, self._meter)
        self.shards = self._held.by_number
        self._waiting: set[int] = set()  # owned, and not taken over yet
        self._told: ItemTexts | None = None
        self._identity = ""
        self._owned = False  # whether it ever had a partition
        self._looked = self._polled = time.monotonic()
        self._share_after = self._published_at = 0.0

    def _make(self) -> StreamState:
        """Return the state of a partition of which nothing is known."""
        settings = self.settings
        ids = max(1, settings.dedup_window // self._partitions)
        learner: Served = self._fresh.clone()
        return StreamState(learner, every=settings.evaluate_every, dedup_window=ids, decode=self._decode)

    def run(self) -> LearnReport:
        """Join, learn and store until a stop condition holds, then leave.

        Raises
        ------
        StoreMismatch
            When the store belongs to a lone worker, or to another topic.
        CheckpointMismatch
            When a checkpoint belongs to another topic, to other settings or to another number of partitions.
        BrokerUnavailable, UnknownName, OffsetLost, TooManyBadRecords, StoreError, StreamError
            As for `stream.consumer.StreamWorker.run`.
        """
        started = time.monotonic()
        with self.joined():
            resumed_from = self._stored_events()
            while self.step():
                pass
            if not self.checkpoint():
                self.checkpoint()
            self._source.commit(self._offsets(), wait=True)
            tested = [shard.state.progressive.rows() for shard in self.shards.values()]
        whole = self._snapshot.publish(self._clock(), self._notice, wait_s=LEAVE_WITHIN_S)
        return _with_times(report_of(whole or self._make(), resumed_from, time.monotonic() - started), tested)

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Be a member of the group within the block; its end stores what is changed and gives all partitions up.

        Raises as `run`.
        """
        settings = self.settings
        if CheckpointStore(settings.store).newest(self._notice) is not None:
            raise StoreMismatch(
                f"the store {settings.store} is that of a worker that learns alone",
                expected="a new one, or one of workers that share a topic",
                mend="choose another --store, which learns the topic from its beginning, or leave out --scale-out",
            )
        info = self._log.await_topic(settings.topic, settings.topic_wait_s)
        self._identity, self._partitions = info.identity, len(info.partitions)
        self._described_at, self._told = time.monotonic(), self._texts()
        self._source = self._log.member(
            settings.topic, settings.group, self, name=settings.member, session_s=settings.session_seconds
        )
        self._last_record = self._answered = self._looked = self._polled = time.monotonic()
        try:
            yield
        finally:
            self._source.close()
            for shard in self.shards.values():
                shard.letters.close()

    # --- what the group says ----------------------------------------------------------------------------------------

    def assigned(self, partitions: Collection[int]) -> None:
        """Take note of new partitions; the loop takes them over."""
        self._waiting |= set(partitions)

    def revoked(self, partitions: Collection[int]) -> None:
        """Store and drop partitions, before others get them."""
        gone = self._drop(partitions)
        try:
            self._held.store(
                [shard for shard in gone if shard.changed and not shard.breaker.suspects],
                self._clock(),
                self._letters_within(),
            )
        except AnabranchError as error:
            numbers = [shard.partition for shard in gone]
            self._notice(f"partitions {numbers} could not be stored: {error}; their next owner reads on from before")
        for shard in gone:
            shard.letters.close()

    def lost(self, partitions: Collection[int]) -> None:
        """Drop partitions that others own already."""
        gone = self._drop(partitions)
        for shard in gone:
            shard.letters.close()
        if gone:
            numbers = [shard.partition for shard in gone]
            self._notice(
                f"partitions {numbers} are lost: the group took this worker for dead, nothing of them is stored"
            )

    def _drop(self, partitions: Collection[int]) -> list[Shard]:
        self._waiting -= set(partitions)
        return self._held.drop(partitions)

    # --- the loop ---------------------------------------------------------------------------------------------------

    def step(self) -> bool:
        """Poll once and do what is to be done; return whether to go on."""
        if self._enough():
            return False
        try:
            records = self._source.poll(POLL_S)
        except OffsetLost as error:
            self._lost_offsets(error)
            return True
        except BrokerUnavailable:
            self.checkpoint()
            raise
        self._polled = time.monotonic()
        # records come before partitions are taken over: what is polled of one that came back is from before it left
        if records:
            self._apply(records)
            self._last_record = self._answered = self._looked = time.monotonic()
            ends, offsets = self._source.ends(), self._offsets()
            self._meter.polled({p: max(0, ends[p] - offset) for p, offset in offsets.items() if p in ends})
        if self._waiting:
            self._take_over()
        elif not records and (self._idle() or time.monotonic() - self._looked > LOOK_AGAIN_S):
            self._look_again()
            if self._idle():
                return False
            self._looked = time.monotonic()
        if time.monotonic() - self._described_at > TEXTS_S:
            self._describe()
        if self._due():
            self._checkpoint([shard for shard in self.shards.values() if self._ready(shard)])
        return True

    def checkpoint(self) -> bool:
        """Store all partitions, and take up what others stored; return False when the topic is another now."""
        return self._checkpoint(list(self.shards.values()))

    def _apply(self, records: Sequence[Record]) -> None:
        for record in in_time(records):
            shard = self.shards.get(record.partition)
            if shard is None:
                continue
            if self._enough():
                return
            self._apply_one(shard, record)
            if time.monotonic() - self._polled > _STAY_S:
                self._source.stay()  # partitions may go meanwhile; what is left of the batch is passed over then
                self._polled = time.monotonic()
            if self._due() and not self._checkpoint([each for each in self.shards.values() if self._ready(each)]):
                return  # the rest of the batch is of a topic that is no more
        self._meter.alarms(sum(shard.state.progressive.drift_alarms for shard in self.shards.values()))
        self._progress("learning", self._events(), self.settings.until_events or 0)

    def _apply_one(self, shard: Shard, record: Record) -> None:
        began = time.perf_counter()
        place = (record.topic, record.partition, record.offset)
        outcome = shard.state.apply(*place, record.value, record.leader_epoch)
        self._meter.applied(outcome, time.perf_counter() - began)
        shard.changed = True
        shard.breaker.count(outcome)
        if outcome.kind == "dead":
            if shard.breaker.tripped:
                raise shard.breaker.refusal(self.settings.topic, f"the last checkpoint of partition {shard.partition}")
            tried = attempts_of(record.headers)
            shard.letters.add(DeadLetter(*place, record.key, record.value, outcome.error, outcome.reason, tried))

    def _enough(self) -> bool:
        until = self.settings.until_events
        return (until is not None and self._events() >= until) or self._stopping()

    def _stored_events(self) -> int:
        """Return how many records were applied before."""
        self.shared.refresh(self._store, (), self._notice)
        return sum(self.shared.events.values())

    def _events(self) -> int:
        """Return how many records were applied in all, as far as this worker knows."""
        own = {partition: shard.state.events for partition, shard in self.shards.items()}
        return sum({**self.shared.events, **own}.values())

    def _offsets(self) -> dict[int, int]:
        topic = self.settings.topic
        found = {part: shard.state.offsets.get(topic, {}).get(part) for part, shard in self.shards.items()}
        return {part: offset for part, offset in found.items() if offset is not None}

    def _patience(self) -> float | None:
        timeout = self.settings.idle_timeout_s
        return timeout if timeout is None or self._owned else max(timeout, _JOIN_WITHIN_S)

    # --- taking over ------------------------------------------------------------------------------------------------

    def _take_over(self) -> None:
        """Claim and restore the partitions that were assigned, take up what all learned, and begin to read."""
        settings, numbers = self.settings, sorted(self._waiting)
        if max(numbers) >= self._partitions:
            raise other_partitions(settings.topic, max(numbers) + 1, self._partitions)
        taken = []
        for number in numbers:
            claim, found = self._store.claim(number), self._store.newest(number, self._notice)
            letters = DeadLetters(self._log, settings.topic)
            breaker = Breaker(settings.bad_share, settings.bad_window)
            shard = Shard(claim, self._make(), letters, breaker, found and found[1], self._notice, self._partitions)
            self._identify(shard)
            shard.add_items(self._items)
            if self._told is not None:
                shard.describe(self.shared, self._told)
            self.shared.put(number, found and found[0], shard.own, shard.state.events)
            taken.append(shard)
        self.shards.update({shard.partition: shard for shard in taken})
        self._waiting -= set(numbers)
        self._held.share(taken)
        offsets = self._offsets()
        begins = self._source.bounds([number for number in numbers if number not in offsets])
        for number in numbers:
            if number in offsets:
                epochs = self.shards[number].state.epochs.get(settings.topic, {})
                self._source.seek(number, offsets[number], epochs.get(number, NO_EPOCH))
            else:
                self._source.seek(number, begins[number][0])
        self._meter.assigned(len(self.shards))
        self._owned, self._last_record = True, time.monotonic()

    def _identify(self, shard: Shard) -> None:
        """Compare the topic with the one that the partition was learned from."""
        state, topic = shard.state, self.settings.topic
        known = state.topic_ids.get(topic)
        if state.topic_ids and known is None:
            raise StoreMismatch(
                f"the store {self.settings.store} learns topic {', '.join(sorted(state.topic_ids))}",
                expected=f"that topic, not {topic!r}",
                mend="choose another --store",
            )
        if known is not None and known != self._identity:
            info = TopicInfo(topic, self._identity, ())
            self._notice(another_topic(self.settings, self._log.address, info, known))
            state.forget_topic(topic, self._identity)
            shard.changed = True
        state.topic_ids[topic] = self._identity

    def _another(self, info: TopicInfo) -> None:
        """Go over to a topic that took the place of the one that was read, or refuse to."""
        self._identity = info.identity
        for shard in self.shards.values():
            self._identify(shard)
        begins = self._source.bounds(list(self.shards))
        for number in self.shards:
            self._source.seek(number, begins[number][0])
        self._last_record = time.monotonic()

    def _same(self, info: TopicInfo) -> None:
        """Leave new partitions to the group, which tells of them."""

    def _known_identity(self) -> str:
        return self._identity

    def _unsent(self) -> int:
        return sum(len(shard.letters) for shard in self.shards.values())

    def _lost_offsets(self, error: OffsetLost) -> None:
        """Act by the policy when the broker no longer has the next record."""
        self.checkpoint()
        info = self._source.topic()
        if info is not None and info.identity != self._identity:
            self._another(info)
            return
        ids = self.settings.dedup_window // self._partitions
        targets, told = resumed(self.settings, error, self._source.bounds(error.positions), ids)
        self._notice(told)
        for number, target in targets.items():
            self._source.seek(number, target)
            if number in self.shards:
                self.shards[number].state.read_on(self.settings.topic, number, target)
                self.shards[number].changed = True

    # --- storing and sharing ----------------------------------------------------------------------------------------

    def _ready(self, shard: Shard) -> bool:
        """Return whether a partition may be stored: one of which much cannot be read is held back for a while."""
        held = HOLD_S + self.settings.checkpoint_seconds
        return not shard.breaker.suspects or time.monotonic() - self._stored_at > held

    def _due(self) -> bool:
        fresh = sum(shard.state.events - shard.stored_events for shard in self.shards.values())
        full = fresh >= self.settings.checkpoint_events
        return full or time.monotonic() - self._stored_at >= self.settings.checkpoint_seconds

    def _checkpoint(self, shards: Sequence[Shard]) -> bool:
        """Store partitions, and take up what others stored; the numbers are those of the module's text.

        Return False when the topic is another now: nothing is stored then.
        """
        began = time.monotonic()
        changed = [shard for shard in shards if shard.changed]
        if changed and not self._same_topic():
            return False
        size = self._held.store(changed, self._clock(), self._letters_within())  # 1 and 2
        self._stored_at = time.monotonic()
        fresh = self.shared.refresh(self._store, self.shards, self._notice) or bool(changed)
        if fresh and time.monotonic() >= self._share_after:
            self._held.share(list(self.shards.values()))  # 3
            spent = time.monotonic() - self._stored_at
            self._share_after = time.monotonic() + spent * (1 / _SHARE_AT_MOST - 1)
        if fresh and min(self._store.numbers(), default=-1) in self.shards:
            self._publish()
        if changed:
            self._source.commit(self._offsets())  # 4
            self._meter.checkpointed(time.monotonic() - began, size)
        return True

    def _publish(self) -> None:
        """Publish a snapshot, but not more often than time alone would ask for checkpoints."""
        if time.monotonic() - self._published_at >= self.settings.checkpoint_seconds:
            self._snapshot.publish(self._clock(), self._notice)
            self._published_at = time.monotonic()

    def _describe(self) -> None:
        """Tell all partitions newer texts, if there are any."""
        self._described_at = time.monotonic()
        texts = self._texts()
        if texts is None:
            return
        self._told = texts
        for shard in self.shards.values():
            shard.describe(self.shared, texts)
        self._held.share(list(self.shards.values()))


def _with_times(report: LearnReport, tested: Sequence[Mapping[str, Row]]) -> LearnReport:
    """Return the report of all partitions with the times of this worker's, for nobody keeps the others'."""
    for name, row in report.metrics.items():
        times = [rows[name].us_per_event for rows in tested if rows[name].us_per_event > 0]
        row["us_per_event"] = sum(times) / len(times) if times else 0.0
    return report
