"""Slices, sampled ranks, coverage and item-kNN against plain loops, and a data set whose right order is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import EmptyData
from common.ids import rng_for
from server.evaluate import (
    NEGATIVES,
    Ranking,
    at_random,
    build_test,
    by_popularity,
    by_text,
    measure,
    quality_of,
    rank,
)
from server.neighbours import by_neighbours, fit_neighbours
from server.slices import QUANTILES, by_slice, client_slice, is_head, slices_of
from tests.oracles.quality import (
    client_recalls,
    head_slowly,
    metrics_of,
    neighbour_score,
    rank_among,
    replay,
    sampled_recall_expected,
    shown_slowly,
    slices_slowly,
)
from tests.oracles.ranking import TOP

ITEMS = 25
Clicks = list[tuple[str, int]]
clicks = st.lists(st.tuples(st.sampled_from("uvwx"), st.integers(0, ITEMS - 1)), max_size=60)
hidden_rows = st.sets(st.integers(0, ITEMS - 1), max_size=12)


def vectors(seed: int) -> np.ndarray:
    return rng_for("slice-vectors", seed).standard_normal((ITEMS, 4)).astype(np.float32)


def blocks(users: int = 60, groups: int = 3, each: int = 24, seed: int = 0) -> tuple[Clicks, Clicks, np.ndarray]:
    """Return clicks of users who each like one group of items, popular ones more, and vectors that know the groups.

    The right order is known: chance, then popularity, then either of what knows groups.
    """
    rng = rng_for("blocks", seed)
    weights = 1.0 / np.arange(1, each + 1)
    train: Clicks = []
    test: Clicks = []
    for user in range(users):
        liked = rng.choice(each, size=12, replace=False, p=weights / weights.sum()) + each * (user % groups)
        rng.shuffle(liked)
        train += [(f"u{user}", int(row)) for row in liked[:6]]
        test += [(f"u{user}", int(row)) for row in liked[6:]]
    groups_of = np.repeat(np.eye(groups, dtype=np.float32), each, axis=0)
    noise = rng.standard_normal((groups * each, 8)).astype(np.float32)
    return train, test, np.hstack([groups_of, 0.1 * noise])


# -- known answers ---------------------------------------------------------------------------------------------------


def test_the_rows_come_in_the_order_that_is_known() -> None:
    train, test, known = blocks()
    events = build_test(train, test, len(known))
    recall = {
        "random": measure(events, at_random(events, 0)),
        "popularity": measure(events, by_popularity(events)),
        "text": measure(events, by_text(events, known)),
        "item_knn": measure(events, by_neighbours(events, fit_neighbours(train, events.candidates))),
    }
    assert recall["random"].ci95[1] < recall["popularity"].ci95[0]
    assert recall["popularity"].ci95[1] < min(recall["text"].ci95[0], recall["item_knn"].ci95[0])
    assert recall["text"].ci95[1] < recall["item_knn"].ci95[0]  # which knows groups and what is popular in them


def test_only_content_reaches_cold_items() -> None:
    train, test, known = blocks()
    hidden = {3, 4, 27, 28, 50, 51, 60}
    events = build_test(train, test, len(known), hidden)
    visible = [(user, row) for user, row in train if row not in hidden]
    among = {
        "popularity": rank(events, by_popularity(events)),
        "item_knn": rank(events, by_neighbours(events, fit_neighbours(visible, events.candidates))),
        "text": rank(events, by_text(events, known)),
    }
    cold = {name: slices_of(events, ranking)["cold_in_catalogue"] for name, ranking in among.items()}
    assert cold["popularity"]["recall@10"] == cold["item_knn"]["recall@10"] == 0.0
    assert isinstance(cold["text"]["recall@10"], float)
    assert 0.4 < cold["text"]["recall@10"]  # ten of the twenty or so of its group that are unseen


# -- against plain loops ---------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(clicks, clicks, hidden_rows, st.integers(0, 99))
def test_slices_equal_the_plain_loops(train: Clicks, test: Clicks, hidden: set[int], seed: int) -> None:
    try:
        events = build_test(train, test, ITEMS, hidden)
    except EmptyData:
        return
    ranking = rank(events, by_text(events, vectors(seed)))
    slow = slices_slowly(train, test, hidden, vectors(seed).tolist())
    assert ranking.full.tolist() == slow["all"]
    assert quality_of(ranking.full, events.user).mrr == pytest.approx(metrics_of(slow["all"])[2])
    for name, fast in slices_of(events, ranking).items():
        assert fast["events"] == len(slow[name])
        if slow[name]:
            assert (fast["recall@10"], fast["ndcg@10"], fast["mrr@10"]) == pytest.approx(metrics_of(slow[name]))
        else:
            assert fast["recall@10"] is None


@settings(max_examples=40)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=20))
def test_the_head_holds_half_of_the_clicks(counts: list[int]) -> None:
    head = is_head(np.array(counts, dtype=np.float64))
    assert set(np.flatnonzero(head)) == head_slowly(dict(enumerate(counts)))


@settings(max_examples=20)
@given(clicks, clicks, st.integers(0, 9))
def test_coverage_counts_what_was_ever_shown(train: Clicks, test: Clicks, seed: int) -> None:
    try:
        events = build_test(train, test, ITEMS)
    except EmptyData:
        return
    ranking = rank(events, by_text(events, vectors(seed)))
    expected = shown_slowly(train, test, vectors(seed).tolist())
    assert set(events.candidates[ranking.shown].tolist()) == expected
    assert ranking.coverage == pytest.approx(len(expected) / len(events.candidates))


@settings(max_examples=25)
@given(clicks, clicks, st.sampled_from([None, 2.0, 15.0]), st.sampled_from([None, 4.0]))
def test_neighbours_equal_the_plain_loops(
    train: Clicks, test: Clicks, gap_decay: float | None, age_decay: float | None
) -> None:
    try:
        events = build_test(train, test, ITEMS)
    except EmptyData:
        return
    similarity = fit_neighbours(train, events.candidates, gap_decay=gap_decay)
    scores = by_neighbours(events, similarity, age_decay=age_decay)(slice(0, len(events)))
    for row, (_, _, own) in enumerate(replay(train, test)):
        expected = [neighbour_score(train, own, int(each), gap_decay, age_decay) for each in events.candidates]
        np.testing.assert_allclose(scores[row], expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.booleans()), min_size=1, max_size=60),
    st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 3)),
)
def test_the_spread_over_clients_equals_the_plain_loops(found: list[tuple[str, bool]], owner: dict[str, int]) -> None:
    names = tuple(dict.fromkeys(user for user, _ in found))
    user = np.array([names.index(each) for each, _ in found])
    ranks = np.array([1 if hit else 99 for _, hit in found])
    empty = np.zeros(0)
    events = build_test([("u", 0)], [("u", 1)], ITEMS)
    events = type(events)(events.candidates, user, user, empty, [], events.popularity, names)
    spread = client_slice(events, Ranking(ranks, ranks, ranks, empty, 0.0), owner)
    recalls = client_recalls([each for each, _ in found], [float(hit) for _, hit in found], owner)
    assert spread["clients"] == len(recalls)
    if recalls:
        worst = recalls[: max(1, round(0.1 * len(recalls)))]
        assert spread["worst_10%"] == pytest.approx(sum(worst) / len(worst))
        assert spread["p50"] == pytest.approx(float(np.median(recalls)))
        assert [spread[f"p{each}"] for each in QUANTILES] == sorted(spread[f"p{each}"] for each in QUANTILES)  # type: ignore[type-var]  # floats
    else:
        assert spread["worst_10%"] is None


# -- the sampled metric ----------------------------------------------------------------------------------------------


def crowd() -> tuple[Clicks, Clicks, np.ndarray]:
    """Return clicks on 400 items, so that ninety-nine are a sample."""
    rng = rng_for("crowd")
    train = [(f"u{user}", int(row)) for user in range(20) for row in rng.choice(400, 5, replace=False)]
    test = [(f"u{user}", int(row)) for user in range(20) for row in rng.choice(400, 30, replace=False)]
    return train, test, rng.standard_normal((400, 8)).astype(np.float32)


def test_sampled_recall_is_what_chance_predicts_from_the_full_ranks() -> None:
    train, test, known = crowd()
    events = build_test(train, test, len(known))
    unseen = [len(events.candidates) - len(seen) for seen in events.seen]
    scorer = by_text(events, known)
    full = rank(events, scorer).full
    expected = sampled_recall_expected(full.tolist(), unseen, NEGATIVES)
    found = [float((rank(events, scorer, seed).sampled <= TOP).mean()) for seed in range(20)]
    spread = np.std(found) / np.sqrt(len(found))
    assert np.mean(found) == pytest.approx(expected, abs=4 * spread)
    assert np.mean(found) > 2 * (full <= TOP).mean()  # why it is labelled as inflated


def test_sampled_candidates_are_the_same_for_every_row_and_another_seed_draws_others() -> None:
    train, test, known = crowd()
    events = build_test(train, test, len(known))
    one, again, negated, other = (
        rank(events, by_text(events, vector), seed).sampled
        for vector, seed in ((known, 0), (2 * known, 0), (known, 0), (known, 1))
    )
    np.testing.assert_array_equal(one, again)
    np.testing.assert_array_equal(one, negated)
    assert not np.array_equal(one, other)


@settings(max_examples=20)
@given(clicks, clicks, st.integers(0, 9))
def test_with_fewer_candidates_than_a_sample_it_is_the_full_rank(train: Clicks, test: Clicks, seed: int) -> None:
    try:
        events = build_test(train, test, ITEMS)
    except EmptyData:
        return
    ranking = rank(events, by_text(events, vectors(seed)), seed)
    np.testing.assert_array_equal(ranking.sampled, ranking.full)


# -- traps -----------------------------------------------------------------------------------------------------------


def test_a_model_that_answers_nan_is_last_everywhere_and_shows_nothing_of_it() -> None:
    train, test, known = blocks()
    events = build_test(train, test, len(known), {1, 2, 3})
    ranking = rank(events, by_text(events, np.full_like(known, np.nan)))
    assert slices_of(events, ranking)["cold"]["recall@10"] == 0.0 or (ranking.among_cold <= 3).all()
    assert ranking.hits.sum() <= sum(len(events.candidates) - len(seen) <= TOP for seen in events.seen)
    assert not ranking.shown.any()


def test_a_hidden_item_stays_in_the_history_and_counts_for_nothing() -> None:
    events = build_test([("u", 0), ("u", 1), ("v", 1)], [("u", 2)], ITEMS, {1})
    assert events.history[0, :2].tolist() == [1, 0]
    assert events.popularity.tolist() == [1.0, 0.0, 0.0]


def test_slices_turn_inside_out() -> None:
    rows = {"a": {"cold": {"x": 1}, "tail": {"x": 2}}, "b": {"cold": {"x": 3}}}
    assert by_slice(rows) == {"cold": {"a": {"x": 1}, "b": {"x": 3}}, "tail": {"a": {"x": 2}}}


def test_rank_among_counts_ties_against_the_target() -> None:
    assert rank_among({0: 1.0, 1: 1.0, 2: 0.5}, 0, [0, 1, 2]) == 2
