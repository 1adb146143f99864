"""`anabranch serve --processes`: one model in memory, whoever answers; the dead are replaced, none is left behind."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from server.serving.bundle import load_bundle
from server.serving.recommend import Question, recommend
from stream.broker import EmbeddedBroker
from tests.integration.test_blend_served import shop
from tests.processes import alive
from tests.server.serving.conftest import board_store
from tests.server.serving.stores import new_store, publish

SERVE = "import typer; from anabranch.commands.serve import serve; typer.run(serve)"
ASK, MODEL = "/v1/recommendations", "/v1/model"
pytestmark = pytest.mark.skipif(os.name != "posix", reason="only POSIX hands a socket to other processes")


@dataclass
class Service:
    """A running service: its parent process, and its children by role."""

    parent: subprocess.Popen[str]
    url: str
    pids: dict[str, int]

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=30.0)


def until(done: Callable[..., object], *given: object) -> None:
    deadline = time.monotonic() + 60
    while not done(*given):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextmanager
def running(store: Path | str, *more: str) -> Iterator[Service]:
    options = ["--store", str(store), "--port", "0", "--reload-every", "0.05", "--processes", "2", "--json"]
    parent = subprocess.Popen(
        [sys.executable, "-c", SERVE, *options, *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    try:
        assert parent.stdout is not None
        line = parent.stdout.readline()
        assert line, parent.communicate(timeout=30)[1]
        told = json.loads(line)
        yield Service(parent, told["url"], told["processes"])
    finally:
        parent.terminate()
        # what it said of itself is shown where a test fails
        sys.stderr.write(parent.communicate(timeout=30)[1])


def name_of(client: httpx.Client) -> str:
    """Return which process answers on this connection."""
    found = re.search(r'anabranch_serve_ready\{process="([^"]+)"\}', client.get("/metrics").text)
    assert found
    return found[1]


@contextmanager
def both(service: Service) -> Iterator[dict[str, httpx.Client]]:
    """Give a kept connection to each process."""
    found: dict[str, httpx.Client] = {}
    try:
        for _ in range(500):
            client = service.client()
            if found.setdefault(name_of(client), client) is not client:
                client.close()
            if len(found) == 2:
                break
        assert set(found) == {"server-1", "server-2"}
        yield found
    finally:
        for client in found.values():
            client.close()


def is_ready(client: httpx.Client) -> bool:
    return client.get("/readyz").status_code == 200


def serves(client: httpx.Client, version: str) -> bool:
    model = client.get(MODEL)
    return model.is_success and model.json()["version"] == version and model.json()["stream"] is not None


def knows(client: httpx.Client, user: str) -> bool:
    return bool(client.post(ASK, json={"user_id": user}).json()["known_user"])


def counted(client: httpx.Client, line: str) -> float:
    found = re.search(rf"^{re.escape(line)} (\S+)$", client.get("/metrics").text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def counts(client: httpx.Client, line: str, number: float) -> bool:
    return counted(client, line) >= number


def test_processes_take_up_versions_share_memory_and_add_up_their_figures(tmp_path: Path) -> None:
    root = tmp_path / "store"
    with running(root) as service:
        with service.client() as client:
            assert client.get("/readyz").status_code == 503
        registry = board_store(root)
        with both(service) as clients:
            for client in clients.values():
                until(serves, client, "v000001")
            for number in range(4):
                for client in clients.values():
                    slate = client.post(ASK, json={"user_id": "u0", "k": 2}).json()
                    assert [item["item_id"] for item in slate["items"]] == ["18", "16"], number
            line = 'anabranch_serve_slates_total{known_user="true"}'
            for client in clients.values():  # one counts after it has answered, so the other may ask too soon
                until(counts, client, line, 8.0)
            assert [counted(client, line) for client in clients.values()] == [8.0, 8.0]
            publish(registry, "v000002", seed=2)
            for client in clients.values():
                until(serves, client, "v000002")
                assert client.get("/v1/models").json()["versions"] == ["v000001", "v000002"]
            mapped = []
            for role in clients:
                maps = Path(f"/proc/{service.pids[role]}/maps").read_text().splitlines()
                mapped.append({line.split()[4:6][0] for line in maps if "/bundle/stream-" in line})
            # the same file, by its inode
            assert mapped[0]
            assert mapped[0] == mapped[1]


def test_a_killed_process_is_replaced_and_the_rest_goes_on(tmp_path: Path) -> None:
    root = tmp_path / "store"
    with running(root) as service:
        os.kill(service.pids["server-1"], signal.SIGKILL)
        os.kill(service.pids["loader"], signal.SIGKILL)
        until(lambda: not alive(service.pids["server-1"]))
        for _ in range(5):
            with service.client() as client:
                assert client.get("/healthz").status_code == 200
        board_store(root)
        with both(service) as clients:
            for client in clients.values():
                until(serves, client, "v000001")
        said = ""
        service.parent.terminate()
        said = service.parent.communicate(timeout=30)[1]
        assert service.parent.returncode == 0
        assert "the process server-1 ended with -9" in said
        assert "the process loader ended with -9" in said


def test_under_swaps_every_answer_of_either_process_belongs_to_its_version(tmp_path: Path) -> None:
    """Vectors of one version with the name of another would show: no two versions answer alike."""
    root, body = tmp_path / "store", {"history": ["0", "3", "7"], "k": 8}
    versions = [f"v{number:06d}" for number in range(1, 4)]
    with running(root) as service:
        registry = board_store(root)
        for seed, version in enumerate(versions[1:], start=2):
            publish(registry, version, seed)
        expected = {}
        for version in versions:
            slate = recommend(load_bundle(registry, version), Question(history=("0", "3", "7"), k=8), None, "r")
            expected[version] = [(item.item_id, item.score) for item in slate.items]
        assert len({tuple(each) for each in expected.values()}) == len(versions)
        checked = 0

        def ask(clients: dict[str, httpx.Client], wanted: str) -> bool:
            """Ask each process once; return whether all have answered with the wanted version."""
            nonlocal checked
            told = []
            for client in clients.values():
                answer = client.post(ASK, json=body)
                assert answer.status_code == 200, answer.text
                told.append(answer.json()["model_version"])
                found = [(item["item_id"], item["score"]) for item in answer.json()["items"]]
                assert found == [(item, pytest.approx(score)) for item, score in expected[told[-1]]]
                checked += 1
            return set(told) == {wanted}

        with both(service) as clients:
            for client in clients.values():
                until(serves, client, versions[-1])
            for turn in range(9):
                registry.point("current", versions[turn % 3])
                until(ask, clients, versions[turn % 3])
        assert checked > 2 * 9


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_answers_what_is_under_way_and_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    root = tmp_path / "store"
    with running(root) as service:
        board_store(root)
        with service.client() as client:
            until(is_ready, client)
        body = json.dumps({"user_id": "u0", "k": 2}).encode()
        host, port = service.url.removeprefix("http://").split(":")
        with ExitStack() as stack:
            slow = [stack.enter_context(socket.create_connection((host, int(port)), timeout=60)) for _ in range(6)]
            for each in slow:
                head = f"POST {ASK} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                each.sendall(f"{head}Expect: 100-continue\r\nContent-Length: {len(body)}\r\n\r\n".encode())
            for each in slow:  # under way, not in a queue
                assert each.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
                each.sendall(body[:5])
            service.parent.send_signal(number)
            time.sleep(0.2)
            for each in slow:
                each.sendall(body[5:])
            for each in slow:
                assert each.recv(20).startswith(b"HTTP/1.1 200")
        said = service.parent.communicate(timeout=30)[1]
        assert service.parent.returncode == 0
        assert "stopped" in said
        assert "Traceback" not in said
        assert not [pid for pid in service.pids.values() if alive(pid)]


def test_children_do_not_outlive_a_parent_that_was_killed(tmp_path: Path) -> None:
    with running(tmp_path / "store") as service:
        service.parent.kill()
        until(lambda: not any(alive(pid) for pid in service.pids.values()))


def test_what_is_wrong_at_the_start_is_said_and_ends_it(tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text("{}")
    keys.chmod(0o600)
    options = ["--store", str(tmp_path / "store"), "--port", "0", "--processes", "2", "--keys", str(keys)]
    command = [sys.executable, "-m", "anabranch.cli", "serve", *options]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "is no key file" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_an_event_sent_to_one_process_counts_in_all(tmp_path: Path) -> None:
    registry = new_store(tmp_path / "store", shop())
    with EmbeddedBroker() as broker:
        with running(registry.root, "--bootstrap-servers", broker.bootstrap_servers, "--topic", "clicks") as service:
            publish(registry, "v000001")
            with both(service) as clients:
                for client in clients.values():
                    until(is_ready, client)
                one, other = clients.values()
                for sender, reader in ((one, other), (other, one)):
                    user = f"fresh-{name_of(sender)}"
                    best = reader.post(ASK, json={"user_id": user, "k": 1}).json()["items"][0]["item_id"]
                    click = {"user_id": user, "item_id": best, "action": "click"}
                    assert sender.post("/v1/events", json=click).status_code == 202
                    for client in (reader, sender):
                        until(knows, client, user)
                        shown = client.post(ASK, json={"user_id": user, "k": 100}).json()["items"]
                        assert best not in {item["item_id"] for item in shown}
                assert counted(one, "anabranch_serve_events_total") == 2.0
