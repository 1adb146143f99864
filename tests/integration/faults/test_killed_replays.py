"""A replay that is killed again and again sends each letter once."""

import subprocess
import sys

import pytest

from stream.deadletter import DeadLetter, DeadLetters
from stream.kafka_log import KafkaLog
from stream.source import read_to_end
from tests.integration.faults.dying_replays import BATCH

LETTERS = 90


@pytest.mark.slow
@pytest.mark.kafka
def test_killed_replays_send_each_letter_once(kafka: str, topic: str) -> None:
    log = KafkaLog(kafka)
    info = log.ensure_topic(topic, 3)
    letters = DeadLetters(log, topic)
    for number in range(LETTERS):
        letters.add(DeadLetter(topic, number % 3, number, b"k", b"bad %d" % number, "MalformedEvent", "no"))
    letters.flush()
    letters.close()
    # a letter is two sends: in the first batch, between a record and its note, in the third batch
    deaths = ["1", "12", str(2 * BATCH + 5), str(2 * BATCH + 1)]
    command = [sys.executable, "-m", "tests.integration.faults.dying_replays", kafka, topic]
    done = subprocess.run([*command, *deaths, "0", "0"], capture_output=True, text=True, timeout=250, check=False)
    assert done.stdout.split() == ["9"] * len(deaths) + ["0", "0"], done.stderr
    source = log.source(topic, "g")
    found = sorted(record.value or b"" for record in read_to_end(source, info.partitions, {}))
    source.close()
    assert found == sorted(b"bad %d" % number for number in range(LETTERS))
