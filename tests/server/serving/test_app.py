"""The HTTP edge, over a real socket: answers, and every way to be refused."""

import json
import socket
from typing import Any

import httpx
import pytest

from server.registry import Registry
from server.serving.app import create_app
from server.serving.bundle import load_bundle
from server.serving.limits import DEFAULT_LIMITS
from server.serving.query import QueryTexts
from server.serving.reload import FixedSource, ReloadingSource
from server.serving.run import serve_in_thread
from tests.server.serving.stores import COLD, WordEncoder, new_store, publish

ASK = "/v1/recommendations"


def check_problem(response: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    """Check that the response is such a problem, and return it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body["status"] == status
    assert body["type"] == f"urn:anabranch:problem:{kind}"
    assert body["title"]
    assert body["detail"]
    assert "\n" not in body["detail"]
    return body


def test_a_known_user(client: httpx.Client) -> None:
    response = client.post(ASK, json={"user_id": "u0", "k": 2})
    assert response.status_code == 200
    assert response.json() == {
        "request_id": "r1",
        "model_version": "v000001",
        "known_user": True,
        "items": response.json()["items"],
        "ignored": {"unknown_items": 0},
        "answered_from": ["factors", "text", "popularity"],
        "policy": "deterministic",
    }
    assert [item["item_id"] for item in response.json()["items"]] == ["18", "16"]
    assert set(response.json()["items"][0]) == {"item_id", "rank", "score", "propensity", "title"}
    assert client.get("/v1/users/u0/recommendations", params={"k": 2}).json() == response.json()


def test_an_explained_query(client: httpx.Client) -> None:
    body = {"query": "yellow submarine", "history": ["1", "ghost"], "k": 3, "explain": True}
    slate = client.post(ASK, json=body).json()
    assert slate["items"][0]["item_id"] == COLD
    assert slate["ignored"] == {"unknown_items": 1}
    for item in slate["items"]:
        assert sum(reason["weight"] for reason in item["reasons"]) == pytest.approx(item["score"])


@pytest.mark.parametrize(
    "body",
    [
        {"user_id": "u0", "k": 3, "explain": True},
        {"history": ["1", "ghost"], "k": 2.0, "deny": ["3"], "diversity": 1},
        {"query": "yellow submarine", "explore": 0.5, "at": 9},
        {"k": 501},
        {"user_id": None, "extra": 1},
        [],
    ],
)
def test_the_short_way_past_the_framework_answers_as_the_framework_does(client: httpx.Client, body: object) -> None:
    short, thorough = (
        client.post(ASK, content=json.dumps(body), headers={"content-type": f"application/json{more}"})
        for more in ("", "; charset=utf-8")
    )
    assert (short.status_code, short.json()) == (thorough.status_code, thorough.json())
    assert short.headers["content-type"] == thorough.headers["content-type"]


def test_an_empty_question_is_answered_with_what_is_popular(client: httpx.Client) -> None:
    assert client.post(ASK, json={}).json()["items"][0]["item_id"] == "18"


def test_a_user_with_a_slash_in_the_name(client: httpx.Client) -> None:
    slate = client.get("/v1/users/a%2Fb%20c/recommendations").json()
    assert not slate["known_user"]


def test_similar(client: httpx.Client) -> None:
    found = client.get("/v1/items/1/similar", params={"k": 3}).json()
    assert found["item_id"] == "1"
    assert {int(item["item_id"]) % 2 for item in found["items"]} == {1}
    check_problem(client.get("/v1/items/ghost/similar"), 404, "unknown-item")


def test_the_model_tells_where_it_comes_from(client: httpx.Client) -> None:
    model = client.get("/v1/model").json()
    assert model["version"] == "v000001"
    assert model["parents"] == []
    assert model["round"] == 3
    assert model["age_seconds"] == 10.0
    assert model["privacy"] == {"unit": "user", "epsilon": 3.5, "delta": 1e-5, "budget": 8.0, "accountant": "prv"}
    assert model["metrics"]["global"]["recall@10"] == 0.25
    assert model["stream"] == {
        "version": "s1",
        "events": 209,
        "users": 8,
        "offsets": {"clicks": {"0": 17}},
        "age_seconds": 9.0,
    }
    assert client.get("/v1/models").json() == {"versions": ["v000001"], "current": "v000001"}
    assert client.get("/healthz").json() == {"ok": True}
    assert client.get("/readyz").json() == {"ready": True, "model_version": "v000001"}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"k": 0}, "body.k"),
        ({"k": 10**9}, "body.k"),
        ({"k": -1}, "body.k"),
        ({"k": "10"}, "body.k"),
        ({"k": True}, "body.k"),
        ({"k": None}, "body.k"),
        ({"user_id": 7}, "body.user_id"),
        ({"user_id": ""}, "body.user_id"),
        ({"user_id": "x" * 513}, "body.user_id"),
        ({"history": "1"}, "body.history"),
        ({"history": [1]}, "body.history.0"),
        ({"history": ["1"] * 1_001}, "body.history"),
        ({"query": ""}, "body.query"),
        ({"query": " \t\n"}, "body.query"),
        ({"query": "x" * 100_001}, "body.query"),
        ({"explain": "yes"}, "body.explain"),
        ({"uesr_id": "u0"}, "body.uesr_id"),
        ([], "body"),
        ("text", "body"),
        (None, "body"),
    ],
)
def test_a_body_that_does_not_fit_is_refused_by_field(client: httpx.Client, body: object, field: str) -> None:
    problem = check_problem(client.post(ASK, json=body), 422, "invalid")
    assert field in {error["field"] for error in problem["errors"]}


@pytest.mark.parametrize(
    ("content", "status", "kind"),
    [
        (b"{", 400, "malformed"),
        (b"", 422, "invalid"),
        (b'{"user_id": "\xff"}', 400, "malformed"),
        (b"[" * 100_000, 400, "malformed"),
        (b'{"k": ' + b"9" * 5_000 + b"}", 400, "malformed"),
        (b'{"k": NaN}', 422, "invalid"),
        (b'{"k": 1e400}', 422, "invalid"),
        (b'{"user_id": "\\ud800"}', 422, "invalid"),
        (b'{"\\ud800": 1}', 422, "invalid"),
        (b'{"query": "\\ud800"}', 422, "invalid"),
        (b'{"user_id": "' + b"x" * 10_000_000 + b'"}', 413, "too-large"),
    ],
)
def test_a_body_that_is_no_question_is_refused(client: httpx.Client, content: bytes, status: int, kind: str) -> None:
    response = client.post(ASK, content=content, headers={"content-type": "application/json"})
    check_problem(response, status, kind)


def test_a_body_of_unknown_length_is_cut_off_at_the_limit(client: httpx.Client) -> None:
    def parts() -> Any:
        for _ in range(20):
            yield b"x" * (DEFAULT_LIMITS.body_bytes // 10)

    check_problem(client.post(ASK, content=parts()), 413, "too-large")
    fits = json.dumps({"history": ["1" * 500] * 1_000, "k": 1}).encode()
    assert len(fits) < DEFAULT_LIMITS.body_bytes
    assert client.post(ASK, content=fits, headers={"content-type": "application/json"}).status_code == 200


def test_a_long_query_is_answered(client: httpx.Client) -> None:
    slate = client.post(ASK, json={"query": "submarine " * 10_000, "k": 1}).json()
    assert slate["items"][0]["item_id"] == COLD


@pytest.mark.parametrize("k", ["0", "501", "x", "1.5", ""])
def test_k_in_the_address_is_checked(client: httpx.Client, k: str) -> None:
    for path in ("/v1/users/u0/recommendations", "/v1/items/1/similar"):
        check_problem(client.get(path, params={"k": k}), 422, "invalid")


@pytest.mark.parametrize("raw", [b"FROB / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"\x16\x03\x01\r\n\r\n"])
def test_what_is_no_http_is_answered_as_a_problem_too(service: str, raw: bytes) -> None:
    host, port = service.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as sent:
        sent.sendall(raw)
        answer = b"".join(iter(lambda: sent.recv(4096), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode().lower().split("\r\n")
    assert lines[0] == "http/1.1 400 bad request"
    assert "content-type: application/problem+json" in lines
    assert f"content-length: {len(body)}" in lines
    found = json.loads(body)
    assert (found["status"], found["type"]) == (400, "urn:anabranch:problem:malformed")


def test_paths_and_methods_that_are_not_there(client: httpx.Client) -> None:
    check_problem(client.get("/v2/x"), 404, "no-such-path")
    refused = client.get(ASK)
    check_problem(refused, 405, "method-not-allowed")
    assert refused.headers["allow"] == "POST"
    check_problem(client.get("/v1/users/%ff%00/recommendations", params={"k": "\ud7ff"}), 422, "invalid")


def test_before_the_first_model_everything_but_health_is_503(store: Registry, queries: QueryTexts) -> None:
    empty = new_store(store.root / "empty")
    source = ReloadingSource(empty.root)
    with (
        serve_in_thread(create_app(source, queries)) as running,
        httpx.Client(base_url=running.url, timeout=60.0) as client,
    ):
        assert not source.refresh()
        assert client.get("/healthz").status_code == 200
        for path in ("/readyz", "/v1/model", "/v1/users/u/recommendations", "/v1/items/1/similar"):
            response = client.get(path)
            assert int(response.headers["retry-after"]) > 0
            check_problem(response, 503, "no-model")
        check_problem(client.post(ASK, json={}), 503, "no-model")
        assert client.get("/v1/models").json() == {"versions": [], "current": None}
        publish(empty, "v000001")
        assert source.refresh()
        assert client.get("/readyz").json()["model_version"] == "v000001"


def test_another_base_encoder_is_refused_for_queries_only(store: Registry) -> None:
    app = create_app(FixedSource(store, load_bundle(store)), QueryTexts(lambda name: WordEncoder("6" * 64)))
    with serve_in_thread(app) as running, httpx.Client(base_url=running.url, timeout=60.0) as client:
        assert client.post(ASK, json={"user_id": "u0"}).status_code == 200
        problem = check_problem(client.post(ASK, json={"query": "black"}), 503, "unavailable")
        assert "6" * 64 in problem["detail"]
        assert "5" * 64 in problem["detail"]


def test_a_surprise_is_a_problem_too(store: Registry) -> None:
    def broken(name: str) -> WordEncoder:
        raise ZeroDivisionError("unforeseen")

    app = create_app(FixedSource(store, load_bundle(store)), QueryTexts(broken))
    with serve_in_thread(app) as running, httpx.Client(base_url=running.url, timeout=60.0) as client:
        problem = check_problem(client.post(ASK, json={"query": "black"}), 500, "internal")
        assert "unforeseen" not in json.dumps(problem)


def test_the_openapi_names_every_problem(client: httpx.Client) -> None:
    schema = client.get("/openapi.json").json()
    assert set(schema["paths"]) == {
        "/v1/recommendations",
        "/v1/users/{user_id}/recommendations",
        "/v1/items/{item_id}/similar",
        "/v1/events",
        "/v1/model",
        "/v1/models",
        "/metrics",
        "/healthz",
        "/readyz",
    }
    assert set(schema["paths"][ASK]["post"]["responses"]) == {"200", "400", "401", "403", "413", "422", "429", "503"}
    assert schema["components"]["schemas"]["Problem"]["properties"]["status"]
    assert "HTTPValidationError" not in schema["components"]["schemas"]
    assert schema["components"]["schemas"]["RecommendationRequest"]["examples"]
