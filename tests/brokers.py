"""Brokers for tests: the embedded one always, Apache Kafka where it is found.

Apache Kafka is looked for in the folder that ANABRANCH_TEST_KAFKA names, else in `shared/kafka` beside the checkout: it
must hold `run-broker PORT CONTROLLER_PORT DATA_DIR [MORE_PROPERTIES]`. ANABRANCH_TEST_BOOTSTRAP names one that runs
already; tests that kill, cut or secure a broker start their own in any case.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import pytest

from stream.broker import EmbeddedBroker, speaks_kafka

HOST = "127.0.0.1"
READY_WITHIN_S = 240.0
"""Three seconds on an idle machine; three nodes beside other work take minutes."""
GONE_WITHIN_S = 20.0


def kafka_home() -> Path:
    """Return the folder that holds Apache Kafka's `run-broker`, or skip with the reason."""
    named = os.environ.get("ANABRANCH_TEST_KAFKA")
    home = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "kafka"
    if not (home / "run-broker").is_file():
        place = "ANABRANCH_TEST_KAFKA" if named else "shared/kafka beside the checkout"
        pytest.skip(f"no Apache Kafka: {place} has no run-broker")
    if shutil.which("java") is None:
        pytest.skip("no Apache Kafka: java is not installed")
    return home


def free_ports(count: int) -> list[int]:
    """Return ports of loopback that are free now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((HOST, 0))
        return [int(each.getsockname()[1]) for each in sockets]


class KafkaNode:
    """One Apache Kafka of our own; it can be killed and started again on its data.

    Parameters
    ----------
    home
        Folder of `run-broker`.
    folder
        Where its data and its log go.
    properties
        Lines added to its settings.
    ports
        Of clients and of the controller; None takes free ones.
    environment
        Added to its environment.
    """

    def __init__(
        self,
        home: Path,
        folder: Path,
        properties: str = "",
        ports: tuple[int, int] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._home, self.folder = home, folder
        self.port, self._controller = ports or (0, 0)
        if ports is None:
            self.port, self._controller = free_ports(2)
        folder.mkdir(parents=True, exist_ok=True)
        self._extra = folder / "more.properties"
        self._extra.write_text(properties)
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    @property
    def servers(self) -> str:
        """HOST:PORT for clients."""
        return f"{HOST}:{self.port}"

    def launch(self) -> None:
        """Start it; `await_ready` says when it answers."""
        self._log = (self.folder / "log").open("ab")
        command = [str(self._home / "run-broker"), str(self.port), str(self._controller), str(self.folder / "node")]
        self._process = subprocess.Popen(
            [*command, str(self._extra)], stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log,
            env=self._environment,
        )  # fmt: skip

    def await_ready(self, *, port_only: bool = False) -> None:
        """Wait until it answers; with `port_only`, until it accepts connections (TLS has no plain answer)."""
        deadline = time.monotonic() + READY_WITHIN_S
        while not (_accepts(self.port) if port_only else speaks_kafka(HOST, self.port)):
            if self._process is None or self._process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"Apache Kafka did not start: {(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.1)

    def start(self) -> Self:
        """Start it and wait until it answers."""
        self.launch()
        self.await_ready()
        return self

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send it the signal and wait until it is gone; SIGKILL where it does not go."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            try:
                process.wait(GONE_WITHIN_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._log is not None:
            self._log.close()
            self._log = None

    def end_now(self) -> None:
        """Kill it as a power cut would: no flush, no good-bye."""
        self.end(signal.SIGKILL)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()


def _accepts(port: int) -> bool:
    try:
        with socket.create_connection((HOST, port), 1.0):
            return True
    except OSError:
        return False


@pytest.fixture(scope="session")
def embedded() -> Iterator[str]:
    """Give the bootstrap servers of an embedded broker."""
    with EmbeddedBroker() as broker:
        yield broker.bootstrap_servers


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Give the bootstrap servers of an Apache Kafka: a running one that is named, or one started here."""
    named = os.environ.get("ANABRANCH_TEST_BOOTSTRAP")
    if named:
        yield named
        return
    with KafkaNode(kafka_home(), tmp_path_factory.mktemp("kafka")) as node:
        yield node.servers


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
