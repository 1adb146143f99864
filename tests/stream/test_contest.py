"""The contest and its figures: known answers, and the obvious way to count."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import EmptyData, InvalidSetting
from common.events import Interaction
from common.settings import feedback_of
from stream.comparison import curve_of, figures_of, gini, mcnemar, paired_interval, row_of, slices_of, windows_of
from stream.contest import Contender, ContestSettings, Learner, Trial, hold_contest
from stream.learner.blend import Blend
from stream.learner.controls import PeriodicEase, PersonalTop, RandomScores, RiverMF
from stream.learner.mf import MF
from stream.learner.neighbours import Neighbours
from stream.learner.popularity import Popularity
from tests.oracles.contest import ranks_in_lockstep


def liked(*pairs: tuple[str, str]) -> list[Interaction]:
    return [
        Interaction(event_id=str(n), user_id=user, item_id=item, action="click", ts=n)
        for n, (user, item) in enumerate(pairs)
    ]


def some_likes(count: int, seed: int = 0) -> list[Interaction]:
    rng = np.random.default_rng(seed)
    return liked(*((f"u{rng.integers(9)}", f"i{rng.integers(25)}") for _ in range(count)))


def trial_of(ranks: dict[str, list[int]], users: list[int] | None = None) -> Trial:
    count = len(next(iter(ranks.values())))
    zeros = np.zeros(count, dtype=np.int64)
    return Trial(
        ranks={name: np.array(values, dtype=np.int32) for name, values in ranks.items()},
        exposures={name: np.array([3, 0, 1]) for name in ranks},
        answer_us=dict.fromkeys(ranks, 5.0),
        learn_us=dict.fromkeys(ranks, 2.0),
        user=np.arange(count) if users is None else np.array(users),
        item=zeros,
        history=np.arange(count),
        count=zeros,
        inside=zeros.astype(bool),
        candidates=("a", "b", "c"),
        k=10,
        learned=count,
    )


def test_popularity_in_a_contest_is_popularity_by_hand() -> None:
    events = liked(("a", "x"), ("b", "x"), ("a", "y"), ("b", "y"), ("c", "z"), ("c", "x"), ("c", "z"))
    trial = hold_contest(events, {"pop": lambda: Learner(Popularity())}, ContestSettings(warm_share=0.3, k=2))
    # tested from the third like on; counts then: x2, then y1, then y2, then z1; ties against the target
    assert trial.ranks["pop"].tolist() == [2, 1, 3, 2]
    assert trial.count.tolist() == [0, 1, 0, 2]
    assert trial.history.tolist() == [1, 1, 0, 1]
    assert trial.learned == 7


def test_repeats_are_tested_only_where_they_are_allowed() -> None:
    events = liked(("a", "x"), ("a", "x"), ("b", "x"), ("b", "x"))
    contenders = {"pop": lambda: Learner(Popularity())}
    assert len(hold_contest(events, contenders, ContestSettings(warm_share=0.0)).user) == 2
    trial = hold_contest(events, contenders, ContestSettings(warm_share=0.0, repeats=True))
    assert trial.ranks["pop"].tolist() == [1, 1, 1, 1]


def bought(*lines: tuple[str, str, int]) -> list[Interaction]:
    return [
        Interaction(event_id=str(n), user_id=user, item_id=item, action="purchase", ts=ts)
        for n, (user, item, ts) in enumerate(lines)
    ]


def test_a_line_of_a_basket_is_told_from_its_first() -> None:
    events = bought(("a", "x", 1), ("b", "x", 1), ("a", "y", 1), ("a", "x", 2), ("a", "z", 2), ("b", "y", 3))
    settings = ContestSettings(warm_share=0.0, repeats=True)
    trial = hold_contest(events, {"pop": lambda: Learner(Popularity())}, settings)
    assert trial.inside.tolist() == [False, False, True, False, True, False]
    moments = slices_of(trial, "pop")["moment"]
    assert {name: part["evaluated"] for name, part in moments.items()} == {"first": 4, "further": 2}


def test_what_a_user_bought_most_comes_first_by_hand() -> None:
    lines = bought(
        ("a", "x", 1), ("a", "y", 1), ("b", "z", 1), ("b", "w", 1), ("c", "z", 1), ("a", "y", 2), ("a", "y", 2),
        ("a", "w", 2),
    )  # fmt: skip
    plain, earlier = PersonalTop(), PersonalTop(basket_last=True)
    for control in (plain, earlier):
        control.start(["w", "x", "y", "z"])
        for event in lines:
            control.learn(event, feedback_of(event))
    # likes of all: w 2, x 1, y 3, z 2; of a in earlier baskets: x 1, y 1; in the newest: y and w
    shares = np.array([2, 1, 3, 2]) / 4
    np.testing.assert_allclose(plain.scores("a"), shares + np.array([1, 1, 2, 0]), rtol=1e-6)
    assert np.argsort(-earlier.scores("a"), kind="stable").tolist() == [1, 3, 2, 0]
    np.testing.assert_allclose(earlier.scores("nobody"), shares, rtol=1e-6)
    now = lines[-1].ts  # asked at another time, nothing is in the basket
    np.testing.assert_allclose(earlier.scores("a", now), earlier.scores("a"))
    np.testing.assert_allclose(earlier.scores("a", now + 1), plain.scores("a", now + 1))


def test_what_was_rated_low_is_left_out_by_who_is_told_of_it() -> None:
    events = some_likes(80)
    last = events[-1]
    low = Interaction("low", last.user_id, "i3", "rating", ts=200, value=3.0)
    told = Learner(Blend(n_factors=4, negatives=2, places=16, text_dimensions=2), tries=True)
    untold = Learner(Blend(n_factors=4, negatives=2, places=16, text_dimensions=2))
    for learner in (told, untold):
        learner.start([f"i{number}" for number in range(25)])
        for event in (*events, low):
            learner.learn(event, feedback_of(event))
    left_out, rows = np.isneginf(told.scores(last.user_id)), told.ranker.item_row
    assert left_out[rows("i3")]
    assert left_out[rows(last.item_id)]
    assert left_out.sum() == len(told.ranker.seen_rows(last.user_id))
    assert np.isfinite(told.scores("nobody")).all()
    assert np.isfinite(untold.scores(last.user_id)).all()


def test_hidden_items_are_never_learned_and_ranked_among_themselves() -> None:
    events = some_likes(200)
    hidden = frozenset({"i1", "i2", "i3"})
    fresh = Popularity()
    trial = hold_contest(events, {"pop": lambda: Learner(fresh)}, ContestSettings(warm_share=0.5, hidden=hidden))
    assert {trial.candidates[row] for row in trial.item} == hidden
    assert not trial.count.any()
    assert trial.ranks["pop"].max() <= 3
    assert all(fresh.predict_one("nobody", item) == 0.0 for item in hidden)


def test_contenders_do_not_touch_each_other() -> None:
    events = some_likes(150)
    alone = hold_contest(events, {"mf": lambda: Learner(MF(n_factors=4))}, ContestSettings())
    among = hold_contest(
        events,
        {
            "random": RandomScores,
            "river": RiverMF,
            "negatives": lambda: RiverMF(2),
            "ease": lambda: PeriodicEase(20),
            "mf": lambda: Learner(MF(n_factors=4)),
            "blend": lambda: Learner(Blend(n_factors=4, places=32)),
        },
        ContestSettings(),
    )
    np.testing.assert_array_equal(alone.ranks["mf"], among.ranks["mf"])
    again = hold_contest(events, {"random": RandomScores}, ContestSettings())
    np.testing.assert_array_equal(again.ranks["random"], among.ranks["random"])


def baskets(seed: int) -> list[Interaction]:
    """Return likes and low ratings of few users, some at one time."""
    rng = np.random.default_rng(seed)
    return [
        Interaction(
            str(n), f"u{rng.integers(4)}", f"i{rng.integers(12)}", "rating", ts=n // 3, value=float(rng.integers(2, 6))
        )
        for n in range(90)
    ]


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10_000),
    hidden=st.sampled_from([frozenset[str](), frozenset({"i1", "i2", "i5"})]),
    repeats=st.booleans(),
)
def test_one_after_the_other_they_rank_as_in_lockstep(seed: int, hidden: frozenset[str], repeats: bool) -> None:
    events, texts = baskets(seed), {f"i{n}": np.random.default_rng(n).standard_normal(6) for n in range(12)}
    makes: dict[str, Callable[[], Contender]] = {
        "random": RandomScores,
        "popularity": lambda: Learner(Popularity()),
        "blend": lambda: Learner(
            Blend(n_factors=4, negatives=3, places=16, text_dimensions=2, repeats=repeats),
            texts=texts, dislikes=True, tries=True,
        ),
    }  # fmt: skip
    liked_events = sum(feedback_of(event).sign > 0 for event in events)
    ranks, known = ranks_in_lockstep(
        events, {name: make() for name, make in makes.items()}, int(0.2 * liked_events), hidden, repeats
    )
    trial = hold_contest(events, makes, ContestSettings(repeats=repeats, hidden=hidden or None))
    assert {name: found.tolist() for name, found in trial.ranks.items()} == ranks
    found = zip(trial.history.tolist(), trial.count.tolist(), trial.inside.tolist(), strict=True)
    assert list(found) == known


def test_texts_reach_those_who_take_them_only() -> None:
    vectors = {f"i{n}": np.random.default_rng(n).standard_normal(6) for n in range(25)}
    blend = Blend(n_factors=4, places=32)
    hold_contest(some_likes(60), {"blend": lambda: Learner(blend, texts=vectors)}, ContestSettings())
    assert blend.snapshot({}).item_factors.shape[1] == 4 + blend.text_dimensions
    with pytest.raises(InvalidSetting, match="texts for a Neighbours"):
        Learner(Neighbours(), texts=vectors)


def test_ease_finds_what_goes_together() -> None:
    pairs = [(f"u{n}", item) for n in range(40) for item in (("tea", "cake") if n % 2 else ("ale", "crisps"))]
    ease = PeriodicEase(every=80, penalty=1.0)
    ease.start(["tea", "cake", "ale", "crisps"])
    trial = hold_contest(
        [*liked(*pairs, ("new", "ale"), ("new", "crisps"))],
        {"e": lambda: PeriodicEase(80, 1.0)},
        ContestSettings(warm_share=0.99, k=1),
    )
    assert trial.ranks["e"].tolist() == [1]


@given(ranks=st.lists(st.integers(1, 30), min_size=1, max_size=60), k=st.integers(1, 12))
def test_figures_are_what_counting_gives(ranks: list[int], k: int) -> None:
    found = figures_of(np.array(ranks), np.arange(len(ranks)), k)
    hits = [rank for rank in ranks if rank <= k]
    assert found.recall == pytest.approx(len(hits) / len(ranks))
    assert found.ndcg == pytest.approx(sum(1 / math.log2(rank + 1) for rank in hits) / len(ranks))
    assert found.mrr == pytest.approx(sum(1 / rank for rank in hits) / len(ranks))
    assert found.ci95[0] <= found.recall <= found.ci95[1]


def test_gini_of_equal_and_of_one() -> None:
    assert gini(np.array([4, 4, 4])) == pytest.approx(0.0)
    assert gini(np.array([0, 0, 0, 8])) == pytest.approx(0.75)
    assert gini(np.zeros(3, dtype=np.int64)) == 0.0


def test_mcnemar_sees_a_change_and_its_sign() -> None:
    better = [1] * 100 + [20] * 100
    worse = [20] * 100 + [1] * 100
    trial = trial_of({"one": better, "two": worse})
    found = mcnemar(trial, "one", "two", width=100)
    assert found.statistic.tolist() == [100.0, 0.0, -100.0]
    assert (found.better, found.worse) == (1, 1)
    assert mcnemar(trial, "one", "one").statistic.tolist() == [0.0]


def test_windows_slide_by_half() -> None:
    assert windows_of(10, 4) == [slice(0, 4), slice(2, 6), slice(4, 8), slice(6, 10)]
    assert windows_of(3, 10) == [slice(0, 3)]


def test_paired_intervals_know_that_users_repeat() -> None:
    ranks = {"one": [1, 1, 1, 1, 20, 20], "two": [20, 20, 20, 20, 20, 1]}
    mean, wide = paired_interval(trial_of(ranks, [0, 0, 0, 0, 1, 1]), "one", "two")
    _, narrow = paired_interval(trial_of(ranks), "one", "two")
    assert mean == pytest.approx(0.5)
    assert wide[0] < narrow[0] < mean < narrow[1] < wide[1]
    assert paired_interval(trial_of(ranks, [0] * 6), "one", "two")[1] == (-1.0, 1.0)


def test_rows_slices_and_curves_fit_together() -> None:
    trial = trial_of({"one": [1, 20] * 30})
    row = row_of(trial, "one")
    assert (row["recall@10"], row["coverage"], row["us_per_event"]) == (0.5, pytest.approx(2 / 3), 7.0)
    parts = slices_of(trial, "one")["user_history"]
    assert sum(part["evaluated"] for part in parts.values()) == 60
    assert [part["evaluated"] for part in parts.values()] == [1, 5, 15, 39]
    assert slices_of(trial, "one")["item_history"]["51+"]["recall@10"] is None
    curve = curve_of(trial, "one", 4)
    assert np.mean([point["recall"] for point in curve]) == pytest.approx(0.5, abs=0.02)


def test_what_cannot_be_held_is_said() -> None:
    with pytest.raises(EmptyData, match="no liked event"):
        hold_contest([], {"pop": lambda: Learner(Popularity())}, ContestSettings())
    with pytest.raises(EmptyData, match="nothing to test"):
        hold_contest(
            liked(("a", "x"), ("a", "x")), {"p": lambda: Learner(Popularity())}, ContestSettings(warm_share=0.5)
        )
    with pytest.raises(InvalidSetting, match="warm_share 1"):
        ContestSettings(warm_share=1.0)
    used = Popularity()
    used.learn_one("a", "other")
    with pytest.raises(InvalidSetting, match="other items"):
        hold_contest(some_likes(5), {"used": lambda: Learner(used)}, ContestSettings())
    for make in (lambda: PeriodicEase(0), lambda: RiverMF(-1)):
        with pytest.raises(InvalidSetting):
            make()
