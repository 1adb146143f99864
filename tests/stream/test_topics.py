"""Topics, producing and dead letters, on each broker."""

import io
import time
from collections.abc import Iterator

import pytest

from common.clock import wall_clock
from common.errors import BrokerUnavailable, InvalidSetting, UnknownName
from common.events import Interaction, decode_event, encode_event
from stream.deadletter import DeadLetter, DeadLetters
from stream.kafka_log import KafkaLog, partition_of
from stream.producer import Pace, parse_speed, produce
from stream.topics import admin_client, await_topic, check_bootstrap, dead_topic, ensure_topic
from tests.stream.topics import some_events, take

NOBODY = "127.0.0.1:1"


def test_a_topic_is_made_once_and_keeps_its_identity(servers: str, topic: str) -> None:
    made = ensure_topic(servers, topic, 3)
    assert made.partitions == (0, 1, 2)
    assert made.identity
    assert ensure_topic(servers, topic, 8) == made
    assert await_topic(servers, topic, 0.0) == made


def test_a_topic_made_again_is_another(servers: str, topic: str) -> None:
    first = ensure_topic(servers, topic, 1)
    with admin_client(servers) as client:
        client.delete_topics([topic])
    deadline = time.monotonic() + 10
    while (second := ensure_topic(servers, topic, 1)).identity == first.identity and time.monotonic() < deadline:
        time.sleep(0.1)
    assert second.identity != first.identity


def test_a_topic_that_is_not_there_is_named_with_those_that_are(servers: str, topic: str) -> None:
    ensure_topic(servers, topic, 1)
    with pytest.raises(UnknownName, match=f"'{topic}-x'.*{topic}"):
        await_topic(servers, f"{topic}-x", 0.2)


def test_every_event_arrives_in_order_with_its_key(servers: str, topic: str) -> None:
    events = some_events(500)
    report = produce(events, log=KafkaLog(servers), topic=topic)
    assert (report.sent, report.acked, report.resumed_from) == (500, 500, 0)
    found = take(servers, topic, 500)
    assert [decode_event(record.value) for record in found] == events
    assert [record.key for record in found] == [event.user_id.encode() for event in events]
    # not the event's time: retention would delete the clicks of years ago
    assert all(record.timestamp > wall_clock() - 3_600_000 for record in found)


def test_a_user_stays_in_one_partition_in_order(servers: str, topic: str) -> None:
    events = some_events(400)
    produce(events, log=KafkaLog(servers), topic=topic, partitions=3)
    found = take(servers, topic, 400)
    by_user: dict[str, list[tuple[int, str]]] = {}
    for record in found:
        event = decode_event(record.value)
        by_user.setdefault(event.user_id, []).append((record.partition, event.event_id))
    for user, places in by_user.items():
        assert {partition for partition, _ in places} == {partition_of(user, 3)}
        assert [event_id for _, event_id in places] == [event.event_id for event in events if event.user_id == user]
    assert len({partition_of(user, 3) for user in by_user}) == 3


def test_part_of_the_input(servers: str, topic: str) -> None:
    events = some_events(100)
    report = produce(events, log=KafkaLog(servers), topic=topic, start_at=40, limit=25)
    assert (report.sent, report.acked, report.resumed_from) == (25, 25, 40)
    assert [decode_event(record.value) for record in take(servers, topic, 25)] == events[40:65]


def test_a_stop_is_in_good_order(embedded: str, topic: str) -> None:
    asked = iter([False] * 30)
    report = produce(some_events(100), log=KafkaLog(embedded), topic=topic, stopping=lambda: next(asked, True))
    assert (report.sent, report.acked) == (30, 30)


def test_an_input_that_fails_leaves_what_was_sent(embedded: str, topic: str) -> None:
    def broken() -> Iterator[Interaction]:
        yield from some_events(10)
        raise io.UnsupportedOperation("no more")

    with pytest.raises(io.UnsupportedOperation):
        produce(broken(), log=KafkaLog(embedded), topic=topic)
    assert len(take(embedded, topic, 10)) == 10


def test_partitions_are_those_of_the_java_client() -> None:
    # org.apache.kafka.common.utils.Utils.murmur2 on these keys, from Kafka's own UtilsTest
    for key, expected in (("21", -973932308), ("foobar", -790332482), ("a-little-bit-long-string", -985981536)):
        assert partition_of(key, 1_000_003) == (expected & 0x7FFFFFFF) % 1_000_003


def test_pace_follows_the_events_time() -> None:
    now = [100.0]
    pace = Pace(10.0, now=lambda: now[0], sleep=lambda seconds: now.__setitem__(0, now[0] + seconds))
    arrivals = []
    for ts in (5_000, 6_000, 9_000, 8_000):
        pace.wait(ts, lambda: False)
        arrivals.append(round(now[0], 6))
    assert arrivals == [100.0, 100.1, 100.4, 100.4]
    assert Pace(float("inf")).delay(10**12) == 0.0


def test_waiting_ends_when_asked_to_stop() -> None:
    pace = Pace(1.0, now=lambda: 0.0, sleep=lambda _: pytest.fail("slept after the stop"))
    pace.wait(0, lambda: False)
    pace.wait(10**9, lambda: True)


@pytest.mark.parametrize(("text", "speed"), [("max", float("inf")), ("realtime", 1.0), ("2.5", 2.5)])
def test_speeds(text: str, speed: float) -> None:
    assert parse_speed(text) == speed


@pytest.mark.parametrize("text", ["", "fast", "0", "-1", "nan"])
def test_speeds_that_cannot_be(text: str) -> None:
    with pytest.raises(InvalidSetting, match="speed"):
        parse_speed(text)


@pytest.mark.parametrize("name", ["", "a b", "a/b", "..", "x" * 241, "é"])
def test_topics_that_cannot_be(name: str) -> None:
    with pytest.raises(InvalidSetting, match="topic"):
        ensure_topic(NOBODY, name)


@pytest.mark.parametrize(
    "address", ["", "host", "host:", ":9092", "host:0", "host:99999", "http://h:1", "a:1,,b:2", "a:1, b:2"]
)
def test_addresses_that_cannot_be(address: str) -> None:
    with pytest.raises(InvalidSetting, match="HOST:PORT"):
        check_bootstrap(address)


@pytest.mark.parametrize("address", ["h:1", "h.example:9092,10.0.0.1:9092", "[::1]:9092"])
def test_addresses_that_can_be(address: str) -> None:
    assert check_bootstrap(address) == address


@pytest.mark.usefixtures("impatient")
def test_no_broker_is_said_in_bounded_time() -> None:
    with pytest.raises(BrokerUnavailable, match=r"127\.0\.0\.1:1 .*anabranch broker") as raised:
        produce(some_events(1), log=KafkaLog(NOBODY), topic="clicks")
    assert "\n" not in str(raised.value)


def test_dead_letters_arrive_as_they_were(servers: str, topic: str) -> None:
    letters = DeadLetters(KafkaLog(servers), topic)
    letters.flush()  # nothing yet: no topic, no connection
    letters.add(DeadLetter(topic, 2, 17, b"key", b"\xff\x00raw", "MalformedEvent", "not an event " + "x" * 5_000, 3))
    letters.add(DeadLetter(topic, 0, 1, None, None, "MalformedEvent", "ünï \ud800"))
    letters.flush()
    letters.close()
    letters.close()
    first, second = take(servers, dead_topic(topic), 2)
    assert (first.key, first.value) == (b"key", b"\xff\x00raw")
    reason = first.headers.pop("reason")
    assert first.headers == {
        "source.topic": topic,
        "source.partition": "2",
        "source.offset": "17",
        "error": "MalformedEvent",
        "schema.version": "1",
        "attempts": "3",
    }
    assert len(reason) == 1_000
    assert (second.key, second.value, second.headers["reason"]) == (None, b"", "ünï ?")


def test_the_events_bytes_are_the_events(embedded: str, topic: str) -> None:
    event = Interaction("e", "ü", "i", "click", 5, extra={"later": [1, {"a": None}]}, context={"page": "home"})
    produce([event], log=KafkaLog(embedded), topic=topic)
    assert take(embedded, topic, 1)[0].value == encode_event(event)
