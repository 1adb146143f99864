"""Predict, then learn: the protocol on boards whose answer is known, and on real data."""

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import CheckpointMismatch, EmptyData, InvalidSetting
from common.events import Interaction
from stream.learner.base import ArrayRanker
from stream.learner.mf import MF
from stream.learner.popularity import Popularity
from stream.progressive import Progressive, Protocol, clustered_interval, evaluate_progressively


def click(user: str, item: str, number: int = 0) -> Interaction:
    return Interaction(f"{user}-{item}-{number}", user, item, "click", number)


def board(count: int, seed: int = 0) -> list[tuple[str, str]]:
    rng = np.random.default_rng(seed)
    return [(f"u{rng.integers(12)}", f"i{rng.integers(25)}") for _ in range(count)]


def test_popularity_on_a_known_board() -> None:
    """By hand: ties count against the target, seen items are out, a repeat and an unknown item are not hits."""
    model = Popularity()
    model.add_items(["a", "b", "c"])
    run = Progressive({"popularity": model}, Protocol(k=1))
    assert run.step("ann", "a", 1.0) == 3  # all counts 0: both others tie
    assert run.step("bob", "a", 1.0) == 1  # a leads alone
    assert run.step("ann", "b", 1.0) == 2  # a is seen, b ties with c
    assert run.step("ann", "a", 1.0) is None  # a repeat
    assert run.step("cid", "new", 1.0) == 4  # not known yet: below everything
    row = run.rows()["popularity"]
    assert (run.liked, run.evaluated) == (5, 4)
    assert row.recall == row.mrr == row.ndcg == 1 / 4
    # the lists were a, a, b; "new" was missed before a list was made
    assert row.coverage == 2 / 4


def test_repeats_are_tested_where_they_are_allowed() -> None:
    """By hand: what was liked before stays in the list, and is tested."""
    model = Popularity()
    model.add_items(["a", "b", "c"])
    run = Progressive({"popularity": model}, Protocol(k=1).with_repeats())
    assert run.step("ann", "a", 1.0) == 3
    assert run.step("ann", "b", 1.0) == 3  # a is above, c ties
    assert run.step("ann", "a", 1.0) == 2  # a repeat, level with b
    assert run.step("ann", "a", 1.0) == 1
    assert run.rows()["popularity"].recall == 1 / 4
    told = run.protocol
    assert told.tests_repeats
    assert "tested too" in told.repeats
    assert "left out" not in told.candidates
    assert not Protocol().tests_repeats
    masked = Progressive({"popularity": Popularity()}, Protocol(k=1))
    with pytest.raises(CheckpointMismatch, match="tested too"):
        masked.load_state(run.state_arrays())


def test_discounts() -> None:
    model = Popularity()
    model.learn_many(["x", "y", "z", "x", "y"], ["a", "a", "a", "b", "b"])
    model.learn_one("x", "c")
    run = Progressive({"popularity": model}, Protocol(k=10))
    assert run.step("new", "c", 1.0) == 3
    row = run.rows()["popularity"]
    assert row.mrr == pytest.approx(1 / 3)
    assert row.ndcg == pytest.approx(1 / np.log2(4))


def test_warm_events_and_every() -> None:
    run = Progressive({"popularity": Popularity()}, Protocol(warm_events=10, every=3))
    ranks = [run.step(f"u{n}", f"i{n}", 1.0) for n in range(30)]
    assert [n for n, rank in enumerate(ranks) if rank is not None] == list(range(10, 30, 3))


def test_a_test_never_sees_its_own_event() -> None:
    """A contender that was told the answer first would have a better rank than one that was not."""
    events = [click(user, item, n) for n, (user, item) in enumerate(board(200))]
    report = evaluate_progressively(events, {"popularity": Popularity()}, warm_share=0.0)
    counts: dict[str, int] = {}
    seen: dict[str, set[str]] = {}
    items = sorted({event.item_id for event in events})
    hits = tested = 0
    for event in events:
        mine = seen.setdefault(event.user_id, set())
        if event.item_id not in mine:
            tested += 1
            rivals = [i for i in items if i not in mine and i != event.item_id]
            hits += 1 + sum(counts.get(i, 0) >= counts.get(event.item_id, 0) for i in rivals) <= 10
        counts[event.item_id] = counts.get(event.item_id, 0) + 1
        mine.add(event.item_id)
    row = report.rows["popularity"]
    assert row.evaluated == tested
    assert row.recall == pytest.approx(hits / tested)


def test_evaluating_changes_nothing_of_what_is_learned() -> None:
    tested, taught = MF(n_factors=8, negatives=4), MF(n_factors=8, negatives=4)
    run = Progressive({"ours": tested}, Protocol())
    for user, item in board(150):
        run.step(user, item, 1.0)
        taught.learn_one(user, item)
    assert tested.state_sha256() == taught.state_sha256()


def test_it_goes_on_from_its_state_as_if_never_stopped() -> None:
    def contenders() -> dict[str, ArrayRanker]:
        return {"ours": MF(n_factors=8, negatives=4), "popularity": Popularity()}

    whole, first = (Progressive(contenders(), Protocol(warm_events=20)) for _ in range(2))
    events = board(600)
    for user, item in events:
        whole.step(user, item, 1.0)
    for user, item in events[:313]:
        first.step(user, item, 1.0)
    second = Progressive(contenders(), Protocol(warm_events=20))
    for name, learner in second.contenders.items():
        learner.load_state(first.contenders[name].state_arrays())
    assert second.load_state(first.state_arrays())
    for user, item in events[313:]:
        second.step(user, item, 1.0)
    for name, array in whole.state_arrays().items():
        np.testing.assert_array_equal(array, second.state_arrays()[name], err_msg=name)


def test_another_protocol_is_refused() -> None:
    state = Progressive({"popularity": Popularity()}, Protocol()).state_arrays()
    with pytest.raises(CheckpointMismatch, match="warm_events"):
        Progressive({"popularity": Popularity()}, Protocol(warm_events=5)).load_state(state)
    with pytest.raises(CheckpointMismatch, match=r"ours\.sums"):
        Progressive({"ours": Popularity()}, Protocol()).load_state(state)


def test_another_river_costs_the_detector_alone() -> None:
    run = Progressive({"popularity": Popularity()}, Protocol())
    for user, item in board(60):
        run.step(user, item, 1.0)
    state = {**run.state_arrays(), "river": np.frombuffer(b"0.0.1", dtype=np.uint8)}
    other = Progressive({"popularity": Popularity()}, Protocol())
    assert not other.load_state(state)
    assert other.evaluated == run.evaluated


def test_a_change_of_taste_raises_an_alarm() -> None:
    run = Progressive({"popularity": Popularity()}, Protocol())
    run.contenders["popularity"].add_items([f"i{n}" for n in range(200)])
    for turn in range(2_000):
        run.step(f"u{turn}", f"i{turn % 3}", 1.0)
    before = run.drift_alarms
    for turn in range(500):
        run.step(f"v{turn}", f"i{100 + turn % 97}", 1.0)
    assert run.drift_alarms > before


@given(st.integers(2, 60), st.integers(0, 2**32))
def test_the_interval_is_the_bootstraps_over_users(users: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    tested = rng.integers(1, 30, users)
    hits = rng.binomial(tested, rng.beta(2, 5, users))
    low, high = clustered_interval(hits, tested)
    draws = rng.multinomial(users, np.full(users, 1 / users), 2_000)
    shares = (draws @ hits) / (draws @ tested)
    assert 0.0 <= low <= hits.sum() / tested.sum() <= high <= 1.0
    if low > 0.0 and high < 1.0 and users >= 20:
        assert (high - low) / 2 == pytest.approx(1.96 * shares.std(), rel=0.2)


def test_the_interval_of_one_user_says_nothing() -> None:
    assert clustered_interval(np.array([3]), np.array([5])) == (0.0, 1.0)
    assert clustered_interval(np.zeros(0), np.zeros(0)) == (0.0, 1.0)


def test_nothing_tested_shows_no_figures() -> None:
    run = Progressive({"popularity": Popularity()}, Protocol(warm_events=10))
    run.step("u", "i", 1.0)
    row = run.rows()["popularity"].as_json()
    assert row["recall@10"] is row["ci95"] is None
    assert row["evaluated"] == 0


def test_settings_that_cannot_be() -> None:
    with pytest.raises(EmptyData):
        evaluate_progressively([Interaction("e", "u", "i", "impression", 0)], {"p": Popularity()})
    with pytest.raises(InvalidSetting, match="warm_share"):
        evaluate_progressively([click("u", "i")], {"p": Popularity()}, warm_share=1.0)
    with pytest.raises(InvalidSetting, match="k 0"):
        Protocol(k=0)
    with pytest.raises(InvalidSetting, match="no contender"):
        Progressive({}, Protocol())


def movielens(shared_data: Path) -> list[Interaction]:
    path = shared_data / "movielens-100k" / "ml-100k.inter"
    if not path.is_file():
        pytest.skip("MovieLens-100K is not in shared/data")
    with path.open(encoding="utf-8") as lines:
        rows = list(csv.reader(lines, delimiter="\t"))[1:]
    rows.sort(key=lambda row: int(row[3]))
    return [
        Interaction(f"e{number}", user, item, "rating", 1000 * int(ts), float(stars))
        for number, (user, item, stars, ts) in enumerate(rows)
    ]


def test_movielens_100k_beats_popularity_and_the_reference(shared_data: Path) -> None:
    contenders: dict[str, ArrayRanker] = {"ours": MF(), "popularity": Popularity()}
    report = evaluate_progressively(movielens(shared_data), contenders)
    ours, popular = report.rows["ours"], report.rows["popularity"]
    assert (report.learned, ours.evaluated) == (55_375, 44_300)
    assert ours.recall >= 0.175
    assert ours.ndcg >= 0.088
    assert 0.08 < popular.recall < 0.09
    assert ours.ci95[0] > popular.ci95[1]
    assert ours.coverage > 0.4
