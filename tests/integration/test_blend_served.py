"""What is served is what the stream's learner says itself: same items, same order, same scores, and true reasons."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import httpx
import numpy as np
import pytest

from common.blends import BlendMembers
from common.errors import ArtifactCorrupt, CheckpointMismatch
from common.items import Catalogue, Item
from common.settings import feedback_of
from server.registry import Registry
from server.serving.alignment import align
from server.serving.app import Answering, create_app
from server.serving.bundle import Bundle, load_bundle
from server.serving.query import QueryTexts
from server.serving.recommend import Question, Slate, recommend
from server.serving.reload import FixedSource, ReloadingSource
from server.serving.run import serve_in_thread
from stream.broker import EmbeddedBroker
from stream.consumer import LearnReport, StreamWorker, WorkerSettings
from stream.kafka_log import KafkaLog
from stream.learner.blend import Blend
from stream.learner.mf import MF
from stream.producer import produce
from stream.snapshot import publish_snapshot
from stream.state import ItemTexts
from tests.server.serving.stores import WordEncoder, new_store, publish
from tests.stream.topics import some_events

WORDS = ("red", "green", "old", "new", "small", "large", "round")
CLICKED = tuple(f"item-{number}" for number in range(40))
COLD = tuple(f"cold-{number}" for number in range(6))
TOLERANCE = 1e-4


def shop(ids: Sequence[str] = (*CLICKED, *COLD)) -> Catalogue:
    rng = np.random.default_rng(1)
    return Catalogue([Item(item, item.upper(), " ".join(rng.choice(WORDS, 3))) for item in ids])


def small_blend(**settings: object) -> Blend:
    given = {"n_factors": 8, "negatives": 5, "window": 10, "places": 64, "text_dimensions": 6, "seed": 3, **settings}
    return Blend(**given)  # type: ignore[arg-type]  # settings of several types


def vectors_of(registry: Registry) -> np.ndarray:
    return load_bundle(registry).model.item_vectors


def taught(learner: Blend | MF, count: int = 600) -> Blend | MF:
    for event in some_events(count):
        feedback = feedback_of(event)
        if feedback.sign:
            learner.learn_one(event.user_id, event.item_id, feedback.sign * feedback.weight)
    return learner


@dataclass(frozen=True)
class Served:
    """A learner, and a bundle made of what it published."""

    learner: Blend
    bundle: Bundle


def served(root: Path, learner: Blend, *, described: bool = True, catalogue: Catalogue | None = None) -> Served:
    registry = new_store(root, catalogue or shop())
    publish(registry, "v000001")
    if described:
        learner.describe(registry.catalogue.ids, vectors_of(registry))
    else:
        learner.add_items(registry.catalogue.ids)
    taught(learner)
    publish_snapshot(root, learner.snapshot({}), 1, 5)
    return Served(learner, load_bundle(registry))


def ask(bundle: Bundle, question: Question) -> Slate:
    vector = None
    if question.query is not None:
        vector = QueryTexts(lambda name: WordEncoder()).vector(bundle.model, question.query)
    return recommend(bundle, question, vector, "r1")


def assert_same(items: Sequence[tuple[str, float]], expected: Mapping[str, float]) -> None:
    """Demand the expected items, each with its score, in their order wherever scores differ."""
    assert {item for item, _ in items} == set(expected)
    for item, score in items:
        assert score == pytest.approx(expected[item], abs=TOLERANCE), item
    for (better, _), (worse, _) in pairwise(items):
        assert expected[better] >= expected[worse] - TOLERANCE


def pairs(slate: Slate) -> list[tuple[str, float]]:
    return [(item.item_id, item.score) for item in slate.items]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return served(tmp_path_factory.mktemp("told"), small_blend())


def test_known_users_get_what_the_learner_says(told: Served) -> None:
    for user in told.learner.user_ids:
        slate = ask(told.bundle, Question(user_id=user, k=100))
        assert slate.known_user
        assert len(slate.items) >= 15
        assert set(COLD) <= {item.item_id for item in slate.items}
        assert_same(pairs(slate), dict(told.learner.top_k(user, 100)))
        all_of_them = ask(told.bundle, Question(user_id=user, k=100, exclude_seen=False))
        assert_same(pairs(all_of_them), dict(told.learner.top_k(user, 100, exclude_seen=False)))


def test_the_first_ten_are_the_learners_first_ten(told: Served) -> None:
    for user in (*told.learner.user_ids, "nobody"):
        mine = [item for item, _ in told.learner.top_k(user, 10)]
        assert [item.item_id for item in ask(told.bundle, Question(user_id=user, k=10)).items] == mine


def test_somebody_without_history_gets_what_the_learner_says(told: Served) -> None:
    expected = dict(told.learner.top_k("nobody", 100))
    assert_same(pairs(ask(told.bundle, Question(user_id="nobody", k=100))), expected)
    assert_same(pairs(ask(told.bundle, Question(k=100))), expected)


@pytest.mark.parametrize("length", [1, 3, 8, 30])
def test_a_new_user_with_a_history_gets_what_the_learner_says(told: Served, length: int) -> None:
    history = CLICKED[2 : 2 + length]
    expected = dict(told.learner.top_k("stranger", 100, history=history))
    slate = ask(told.bundle, Question(history=history, k=100))
    assert not slate.known_user
    assert_same(pairs(slate), expected)
    noisy = ask(told.bundle, Question(history=("ghost", *history), k=100))
    assert (noisy.items, noisy.ignored) == (slate.items, {"unknown_items": 1})


def test_likes_given_with_the_question_come_after_the_known_ones(told: Served) -> None:
    learner = told.learner
    for user in learner.user_ids:
        known = [learner.item_ids[row] for row in learner.history_rows(user)]
        if len(learner.seen_rows(user)) > len(set(known)):
            continue  # what the window no longer holds cannot be given to the learner
        given = (COLD[0], CLICKED[5])
        scores = learner.scores("stranger", history=[*known, *given])
        slate = ask(told.bundle, Question(user_id=user, history=given, k=100, exclude_seen=False))
        assert_same(pairs(slate), dict(zip(learner.item_ids, map(float, scores), strict=True)))


def test_where_repeats_are_allowed_seen_items_are_weighed_too(tmp_path: Path) -> None:
    both = served(tmp_path, small_blend(repeats=True))
    for user in both.learner.user_ids:
        slate = ask(both.bundle, Question(user_id=user, k=100, exclude_seen=False))
        assert_same(pairs(slate), dict(both.learner.top_k(user, 100, exclude_seen=False)))
        slate = ask(both.bundle, Question(user_id=user, k=100))
        assert_same(pairs(slate), dict(both.learner.top_k(user, 100)))


def test_a_question_that_opens_a_visit_is_answered_as_the_learner_does(tmp_path: Path) -> None:
    """The clicks lie an hour apart, so every user has several visits."""
    learner, hour = small_blend(repeats=True), 3_600_000
    learner.add_items(shop().ids)
    for place, event in enumerate(some_events(300)):
        learner.learn_one(event.user_id, event.item_id, 1.0, {"ts": place * hour})
    registry = new_store(tmp_path, shop(("late", *CLICKED[::-1], *COLD)))
    publish(registry, "v000001")
    learner.describe(registry.catalogue.ids, vectors_of(registry))
    publish_snapshot(tmp_path, learner.snapshot({}), 1, 5)
    bundle, later = load_bundle(registry), 1_000 * hour
    for user in (*learner.user_ids, "nobody"):
        found = pairs(ask(bundle, Question(user_id=user, k=100, exclude_seen=False, at=later)))
        assert_same(found, dict(learner.top_k(user, 100, exclude_seen=False, at=later)))
        plain = pairs(ask(bundle, Question(user_id=user, k=100, exclude_seen=False)))
        assert_same(plain, dict(learner.top_k(user, 100, exclude_seen=False)))
        assert (plain == found) == (user == "nobody")
        given = Question(user_id=user, history=(CLICKED[3],), k=100, exclude_seen=False)
        assert pairs(ask(bundle, replace(given, at=later))) == pairs(ask(bundle, given))  # that visit is open
    answering = Answering(FixedSource(registry, bundle), QueryTexts(lambda name: WordEncoder()), clock=lambda: later)
    user = learner.user_ids[0]
    by_clock = answering.slate(Question(user_id=user, k=5, exclude_seen=False))
    assert [item["item_id"] for item in by_clock["items"]] == [
        item for item, _ in learner.top_k(user, 5, exclude_seen=False, at=later)
    ]
    said = answering.slate(Question(user_id=user, k=5, exclude_seen=False, at=0))
    assert [item["item_id"] for item in said["items"]] == [
        item for item, _ in learner.top_k(user, 5, exclude_seen=False)
    ]


@pytest.mark.parametrize("repeats", [False, True])
def test_what_was_tried_is_served_as_the_learner_says(tmp_path: Path, repeats: bool) -> None:
    learner = small_blend(repeats=repeats)
    learner.add_items(shop().ids)
    rng = np.random.default_rng(2)
    for user in [f"user-{number}" for number in range(8)] * 5:
        learner.try_one(user, CLICKED[rng.integers(len(CLICKED))])
    both = served(tmp_path, learner, catalogue=shop(("late", *CLICKED[::-1], *COLD)))
    for event in some_events(40):
        assert event.user_id in learner.user_ids
    for user in learner.user_ids:
        slate = ask(both.bundle, Question(user_id=user, k=100, exclude_seen=not repeats, explain=True))
        expected = dict(learner.top_k(user, 100, exclude_seen=not repeats))
        assert_same(
            [pair for pair in pairs(slate) if pair[0] != "late"], {k: v for k, v in expected.items() if k != "late"}
        )
        for item in slate.items:
            assert sum(reason.weight for reason in item.reasons) == pytest.approx(item.score, abs=TOLERANCE)


def test_another_order_and_new_items_of_the_catalogue_change_nothing(tmp_path: Path) -> None:
    """The learner took its items in the order of the clicks, and never heard of some."""
    registry = new_store(tmp_path, shop(("late-1", *COLD, *reversed(CLICKED), "late-2")))
    publish(registry, "v000001")
    learner = small_blend()
    assert isinstance(taught(learner), Blend)
    publish_snapshot(tmp_path, learner.snapshot({}), 1, 5)
    bundle = load_bundle(registry)
    learner.add_items(registry.catalogue.ids)
    scores = {user: learner.member_scores(user) for user in (*learner.user_ids, "nobody")}
    for user, z in scores.items():
        slate = ask(bundle, Question(user_id=user, k=100))
        expected = learner.scores(user)
        # the learner knows no texts, so likeness to the version's vectors comes in addition
        text = {item.item_id: reason_of(item.reasons, "text") for item in explained(bundle, user).items}
        rest = {item: score - text[item] for item, score in pairs(slate)}
        rows = {item: row for row, item in enumerate(learner.item_ids)}
        assert_same(
            sorted(rest.items(), key=lambda pair: -pair[1]), {item: float(expected[rows[item]]) for item in rest}
        )
        assert not z["content"].any()


def explained(bundle: Bundle, user: str) -> Slate:
    return ask(bundle, Question(user_id=user, k=100, explain=True))


def reason_of(reasons: Sequence[object], member: str) -> float:
    return sum(float(getattr(reason, "members").get(member, 0.0)) for reason in reasons)  # noqa: B009 - typed loosely


@pytest.mark.parametrize("described", [True, False])
def test_reasons_say_what_each_member_and_each_liked_item_adds(tmp_path: Path, described: bool) -> None:
    case = served(tmp_path, small_blend(), described=described)
    learner = case.learner
    user = max(learner.user_ids, key=lambda name: len(learner.seen_rows(name)))
    weights = learner.weights()[max(least for least in (0, 1, 6, 21) if least <= _likes(learner, user))]
    z = learner.member_scores(user)
    rows = {item: row for row, item in enumerate(learner.item_ids)}
    liked = {learner.item_ids[row].upper() for row in learner.history_rows(user)}
    named = 0
    for item in explained(case.bundle, user).items:
        assert sum(reason.weight for reason in item.reasons) == pytest.approx(item.score, abs=1e-9)
        for reason in item.reasons:
            assert sum(reason.members.values()) == pytest.approx(reason.weight, abs=1e-12)
            if reason.kind == "because-you-liked":
                assert reason.text in liked
                named += 1
        for member in ("neighbours", "factors", "popularity"):
            said = weights[member] * float(z[member][rows[item.item_id]])
            assert reason_of(item.reasons, member) == pytest.approx(said, abs=TOLERANCE)
        if described:
            said = weights["content"] * float(z["content"][rows[item.item_id]])
            assert reason_of(item.reasons, "text") == pytest.approx(said, abs=TOLERANCE)
    assert named > 20


def _likes(learner: Blend, user: str) -> int:
    row = learner.user_row(user)
    assert row is not None
    return int(learner.state_arrays()["user.positives"][row])


def test_what_a_neighbour_adds_is_what_its_absence_takes(told: Served) -> None:
    """The slow twin: leave one liked item out, with the others in their places, and see what the raw score loses."""
    learner, bundle = told.learner, told.bundle
    history = (CLICKED[3], CLICKED[17], CLICKED[9])
    blend = bundle.stream.snapshot.blend if bundle.stream else None
    assert blend is not None
    dense = np.zeros((len(bundle.items), len(bundle.items)))
    for place in range(len(dense)):
        part = slice(blend.pair_starts[place], blend.pair_starts[place + 1])
        dense[place, blend.pair_items[part]] = blend.pair_weights[part]
    places = [bundle.items.index(item) for item in history]
    shown = np.setdiff1d(np.arange(len(dense)), np.array(places))
    each = np.array([np.exp(-(2 - age) / learner.neighbour_recency) * dense[row] for age, row in enumerate(places)])
    raw = each.sum(axis=0)
    weight = learner.weights()[1]["neighbours"]
    expected = weight * (each - each[:, shown].mean(axis=1, keepdims=True)) / raw[shown].std()
    seen = 0
    for item in ask(bundle, Question(history=history, k=100, explain=True)).items:
        row = bundle.items.index(item.item_id)
        for reason in item.reasons:
            if reason.kind == "because-you-liked" and "neighbours" in reason.members and len(item.reasons) > 2:
                age = [name.upper() for name in history].index(reason.text)
                assert reason.members["neighbours"] == pytest.approx(expected[age, row], abs=2e-4)
                seen += 1
    assert seen > 10


def test_a_query_steers_and_the_parts_still_add_up(told: Served) -> None:
    for user in (told.learner.user_ids[0], None):
        slate = ask(told.bundle, Question(user_id=user, query="red round", k=100, explain=True))
        kinds = {reason.kind for item in slate.items for reason in item.reasons}
        assert {"query", "popularity", "neighbours" if user else "factors"} <= kinds
        for item in slate.items:
            assert sum(reason.weight for reason in item.reasons) == pytest.approx(item.score, abs=1e-9)
        blend = np.array([item.score - reason_of(item.reasons, "query") for item in slate.items])
        assert blend.std() == pytest.approx(1.0 if user else 0.5, rel=1e-3)


def learn(servers: str, store: Path, registry: Registry, until: int) -> tuple[StreamWorker, LearnReport]:
    settings = WorkerSettings(servers, "clicks", store, until_events=until, checkpoint_events=70)
    texts = ItemTexts(registry.catalogue.ids, vectors_of(registry))
    worker = StreamWorker(settings, small_blend(), items=registry.catalogue.ids, texts=lambda: texts)
    return worker, worker.run()


def test_from_the_topic_to_the_answer_over_http(tmp_path: Path) -> None:
    """Stopped and resumed, or in one go: the same state; and the service says what the learner says."""
    events = some_events(400)
    stores = [new_store(tmp_path / name, shop()) for name in ("whole", "parts")]
    for registry in stores:
        publish(registry, "v000001")
    with EmbeddedBroker() as broker:
        servers = broker.bootstrap_servers
        produce(events, log=KafkaLog(servers), topic="clicks", partitions=1)
        _, whole = learn(servers, stores[0].root, stores[0], 400)
        learn(servers, stores[1].root, stores[1], 150)
        worker, parts = learn(servers, stores[1].root, stores[1], 400)
    assert parts.resumed_from == 150
    assert parts.state_sha256 == whole.state_sha256
    learner = worker.state.learner
    source = ReloadingSource(stores[1].root)
    app = create_app(source, QueryTexts(lambda name: WordEncoder()))
    with source.polling(), serve_in_thread(app) as service, httpx.Client(base_url=service.url, timeout=60.0) as client:
        for user in (*learner.user_ids, "nobody"):
            body = {"user_id": user, "k": 10, "explain": True}
            answer = client.post("/v1/recommendations", json=body).json()
            assert [item["item_id"] for item in answer["items"]] == [item for item, _ in learner.top_k(user, 10)]
            assert_same([(item["item_id"], item["score"]) for item in answer["items"]], dict(learner.top_k(user, 10)))
            assert all(sum(r["members"].values()) == pytest.approx(r["weight"]) for r in answer["items"][0]["reasons"])
        history = list(CLICKED[:4])
        answer = client.post("/v1/recommendations", json={"history": history, "k": 10}).json()
        assert_same(
            [(item["item_id"], item["score"]) for item in answer["items"]],
            dict(learner.top_k("stranger", 10, history=history)),
        )
        assert client.get("/v1/model").json()["stream"]["events"] == learner.events


def test_a_store_of_factors_alone_is_served_and_refused_to_the_blend(tmp_path: Path) -> None:
    registry = new_store(tmp_path, shop())
    publish(registry, "v000001")
    with EmbeddedBroker() as broker:
        produce(some_events(200), log=KafkaLog(broker.bootstrap_servers), topic="clicks", partitions=1)
        settings = WorkerSettings(broker.bootstrap_servers, "clicks", tmp_path, until_events=200)
        factors = StreamWorker(settings, MF(n_factors=8, negatives=5), items=registry.catalogue.ids)
        factors.run()
        with pytest.raises(CheckpointMismatch, match=r"kind 'MF'; expected kind 'Blend'.*--learner mf"):
            StreamWorker(settings).run()
    bundle = load_bundle(registry)
    user = factors.state.learner.user_ids[0]
    slate = ask(bundle, Question(user_id=user, k=5, explain=True))
    kinds = {reason.kind for item in slate.items for reason in item.reasons}
    assert len(slate.items) == 5
    assert "factors" in kinds
    assert "neighbours" not in kinds


def test_a_blend_that_is_not_finite_is_not_served(tmp_path: Path) -> None:
    case = served(tmp_path, small_blend())
    snapshot = case.learner.snapshot({})
    assert snapshot.blend is not None
    weights = snapshot.blend.weights.copy()
    weights[1, 2] = np.nan
    publish_snapshot(tmp_path, replace(snapshot, blend=replace(snapshot.blend, weights=weights)), 2, 6)
    with pytest.raises(ArtifactCorrupt, match=r"'blend.weights'.*not finite"):
        load_bundle(Registry.open(tmp_path))


def test_items_that_the_catalogue_lost_leave_the_pairs(tmp_path: Path) -> None:
    case = served(tmp_path, small_blend())
    whole = case.learner.snapshot({})
    kept = [item for item in Registry.open(tmp_path).catalogue if item.item_id not in CLICKED[:10]]
    moved = align(whole, Catalogue([Item("other", "Other", "other"), *kept]))
    assert whole.blend is not None
    assert moved.blend is not None
    assert pairs_by_name(moved.item_ids, moved.blend) == {
        pair: weight
        for pair, weight in pairs_by_name(whole.item_ids, whole.blend).items()
        if not set(pair) & set(CLICKED[:10])
    }
    assert moved.blend.popularity[0] == np.float32(whole.blend.unknown_popularity)


def pairs_by_name(ids: Sequence[str], blend: BlendMembers) -> dict[tuple[str, str], float]:
    rows = np.repeat(np.arange(len(ids)), np.diff(blend.pair_starts)).tolist()
    return {
        (ids[row], ids[item]): float(weight)
        for row, item, weight in zip(rows, blend.pair_items.tolist(), blend.pair_weights, strict=True)
    }
