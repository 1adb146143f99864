"""A click counts in the next answer, before any snapshot has it, and just as the learner itself will count it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest

from anabranch.recommender import Recommender
from anabranch.serving import Broker, Serving
from common.events import Interaction
from common.settings import feedback_of, was_tried
from server.registry import Registry
from server.serving.bundle import Bundle, load_bundle
from server.serving.query import QueryTexts
from server.serving.recommend import Question, _asked, slate_payload
from server.serving.run import serve_in_thread
from stream.broker import EmbeddedBroker
from stream.consumer import StreamWorker, WorkerSettings
from stream.live_users import LiveUsers
from stream.snapshot import publish_snapshot
from tests.integration.test_blend_served import CLICKED, shop, small_blend, vectors_of
from tests.memory_log import MemoryLog, MemorySink
from tests.server.serving.stores import WordEncoder, new_store, publish
from tests.stream.topics import some_events

ASK = "/v1/recommendations"


def until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("repeats", [False, True])
def test_what_is_added_to_a_snapshot_is_what_the_learner_adds(tmp_path: Path, repeats: bool) -> None:
    """After every further event, history, seen items, tried items and likes are the learner's own."""
    registry = new_store(tmp_path, shop())
    publish(registry, "v000001")
    learner = small_blend(repeats=repeats)
    learner.describe(registry.catalogue.ids, vectors_of(registry))
    log, topic = MemoryLog(), "clicks"
    log.ensure_topic(topic)
    live = LiveUsers(log, topic, dict)
    events = [*some_events(300), *_ratings(120)]
    for number, event in enumerate(events):
        if number == 250:
            publish_snapshot(tmp_path, learner.snapshot({topic: {"0": 250}}), 1, 5)
        _teach(learner, event)
        MemorySink(log).send(topic, _record(event), partition=0)
    for record in log.read(topic):
        live.take(record)
    bundle = load_bundle(registry)
    assert bundle.stream is not None
    checked = 0
    for user in learner.user_ids:
        asked = _asked(bundle, Question(user_id=user), live.since(user, bundle.stream.snapshot.offsets))
        window = learner.window
        assert _names(bundle, asked.history)[-window:] == _learned(learner, user)
        assert set(_names(bundle, asked.seen)) == {learner.item_ids[row] for row in learner.seen_rows(user)}
        state = learner.state_arrays()
        row = learner.user_row(user)
        assert asked.likes == int(state["user.positives"][row])
        before = bundle.person(user).history
        checked += len(asked.history) > len(before)
    assert checked > 5
    # and the tried ones, by what a snapshot of now would say
    publish_snapshot(tmp_path, learner.snapshot({topic: {"0": len(events)}}), 2, 5)
    later = load_bundle(registry)
    for user in learner.user_ids:
        asked = _asked(bundle, Question(user_id=user), live.since(user, bundle.stream.snapshot.offsets))
        expected = _names(later, later.person(user).tried)
        assert _names(bundle, asked.tried)[-len(expected) :] == expected


def _teach(learner: object, event: Interaction) -> None:
    feedback = feedback_of(event)
    assert hasattr(learner, "learn_one")
    assert hasattr(learner, "try_one")
    if feedback.sign:
        learner.learn_one(event.user_id, event.item_id, feedback.sign * feedback.weight)
    if feedback.sign <= 0 and was_tried(event):
        learner.try_one(event.user_id, event.item_id)


def _ratings(count: int) -> Iterator[Interaction]:
    rng = np.random.default_rng(5)
    for number in range(count):
        user, item = f"user-{rng.integers(10)}", CLICKED[rng.integers(len(CLICKED))]
        yield Interaction(f"rating-{number}", user, item, "rating", 10_000 + number, float(rng.integers(1, 6)))


def _record(event: Interaction) -> bytes:
    from common.events import encode_event

    return encode_event(event)


def _names(bundle: Bundle, rows: np.ndarray) -> list[str]:
    return [bundle.items.ids[int(row)] for row in rows]


def _learned(learner: object, user: str) -> list[str]:
    assert hasattr(learner, "history_rows")
    assert hasattr(learner, "item_ids")
    return [learner.item_ids[row] for row in learner.history_rows(user)]


@contextmanager
def serving(servers: str | None, store: Path) -> Iterator[httpx.Client]:
    """Serve as `anabranch serve` does, with a quick text encoder."""
    broker = None if servers is None else Broker(servers, "clicks")
    parts = Serving(store=str(store), reload_every=0.05, broker=broker)
    with (
        parts.running(QueryTexts(lambda name: WordEncoder())) as (app, _),
        serve_in_thread(app) as service,
        httpx.Client(base_url=service.url, timeout=60.0) as client,
    ):
        yield client


def learn(servers: str, registry: Registry, until_events: int) -> None:
    settings = WorkerSettings(servers, "clicks", registry.root, until_events=until_events)
    StreamWorker(settings, small_blend(), items=registry.catalogue.ids).run()


def items(client: httpx.Client, user: str) -> list[str]:
    slate = client.post(ASK, json={"user_id": user, "k": 100}).json()
    return [item["item_id"] for item in slate["items"]]


def test_a_click_over_http_changes_the_next_answer_and_counts_once(tmp_path: Path) -> None:
    registry = new_store(tmp_path, shop())
    publish(registry, "v000001")
    with EmbeddedBroker() as broker:
        servers = broker.bootstrap_servers
        with serving(servers, tmp_path) as client:
            sent = 0
            for event in some_events(60):
                answer = client.post("/v1/events", json=_body(event))
                assert answer.status_code == 202, answer.text
                assert answer.json() == {"event_id": event.event_id, "partition": 0, "offset": sent}
                sent += 1
            learn(servers, registry, 60)
            until(lambda: client.get("/v1/model").json()["stream"] is not None)

            until(lambda: not client.post(ASK, json={"user_id": "fresh"}).json()["known_user"])
            before = items(client, "fresh")
            for item in before[:2]:
                made = client.post("/v1/events", json={"user_id": "fresh", "item_id": item, "action": "click"})
                assert made.status_code == 202
            skipped = {"user_id": "fresh", "item_id": before[2], "action": "skip"}
            assert client.post("/v1/events", json=skipped).status_code == 202
            until(lambda: not set(before[:3]) & set(items(client, "fresh")))
            live = client.post(ASK, json={"user_id": "fresh", "k": 5}).json()
            assert live["known_user"]
            assert "anabranch_serve_events_total 63.0" in client.get("/metrics").text

            # once the learner has the clicks, they count there and not twice
            learn(servers, registry, 63)
            until(lambda: client.get("/v1/model").json()["stream"]["offsets"]["clicks"]["0"] == 63)
            here = Recommender.load(tmp_path).recommend("fresh", k=5)
            over_http = client.post(ASK, json={"user_id": "fresh", "k": 5}).json()
            shown = slate_payload(here, explain=False)
            for name in ("items", "known_user", "answered_from", "ignored", "model_version"):
                assert over_http[name] == shown[name] or list(over_http[name]) == list(shown[name])


def _body(event: Interaction) -> dict[str, object]:
    return {
        "event_id": event.event_id,
        "user_id": event.user_id,
        "item_id": event.item_id,
        "action": event.action,
        "value": event.value,
        "ts": event.ts,
    }


def test_without_a_broker_events_are_refused_and_questions_are_answered(tmp_path: Path) -> None:
    registry = new_store(tmp_path, shop())
    publish(registry, "v000001")
    body = {"user_id": "u", "item_id": "item-1", "action": "click"}
    with serving(None, tmp_path) as client:
        refused = client.post("/v1/events", json=body)
        assert refused.status_code == 503
        assert refused.headers["content-type"] == "application/problem+json"
        assert refused.json()["type"] == "urn:anabranch:problem:no-broker"
        assert "anabranch serve --bootstrap-servers" in refused.json()["detail"]
        for wrong in ({}, {**body, "action": "buy"}, {**body, "ts": -1}, {**body, "x": 1}, {**body, "user_id": ""}):
            assert client.post("/v1/events", json=wrong).status_code == 422


def test_with_a_broker_that_is_away_it_starts_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream.topics.ANSWER_WITHIN_MS", 300)
    registry = new_store(tmp_path, shop())
    publish(registry, "v000001")
    with serving("127.0.0.1:1", tmp_path) as client:
        assert client.post(ASK, json={"user_id": "u"}).status_code == 200
        refused = client.post("/v1/events", json={"user_id": "u", "item_id": "item-1", "action": "click"})
        assert refused.status_code == 503
        assert refused.json()["type"] == "urn:anabranch:problem:no-broker"
        assert int(refused.headers["retry-after"]) > 0
        assert "anabranch_serve_live_lag_records -1.0" in client.get("/metrics").text
