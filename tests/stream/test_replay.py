"""Dead letters sent again: each at most once, as they are or mended, whatever dies between."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from common.errors import DataError, InvalidSetting
from common.events import decode_event, encode_event
from stream.consumer import StreamWorker, WorkerSettings
from stream.deadletter import DeadLetter, DeadLetters
from stream.kafka_log import KafkaLog, partition_of
from stream.replay import Place, read_letters, read_mended, replay_letters, save_letters
from stream.source import Log
from tests.memory_log import MemoryLog
from tests.stream.topics import small_mf, some_events


@pytest.fixture(params=["memory", "embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def log(request: pytest.FixtureRequest) -> Log:
    if request.param == "memory":
        return MemoryLog()
    return KafkaLog(request.getfixturevalue(request.param))


def learn(log: Log, topic: str, store: Path, total: int) -> StreamWorker:
    settings = WorkerSettings("memory:1", topic, store, until_events=total, idle_timeout_s=20, bad_share=1.0)
    worker = StreamWorker(settings, small_mf(), log=log)
    worker.run()
    return worker


def put(log: Log, topic: str, values: list[bytes], partitions: int = 1) -> None:
    log.ensure_topic(topic, partitions)
    sink = log.sink("test")
    for number, value in enumerate(values):
        sink.send(topic, value, partition=number % partitions, key=b"somebody")
    sink.flush(30)
    sink.close()


def test_letters_are_listed_mended_replayed_and_applied_once(log: Log, topic: str, tmp_path: Path) -> None:
    events = some_events(12)
    good = [encode_event(event) for event in events]
    put(log, topic, [*good[:4], good[4][:-3], *good[5:8], b"\xff\x00 not text", *good[9:]])
    worker = learn(log, topic, tmp_path / "store", 12)
    assert worker.state.dead_letters == 2
    letters = read_letters(log, topic)
    assert [(x.offset, x.attempts, x.error, x.replayed) for x in letters] == [
        (4, 1, "MalformedEvent", False),
        (8, 1, "MalformedEvent", False),
    ]
    # saved, mended with an editor, read back
    save_letters(tmp_path / "letters.jsonl", letters)
    lines = [json.loads(line) for line in (tmp_path / "letters.jsonl").read_text().splitlines()]
    assert lines[0]["value"].encode() == good[4][:-3]
    lines[0]["value"] += good[4][-3:].decode()
    (tmp_path / "mended.jsonl").write_text(json.dumps(lines[0]))
    mended = read_mended(tmp_path / "mended.jsonl")
    assert mended == {(0, 4): good[4]}
    assert read_mended(tmp_path / "letters.jsonl")[0, 8] == b"\xff\x00 not text"
    report = replay_letters(log, topic, mended=mended)
    assert (report.found, report.replayed, report.replayed_before, report.given_up) == (2, 1, 0, 0)
    worker = learn(log, topic, tmp_path / "store", 13)
    assert (worker.state.dead_letters, worker.state.duplicates_skipped) == (2, 0)
    assert events[4].event_id in worker.state._recent
    # the same command once more: it is replayed already
    again = replay_letters(log, topic, mended=mended)
    assert (again.replayed, again.replayed_before) == (0, 1)
    # the other one as it is: it comes back as a letter of its second attempt
    assert replay_letters(log, topic).replayed == 1
    worker = learn(log, topic, tmp_path / "store", 14)
    letters = read_letters(log, topic)
    assert [(x.attempts, x.replayed, x.value) for x in letters[1:]] == [
        (1, True, b"\xff\x00 not text"),
        (2, False, b"\xff\x00 not text"),
    ]
    tired = replay_letters(log, topic, max_attempts=2)
    assert (tired.replayed, tired.given_up) == (0, 1)


def test_copies_of_a_letter_are_one(log: Log, topic: str) -> None:
    log.ensure_topic(topic)
    for _ in range(2):  # a worker that died between sending and storing sends it again
        letters = DeadLetters(log, topic)
        letters.add(DeadLetter(topic, 0, 3, b"k", b"bad", "MalformedEvent", "no"))
        letters.add(DeadLetter("another", 0, 3, b"k", b"bad", "MalformedEvent", "no"))
        letters.flush()
        letters.close()
    assert [letter.place for letter in read_letters(log, topic)] == [(0, 3)]
    assert replay_letters(log, topic).replayed == 1
    source = log.source(topic, "g")
    source.assign({0: None})
    found = [record for _ in range(20) for record in source.poll(0.05)]
    source.close()
    assert [(record.key, record.value) for record in found] == [(b"k", b"bad")]


def test_a_mended_user_goes_to_the_users_partition() -> None:
    log = MemoryLog()
    events = [encode_event(event) for event in some_events(2)]
    put(log, "clicks", [b"bad", b"bad too"], partitions=4)
    letters = DeadLetters(log, "clicks")
    for partition in (0, 1):
        letters.add(DeadLetter("clicks", partition, 0, b"somebody", b"bad", "MalformedEvent", "no"))
    letters.flush()
    replay_letters(log, "clicks", mended={(0, 0): events[0], (1, 0): b"still bad"})
    again = [record for record in log.read("clicks") if record.headers]
    user = decode_event(events[0]).user_id
    assert {(x.partition, x.key, x.value) for x in again} == {
        (partition_of(user, 4), user.encode(), events[0]),
        (1, b"somebody", b"still bad"),
    }


def test_a_replay_that_fails_midway_is_gone_on_with(monkeypatch: pytest.MonkeyPatch) -> None:
    log = MemoryLog()
    put(log, "clicks", [b"bad"] * 30)
    letters = DeadLetters(log, "clicks")
    for offset in range(30):
        letters.add(DeadLetter("clicks", 0, offset, None, b"bad %d" % offset, "MalformedEvent", "no"))
    letters.flush()
    monkeypatch.setattr("stream.replay._BATCH", 7)
    sent = [0]
    send = log.transactional_sink

    def failing(name: str) -> object:
        sink = send(name)
        real = sink.send

        def one(*arguments: object, **options: object) -> object:
            sent[0] += 1
            if sent[0] == 31:  # in the third transaction, between a record and its note
                raise KeyboardInterrupt
            return real(*arguments, **options)

        sink.send = one  # type: ignore[method-assign,assignment]  # the fault
        return sink

    monkeypatch.setattr(log, "transactional_sink", failing)
    with pytest.raises(KeyboardInterrupt):
        replay_letters(log, "clicks")
    monkeypatch.setattr(log, "transactional_sink", send)
    report = replay_letters(log, "clicks")
    assert (report.replayed_before, report.replayed) == (14, 16)
    values = [record.value for record in log.read("clicks") if record.headers]
    assert sorted(value or b"" for value in values) == sorted(b"bad %d" % offset for offset in range(30))


@pytest.mark.parametrize(
    "line",
    ["[]", "{", '{"partition":0,"offset":1}', '{"partition":"x","offset":1,"value":"v"}',
     '{"partition":0,"offset":1,"value_base64":"*"}', '{"partition":0,"offset":1,"value":5}'],
)  # fmt: skip
def test_a_line_that_is_no_letter_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "mended.jsonl"
    path.write_text(f"\n{line}\n")
    with pytest.raises(DataError, match="line 2 of"):
        read_mended(path)


@pytest.mark.parametrize(
    ("act", "error"),
    [
        (lambda log: replay_letters(log, "clicks", mended={(0, 99): b""}), DataError),
        (lambda log: replay_letters(log, "clicks", max_attempts=0), InvalidSetting),
    ],
)
def test_what_cannot_be_replayed_is_said(act: Callable[[Log], Place], error: type[Exception]) -> None:
    log = MemoryLog()
    put(log, "clicks", [b"bad"])
    with pytest.raises(error):
        act(log)
    assert len(log.read("clicks")) == 1
