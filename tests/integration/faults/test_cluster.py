"""Three brokers, the leader of the partition killed while events flow: the longest time without an event."""

import secrets
import sys
import time
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from common.events import encode_event
from stream.consumer import StreamWorker
from stream.meter import Unwatched
from stream.state import Outcome
from stream.topics import admin_client
from tests.brokers import HOST, KafkaNode, free_ports, kafka_home
from tests.integration.faults.flow import Feeder
from tests.stream.clicks import some_events
from tests.stream.dying_workers import settings_of
from tests.stream.topics import small_mf

TOTAL = 20_000
SETTINGS = """\
default.replication.factor=3
min.insync.replicas=2
offsets.topic.replication.factor=3
transaction.state.log.replication.factor=3
transaction.state.log.min.isr=2
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[list[KafkaNode]]:
    home = kafka_home()
    ports = free_ports(6)
    voters = ",".join(f"{number}@{HOST}:{ports[number + 2]}" for number in (1, 2, 3))
    cluster_id = b64encode(secrets.token_bytes(16), b"ab").decode()[:22]
    environment = {"KAFKA_CLUSTER_ID": cluster_id, "KAFKA_HEAP": "256m"}
    with ExitStack() as stack:
        nodes = []
        for number in (1, 2, 3):
            properties = f"node.id={number}\ncontroller.quorum.voters={voters}\n{SETTINGS}"
            place = (ports[number - 1], ports[number + 2])
            node = KafkaNode(home, tmp_path / f"node{number}", properties, place, environment)
            stack.callback(node.end)
            node.launch()
            nodes.append(node)
        for node in nodes:
            node.await_ready()
        yield nodes


class Stalls(Unwatched):
    """Notes the longest time between two applied records, and kills when it is told to."""

    def __init__(self, node_of_leader: dict[int, KafkaNode], at: int) -> None:
        self._nodes, self._at = node_of_leader, at
        self._last: float | None = None
        self.count, self.longest, self.killed = 0, 0.0, 0

    def applied(self, outcome: Outcome, seconds: float) -> None:
        now = time.monotonic()
        if self._last is not None:
            self.longest = max(self.longest, now - self._last)
        self._last = now
        self.count += 1

    def polled(self, behind: Mapping[int, int]) -> None:
        if self.count >= self._at and not self.killed:
            (leader,) = self._nodes
            self.killed = leader
            self._nodes[leader].end_now()


@pytest.mark.slow
@pytest.mark.kafka
@pytest.mark.timeout(900)
def test_the_partitions_leader_is_killed(
    cluster: list[KafkaNode], topic: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    servers = ",".join(node.servers for node in cluster)
    records = [encode_event(event) for event in some_events(TOTAL)]
    settings = settings_of(servers, topic, tmp_path / "store", TOTAL)
    with Feeder(servers, topic, records, per_second=500):
        with admin_client(servers) as client:
            (found,) = client.describe_topics([topic])
        leader = int(found["partitions"][0]["leader_id"])
        stalls = Stalls({leader: cluster[leader - 1]}, at=TOTAL // 4)
        report = StreamWorker(settings, small_mf(), meter=stalls).run()
    assert stalls.killed == leader
    assert (report.events, report.duplicates_skipped, report.dead_letters) == (TOTAL, 0, 0)
    assert report.offsets == {topic: {"0": TOTAL}}
    with capsys.disabled():
        sys.stdout.write(
            f"\nthe leader (node {leader} of 3) killed at {TOTAL // 4} of {TOTAL} events: all applied once,"
            f" longest time without an event {stalls.longest:.1f} s\n"
        )
