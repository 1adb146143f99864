"""Slates that explore: their probabilities are exact, so their log says what another policy would have earned."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import permutations
from typing import Any

import httpx
import numpy as np
import pytest

from anabranch.recommender import Recommender
from common.errors import InvalidSetting
from common.ids import rng_for
from server.registry import Registry
from server.serving.app import Answering, create_app
from server.serving.bundle import load_bundle
from server.serving.diversity import pool_size
from server.serving.exploration import explored
from server.serving.query import QueryTexts
from server.serving.recommend import Question
from server.serving.reload import FixedSource
from server.serving.run import serve_in_thread
from server.serving.slate_log import SlateLog
from tests.server.serving.conftest import board_store
from tests.server.serving.stores import WordEncoder


def probability_slowly(slate: tuple[int, ...], pool: int, epsilon: float) -> float:
    """Return how probable a slate is, by the definition."""
    probability, left = 1.0, list(range(pool))
    for place in slate:
        probability *= sum(
            share for share, allowed in ((1.0 - epsilon, left[:1]), (epsilon / len(left), left)) if place in allowed
        )
        left.remove(place)
    return probability


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0])
def test_every_slate_comes_as_often_as_its_propensities_say(epsilon: float) -> None:
    pool, k, draws = 4, 2, 20_000
    rng, seen, said = rng_for("slates", 1), Counter[tuple[int, ...]](), {}
    for _ in range(draws):
        places, propensities = explored(pool, k, epsilon, rng)
        slate = tuple(places.tolist())
        seen[slate] += 1
        said[slate] = float(propensities.prod())
    expected = {slate: probability_slowly(slate, pool, epsilon) for slate in permutations(range(pool), k)}
    assert sum(expected.values()) == pytest.approx(1.0)
    assert set(seen) == {slate for slate, probability in expected.items() if probability > 0.0}
    for slate, count in seen.items():
        assert said[slate] == pytest.approx(expected[slate], rel=1e-12)
        spread = np.sqrt(expected[slate] * (1 - expected[slate]) / draws)
        assert abs(count / draws - expected[slate]) <= 4.5 * spread


def test_a_pool_that_is_too_small_is_shown_whole() -> None:
    places, propensities = explored(2, 5, 0.5, rng_for("slates", 2))
    assert sorted(places.tolist()) == [0, 1]
    assert propensities[-1] == 1.0
    assert not len(explored(0, 5, 0.5, rng_for("slates", 3))[0])


def reward_of(user: str, item: str) -> float:
    """Return how probable a click is: the world's secret."""
    return 0.1 + 0.15 * (int(item) % 5) + 0.02 * int(user[1:])


Policy = Callable[[list[str]], list[str]]
"""From the pool, best first, to what it would show in the two slots."""
POLICIES: dict[str, Policy] = {
    "the best two": lambda pool: pool[:2],
    "the third and the best": lambda pool: [pool[2], pool[0]],
    "the last of the pool": lambda pool: pool[:-3:-1],
    "what pleases least": lambda pool: sorted(pool, key=lambda item: int(item) % 5)[:2],
}


@dataclass(frozen=True)
class Logged:
    """What a service logged, the clicks that followed, and each user's items in question, best first."""

    lines: list[dict[str, Any]]
    clicked: set[tuple[str, str]]
    pools: dict[str, list[str]]

    def value_by_ips(self, policy: Policy) -> tuple[float, float]:
        """Return the estimate of clicks a slate, and its standard error."""
        worth = []
        for line in self.lines:
            shown = [item["item_id"] for item in line["items"]]
            # the other policy is deterministic: it would have shown this slate, or not
            weight = (policy(self.pools[line["user_id"]]) == shown) / np.prod(
                [one["propensity"] for one in line["items"]]
            )
            worth.append(weight * sum((line["request_id"], item) in self.clicked for item in shown))
        return float(np.mean(worth)), float(np.std(worth, ddof=1) / np.sqrt(len(worth)))


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Logged:
    folder = tmp_path_factory.mktemp("explored")
    registry = board_store(folder / "store")
    numbers, users, allow = (
        iter(range(1_000_000)),
        [f"u{number}" for number in range(4)],
        tuple(map(str, range(10, 15))),
    )
    source, log = FixedSource(registry, load_bundle(registry)), SlateLog(folder / "slates")
    answering = Answering(source, QueryTexts(lambda _: WordEncoder()), lambda: f"r{next(numbers)}", clock=lambda: 1)
    pools = {
        user: [item["item_id"] for item in answering.slate(Question(user, k=5, allow=allow))["items"]] for user in users
    }
    clicked: set[tuple[str, str]] = set()
    world = rng_for("world")
    for number in range(3_000):
        question = Question(users[number % len(users)], k=2, allow=allow, explore=0.9)
        slate = answering.slate(question)
        log.add(1, {**asdict(question), "query": False}, slate)
        for item in slate["items"]:
            if world.random() < reward_of(str(question.user_id), item["item_id"]):
                clicked.add((slate["request_id"], item["item_id"]))
    (file,) = (folder / "slates").iterdir()
    return Logged([json.loads(line) for line in file.read_text().splitlines()], clicked, pools)


@pytest.mark.parametrize("name", list(POLICIES))
def test_the_log_tells_what_another_policy_would_have_earned(logged: Logged, name: str) -> None:
    """Inverse propensity scoring over the slate log meets the known value, within its own interval."""
    policy = POLICIES[name]
    assert {(line["policy"], line["explore"]) for line in logged.lines} == {("epsilon-greedy", 0.9)}
    known = np.mean([sum(reward_of(user, item) for item in policy(pool)) for user, pool in logged.pools.items()])
    estimate, error = logged.value_by_ips(policy)
    assert abs(estimate - known) <= 3.0 * error
    assert error < 0.12


def test_the_plain_mean_of_the_log_would_be_wrong(logged: Logged) -> None:
    plain = len(logged.clicked) / len(logged.lines)
    missed = []
    for policy in POLICIES.values():
        known = np.mean([sum(reward_of(user, item) for item in policy(pool)) for user, pool in logged.pools.items()])
        missed.append(abs(plain - known) / logged.value_by_ips(policy)[1])
    assert max(missed) > 3.0


def test_a_question_or_the_service_asks_to_explore(store: Registry) -> None:
    app = create_app(
        FixedSource(store, load_bundle(store)), QueryTexts(lambda name: WordEncoder()), new_id=lambda: "r1", explore=0.5
    )
    ask = "/v1/recommendations"
    with serve_in_thread(app) as running, httpx.Client(base_url=running.url, timeout=60.0) as client:
        set_so = client.post(ask, json={"k": 3}).json()
        assert set_so["policy"] == "epsilon-greedy"
        assert client.post(ask, json={"k": 3}).json() == set_so  # the id decides
        assert client.get("/v1/users/u0/recommendations").json()["policy"] == "epsilon-greedy"
        quiet = client.post(ask, json={"k": 3, "explore": 0.0}).json()
        assert quiet["policy"] == "deterministic"
        assert {item["propensity"] for item in quiet["items"]} == {1.0}
        for wrong in ({"explore": 1.5}, {"explore": -0.1}, {"explore": "x"}):
            refused = client.post(ask, json={"k": 3, **wrong})
            assert refused.status_code == 422
            assert refused.headers["content-type"] == "application/problem+json"


def test_what_is_diverse_comes_first_where_a_slate_explores_among_it(store: Registry) -> None:
    here = Recommender(load_bundle(store), QueryTexts(lambda name: WordEncoder()), new_id=lambda: "r9")
    plain = [item.item_id for item in here.recommend("u0", k=4).items]
    diverse = [item.item_id for item in here.recommend("u0", k=4, diversity=0.9).items]
    # so seldom explored that this slate is not
    both = here.recommend("u0", k=4, diversity=0.9, explore=1e-9)
    assert [item.item_id for item in both.items] == diverse != plain
    assert both.policy == "epsilon-greedy"
    anything = here.recommend("u0", k=16, diversity=0.9, explore=1.0)
    assert len({item.item_id for item in anything.items}) == 16


def test_python_explores_as_the_service_does(store: Registry) -> None:
    bundle = load_bundle(store)
    here = Recommender(bundle, QueryTexts(lambda name: WordEncoder()), new_id=lambda: "r7")
    slate = here.recommend("u0", k=4, explore=1.0)
    assert slate.policy == "epsilon-greedy"
    left = [len(bundle.items) - 4 - place for place in range(4)]  # u0 liked four
    assert max(left) <= pool_size(4)
    assert [item.propensity for item in slate.items] == pytest.approx([1.0 / count for count in left])
    assert here.recommend("u0", k=4, explore=1.0) == slate
    with pytest.raises(InvalidSetting, match="explore 2"):
        here.recommend("u0", explore=2.0)
