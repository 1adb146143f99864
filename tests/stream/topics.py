"""Events and records that the tests put on topics, and how they read them back."""

from dataclasses import dataclass

import numpy as np
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from common.events import encode_event
from stream.learner.blend import Blend
from stream.learner.mf import MF
from stream.state import ItemTexts, Served
from stream.topics import ensure_topic
from tests.stream.clicks import some_events

__all__ = [
    "MALFORMED",
    "Read",
    "put",
    "records_with_faults",
    "small_learner",
    "small_mf",
    "some_events",
    "some_texts",
    "take",
]

MALFORMED = (b"", b"{", b'{"v":2}', b"\xff\xfe", b'{"v":1,"event_id":"e"}', b"[1,2]", b"null", b'{"a":' * 2000)


def small_mf(seed: int = 3) -> MF:
    """Return a learner that is quick to store."""
    return MF(n_factors=8, negatives=5, window=10, seed=seed)


def small_learner(kind: str) -> Served:
    """Return the small learner of a kind: "mf", or "blend", which has texts."""
    if kind == "mf":
        return small_mf()
    return Blend(n_factors=8, negatives=5, window=10, places=16, text_dimensions=4, seed=3)


def some_texts(seed: int = 0) -> ItemTexts:
    """Return texts of the items that `some_events` clicks."""
    ids = tuple(f"item-{number}" for number in range(40))
    return ItemTexts(ids, np.random.default_rng(seed).standard_normal((40, 12)))


def records_with_faults(count: int, seed: int = 0) -> tuple[list[bytes], set[int]]:
    """Return records of which every ninth is malformed and every eleventh a duplicate, and the malformed offsets."""
    records, malformed = [], set()
    for number, event in enumerate(some_events(count, seed)):
        if number % 9 == 4:
            malformed.add(number)
            records.append(MALFORMED[number // 9 % len(MALFORMED)])
        elif number % 11 == 7:
            records.append(
                next(record for record in reversed(records) if record.startswith(b'{"v":1,"event_id":"event'))
            )
        else:
            records.append(encode_event(event))
    return records, malformed


def put(servers: str, topic: str, records: list[bytes], partitions: int = 1, partition: int = 0) -> None:
    """Append the records to one partition, in their order."""
    ensure_topic(servers, topic, partitions)
    producer = KafkaProducer(bootstrap_servers=servers)
    try:
        futures = [producer.send(topic, value=record, partition=partition) for record in records]
        producer.flush(timeout=30)
        assert all(future.succeeded() for future in futures)
    finally:
        producer.close(timeout=5)


@dataclass(frozen=True)
class Read:
    """One record as read back."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes
    headers: dict[str, str]
    timestamp: int


def take(servers: str, topic: str, count: int) -> list[Read]:
    """Read at least `count` records, and whatever comes within half a second after them."""
    consumer = KafkaConsumer(bootstrap_servers=servers, enable_auto_commit=False)
    try:
        parts = [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic))]
        consumer.assign(parts)
        consumer.seek_to_beginning(*parts)
        found: list[Read] = []
        for _ in range(100):
            polled = consumer.poll(timeout_ms=200 if len(found) < count else 500)
            if not polled and len(found) >= count:
                break
            for records in polled.values():
                found += [
                    Read(r.partition, r.offset, r.key, r.value, {k: v.decode() for k, v in r.headers}, r.timestamp)
                    for r in records
                ]
        return sorted(found, key=lambda record: (record.partition, record.offset))
    finally:
        consumer.close()
