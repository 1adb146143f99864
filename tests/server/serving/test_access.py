"""Who is let in: keys, scopes, rates, hosts and origins, over a real socket."""

import json
import logging
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from common.errors import InvalidSetting, ServiceError, UnknownName, UsageError
from server.registry import Registry
from server.serving.access import is_loopback, scope_of
from server.serving.app import create_app
from server.serving.bundle import load_bundle
from server.serving.keys import KeyFile, digest_of
from server.serving.limits import Limits, TokenBuckets
from server.serving.query import QueryTexts
from server.serving.reload import FixedSource
from server.serving.run import serve_in_thread
from tests.server.serving.stores import WordEncoder
from tests.server.serving.test_app import ASK, check_problem


@pytest.fixture
def keys(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "keys.json", clock=lambda: 1_000)


@contextmanager
def asking(store: Registry, queries: QueryTexts | None = None, **given: Any) -> Iterator[httpx.Client]:
    source = FixedSource(store, load_bundle(store))
    app = create_app(source, queries or QueryTexts(lambda name: WordEncoder()), **given)
    with serve_in_thread(app) as running, httpx.Client(base_url=running.url, timeout=30.0) as client:
        yield client


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def test_only_the_hash_of_a_key_is_stored_and_only_its_owner_reads_it(keys: KeyFile) -> None:
    key, secret = keys.new("shop", ["write", "read"])
    text = keys.path.read_text()
    assert stat.S_IMODE(keys.path.stat().st_mode) == 0o600
    assert secret not in text
    assert secret.removeprefix("anb_") not in text
    assert digest_of(secret) in text
    assert len(secret) >= 43
    assert key.scopes == ("read", "write")
    assert keys.holder(secret) == key
    assert keys.holder(secret + "x") is None
    assert keys.holder("\ud800") is None
    other, _ = keys.new("figures", ["admin"])
    assert [each.key_id for each in keys.keys()] == [key.key_id, other.key_id]
    assert not list(keys.path.parent.glob("*.new"))


def test_key_files_that_cannot_be_trusted_are_refused(keys: KeyFile) -> None:
    with pytest.raises(ServiceError, match="cannot be read"):
        keys.keys()
    for name, scopes in (("", ["read"]), ("x" * 101, ["read"]), ("a\nb", ["read"]), ("x", [])):
        with pytest.raises(UsageError, match="a key named"):
            keys.new(name, scopes)  # type: ignore[arg-type]  # what a command line may give
    keys.new("shop", ["read"])
    with pytest.raises(UnknownName, match="unknown key 'nothing'"):
        keys.revoke("nothing")
    keys.path.chmod(0o622)
    with pytest.raises(ServiceError, match=r"changed by others \(mode 622\)"):
        KeyFile(keys.path).keys()
    keys.path.chmod(0o600)
    for content in (b"{", b'{"schema": 1, "keys": [{"key_id": "a"}]}', b'{"schema": 2, "keys": []}'):
        keys.path.write_bytes(content)
        with pytest.raises(ServiceError, match=r"is no key file|has schema 2"):
            KeyFile(keys.path).keys()


def test_a_second_writer_is_refused_and_nothing_is_lost(keys: KeyFile) -> None:
    keys.new("shop", ["read"])
    before = keys.path.read_bytes()
    keys.path.with_name("keys.json.new").write_bytes(b"")
    with pytest.raises(ServiceError, match="another command is changing the keys"):
        keys.new("second", ["read"])
    assert keys.path.read_bytes() == before


def test_without_a_good_key_nothing_but_health_is_answered(store: Registry, keys: KeyFile) -> None:
    _, secret = keys.new("shop", ["read"])
    with asking(store, keys=keys) as client:
        assert client.get("/healthz").status_code == 200
        assert client.get("/readyz").status_code == 200
        for headers in ({}, bearer("anb_wrong"), {"Authorization": "Bearer"}, {"Authorization": f"Basic {secret}"}):
            for path in ("/v1/model", "/openapi.json", "/metrics", "/nowhere", "/v1/users/u0/recommendations"):
                refused = client.get(path, headers=headers)
                check_problem(refused, 401, "unauthorized")
                assert refused.headers["www-authenticate"] == "Bearer"
        assert client.post(ASK, json={"user_id": "u0"}, headers=bearer(secret)).status_code == 200
        # another name for this machine is no matter once a key is asked for
        assert client.get("/v1/model", headers={**bearer(secret), "Host": "shop.example"}).status_code == 200


def test_each_scope_allows_what_it_says(store: Registry, keys: KeyFile) -> None:
    secrets = {scope: keys.new(scope, [scope])[1] for scope in ("read", "write", "admin")}
    event = {"user_id": "u0", "item_id": "1", "action": "click"}
    allowed = {"read": {"read", "admin"}, "write": {"write", "admin"}, "admin": {"admin"}}
    with asking(store, keys=keys) as client:
        for holder, secret in secrets.items():
            answers = {
                "read": client.get("/v1/model", headers=bearer(secret)),
                "write": client.post("/v1/events", json=event, headers=bearer(secret)),
                "admin": client.get("/metrics", headers=bearer(secret)),
            }
            for scope, answer in answers.items():
                if holder in allowed[scope]:
                    assert answer.status_code == (503 if scope == "write" else 200)  # no broker here
                else:
                    assert scope in check_problem(answer, 403, "scope")["detail"]
    assert scope_of("GET", "/v1/events/more") == "read"


def test_a_revoked_key_is_refused_at_once_and_a_lost_file_lets_nobody_in(store: Registry, keys: KeyFile) -> None:
    key, secret = keys.new("shop", ["read"])
    with asking(store, keys=KeyFile(keys.path)) as client:
        assert client.get("/v1/model", headers=bearer(secret)).status_code == 200
        assert keys.revoke(key.key_id).revoked_at == 1_000
        check_problem(client.get("/v1/model", headers=bearer(secret)), 401, "unauthorized")
        _, again = keys.new("shop", ["read"])
        assert client.get("/v1/model", headers=bearer(again)).status_code == 200
        keys.path.unlink()
        problem = check_problem(client.get("/v1/model", headers=bearer(again)), 503, "unavailable")
        assert str(keys.path) not in json.dumps(problem)


def test_a_key_is_in_no_log(store: Registry, keys: KeyFile, caplog: pytest.LogCaptureFixture) -> None:
    _, secret = keys.new("shop", ["read"])
    caplog.set_level(logging.DEBUG)
    with asking(store, keys=keys) as client:
        client.get("/v1/model", headers=bearer(secret))
        client.get(f"/v1/{secret}", headers=bearer(secret))
        client.post(ASK, content=secret.encode(), headers=bearer(secret))
        figures = client.get("/metrics", headers=bearer(keys.new("figures", ["admin"])[1])).text
    mine = [record.getMessage() for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))]
    assert secret not in "".join(mine)
    assert secret not in figures


def test_the_bucket_fills_at_its_rate() -> None:
    now = [0.0]
    buckets = TokenBuckets(2.0, 3, lambda: now[0])
    assert [buckets.take("a") for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
    assert buckets.take("b") == 0.0
    now[0] = 0.25
    assert buckets.take("a") == pytest.approx(0.25)
    now[0] = 0.5
    assert buckets.take("a") == 0.0
    now[0] = 1e6
    assert [buckets.take("a") > 0 for _ in range(4)] == [False, False, False, True]


def test_a_key_that_asks_too_often_waits_and_the_others_do_not(store: Registry, keys: KeyFile) -> None:
    fast, slow = (bearer(keys.new(name, ["read"])[1]) for name in ("fast", "slow"))
    with asking(store, keys=keys, limits=Limits(rate=0.001, burst=2)) as client:
        statuses = [client.get("/v1/models", headers=fast).status_code for _ in range(3)]
        assert statuses == [200, 200, 429]
        refused = client.get("/v1/models", headers=fast)
        check_problem(refused, 429, "too-many-requests")
        assert 900 <= int(refused.headers["retry-after"]) <= 1_000
        assert client.get("/v1/models", headers=slow).status_code == 200
        assert client.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    "given", [{"body_bytes": 0}, {"timeout_s": 0}, {"at_once": 0}, {"burst": 0}, {"rate": -1}, {"rate": float("nan")}]
)
def test_limits_that_cannot_be_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidSetting):
        Limits(**given)


class Held:
    """An encoder that answers when it is let go."""

    def __init__(self) -> None:
        self.begun, self.let_go = threading.Event(), threading.Event()

    def __call__(self, name: str) -> WordEncoder:
        self.begun.set()
        assert self.let_go.wait(60)
        return WordEncoder()


def test_an_answer_that_takes_too_long_is_a_problem(store: Registry) -> None:
    held = Held()
    with asking(store, QueryTexts(held), limits=Limits(timeout_s=0.2)) as client:
        refused = client.post(ASK, json={"query": "black"})
        check_problem(refused, 503, "timeout")
        assert int(refused.headers["retry-after"]) > 0
        held.let_go.set()
        assert client.get("/healthz").status_code == 200


def test_a_body_that_never_comes_holds_no_place(store: Registry) -> None:
    with asking(store, limits=Limits(timeout_s=0.2, at_once=1)) as client:
        address = (client.base_url.host, client.base_url.port or 0)
        with socket.create_connection(address, 30) as raw:
            raw.sendall(f"POST {ASK} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{{".encode())
            answer = b"".join(iter(lambda: raw.recv(65_536), b""))
            assert b" 503 " in answer.split(b"\r\n", 1)[0]
            # the half-sent request is still open at this end
            statuses = {client.get("/v1/model").status_code for _ in range(50)}
            assert 200 in statuses


def test_more_than_fits_at_once_is_a_problem(store: Registry) -> None:
    held = Held()
    with asking(store, QueryTexts(held), limits=Limits(at_once=1)) as client:
        answers: list[int] = []
        first = threading.Thread(target=lambda: answers.append(client.post(ASK, json={"query": "black"}).status_code))
        first.start()
        assert held.begun.wait(30)
        check_problem(client.get("/v1/model"), 503, "busy")
        assert client.get("/healthz").status_code == 200
        held.let_go.set()
        first.join(30)
        assert answers == [200]
        assert client.get("/v1/model").status_code == 200


def test_without_keys_only_names_of_this_machine_are_answered(store: Registry) -> None:
    with asking(store) as client:
        check_problem(client.get("/v1/model", headers={"Host": "evil.example"}), 403, "foreign-host")
        assert client.get("/v1/model", headers={"Host": "localhost:1"}).status_code == 200


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("localhost", True),
        ("LOCALHOST:80", True),
        ("127.0.0.1:8000", True),
        ("[::1]:8000", True),
        ("", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("10.0.0.1", False),
        ("[::2]", False),
        ("[", False),
    ],
)
def test_names_of_this_machine(host: str, own: bool) -> None:
    assert is_loopback(host) is own


def test_pages_of_other_origins_are_not_helped_unless_they_are_named(store: Registry) -> None:
    asks = {"Origin": "https://shop.example", "Access-Control-Request-Method": "POST"}
    with asking(store) as client:
        assert client.options(ASK, headers=asks).status_code == 405
        assert "access-control-allow-origin" not in client.get("/v1/model", headers=asks).headers
    with asking(store, origins=["https://shop.example"]) as client:
        assert client.options(ASK, headers=asks).headers["access-control-allow-origin"] == "https://shop.example"
        other = {**asks, "Origin": "https://evil.example"}
        assert "access-control-allow-origin" not in client.get("/v1/model", headers=other).headers
    with pytest.raises(ServiceError, match="origin"):
        create_app(FixedSource(store, load_bundle(store)), QueryTexts(lambda name: WordEncoder()), origins=["*"])


def test_every_answer_says_how_it_may_be_used(store: Registry) -> None:
    with asking(store) as client:
        for path in ("/v1/model", "/nowhere"):
            headers = client.get(path).headers
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["cache-control"] == "no-store"
            assert "server" not in headers


@pytest.mark.parametrize(
    "path",
    ["/../../etc/passwd", "/v1/%2e%2e/%2e%2e/etc/passwd", "/v1/items/..%2F..%2Fetc%2Fpasswd/similar", "//etc/passwd"],
)
def test_no_path_reaches_the_file_system(store: Registry, path: str) -> None:
    """Sent raw, as no client library would; the answer is the same as for any other name that is not there."""
    with asking(store) as client:
        with socket.create_connection((client.base_url.host, client.base_url.port or 0), 10) as raw:
            raw.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            answer = b"".join(iter(lambda: raw.recv(65_536), b""))
        assert b" 404 " in answer.split(b"\r\n", 1)[0]
        assert b"root:" not in answer
