"""Brokers for tests: the embedded one always, Apache Kafka where it is found."""

import os
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from stream.broker import EmbeddedBroker, speaks_kafka

RUN_BROKER = Path(__file__).resolve().parents[3] / "shared" / "kafka" / "run-broker"
READY_WITHIN_S = 60.0


@pytest.fixture(scope="session")
def embedded() -> Iterator[str]:
    """Give the bootstrap servers of an embedded broker."""
    with EmbeddedBroker() as broker:
        yield broker.bootstrap_servers


def _two_free_ports() -> tuple[int, int]:
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        return first.getsockname()[1], second.getsockname()[1]


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Give the bootstrap servers of an Apache Kafka: a running one that is named, or one started here."""
    named = os.environ.get("ANABRANCH_TEST_BOOTSTRAP")
    if named:
        yield named
        return
    if not RUN_BROKER.is_file() or shutil.which("java") is None:
        pytest.skip("no Apache Kafka: ANABRANCH_TEST_BOOTSTRAP is not set, and shared/kafka or java is missing")
    port, controller = _two_free_ports()
    data = tmp_path_factory.mktemp("kafka")
    with (data / "log").open("wb") as log:
        command = [str(RUN_BROKER), str(port), str(controller), str(data / "node")]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + READY_WITHIN_S
            while not speaks_kafka("127.0.0.1", port):
                if process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"Apache Kafka did not start: {(data / 'log').read_text()[-2000:]}")
                time.sleep(0.1)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def servers(request: pytest.FixtureRequest) -> str:
    """Give each broker in turn."""
    address: str = request.getfixturevalue(request.param)
    return address


@pytest.fixture
def topic() -> str:
    """Give a topic name that no other test uses."""
    return f"clicks-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up on a broker that does not answer after a moment."""
    monkeypatch.setattr("stream.topics.ANSWER_WITHIN_MS", 300)
