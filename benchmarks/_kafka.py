"""An Apache Kafka for a benchmark where one is found, else the embedded broker."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from stream.broker import EmbeddedBroker, speaks_kafka

HOST = "127.0.0.1"
READY_WITHIN_S, GONE_WITHIN_S = 120.0, 20.0


def _home() -> Path | None:
    """Return the folder that holds `run-broker`: ANABRANCH_TEST_KAFKA, else `shared/kafka` beside the checkout."""
    named = os.environ.get("ANABRANCH_TEST_KAFKA")
    home = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "kafka"
    return home if (home / "run-broker").is_file() and shutil.which("java") else None


def _free_port() -> int:
    with socket.socket() as each:
        each.bind((HOST, 0))
        return int(each.getsockname()[1])


@contextmanager
def broker() -> Iterator[tuple[str, str]]:
    """Give the kind of a fresh broker and its bootstrap servers."""
    home = _home()
    if home is None:
        with EmbeddedBroker() as embedded:
            yield "embedded", embedded.bootstrap_servers
        return
    port, controller = _free_port(), _free_port()
    with TemporaryDirectory() as folder:
        command = [str(home / "run-broker"), str(port), str(controller), str(Path(folder) / "node")]
        with (Path(folder) / "log").open("wb") as log:
            node = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + READY_WITHIN_S
            while not speaks_kafka(HOST, port):
                if node.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"Apache Kafka did not start: {(Path(folder) / 'log').read_text()[-500:]}")
                time.sleep(0.1)
            yield "Apache Kafka", f"{HOST}:{port}"
        finally:
            node.send_signal(signal.SIGTERM)
            try:
                node.wait(GONE_WITHIN_S)
            except subprocess.TimeoutExpired:
                node.kill()
                node.wait()
