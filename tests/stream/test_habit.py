"""What users do again: kinds and steps against slow twins, and a shop in which people re-buy."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stream.learner.blend import Blend
from stream.learner.habit import KINDS, VISIT_MS, Visits, kind_of, weigh_habits
from stream.learner.kernels import SeenLog
from tests.oracles.habits import kinds_of, moved_worth

HOUR = 60 * 60 * 1000
_likes = st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from([0, 1, HOUR // 2, HOUR, 5 * HOUR])), min_size=1)


def shopper(**settings: object) -> Blend:
    given = {"n_factors": 8, "negatives": 4, "places": 32, "text_dimensions": 4, "repeats": True, "seed": 3, **settings}
    return Blend(**given)  # type: ignore[arg-type]  # settings of several types


@given(likes=_likes)
def test_an_item_is_of_the_kind_that_the_slow_twin_says(likes: list[tuple[str, int]]) -> None:
    model, now, times = shopper(), 0, []
    for item, later in likes:
        now += later
        times.append(now)
        model.learn_one("ann", item, 1.0, {"ts": now})
    state = model.state_arrays()
    number = int(state["user.habit.number"][0])
    found = {
        model.item_ids[row]: kind_of(number - int(last), int(times_liked))
        for row, last, times_liked in zip(
            state["log.item"], state["log.habit.last"], state["log.habit.times"], strict=True
        )
    }
    assert found == kinds_of([item for item, _ in likes], times)


@given(likes=_likes, later=st.sampled_from([None, 0, VISIT_MS, VISIT_MS + 1, 5 * HOUR]))
def test_habits_are_those_of_the_time_of_the_question(likes: list[tuple[str, int]], later: int | None) -> None:
    """With a worth of its own for each kind, what habit adds names the kind; members and weights say nothing here."""
    model, now, times = shopper(weight_lr=0.0), 0, []
    for item, after in likes:
        now += after
        times.append(now)
        model.learn_one("ann", item, 1.0, {"ts": now})
    state = model.state_arrays()
    state["fixed.weights"] = np.zeros_like(state["fixed.weights"])
    state["fixed.habit.worth"] = np.tile(1.0 + np.arange(KINDS), (len(state["fixed.habit.worth"]), 1))
    model.load_state(state)
    at = None if later is None else now + later
    expected = kinds_of([item for item, _ in likes], times, at)
    found = dict(zip(model.item_ids, model.scores("ann", at=at) - 1.0, strict=True))
    assert found == expected
    assert dict(model.top_k("ann", 9, exclude_seen=False, at=at)) == {item: kind + 1 for item, kind in expected.items()}


def test_a_time_not_long_after_the_last_like_is_no_time_at_all() -> None:
    model = shopper()
    for place, item in enumerate("abcabdabe"):
        model.learn_one("ann", item, 1.0, {"ts": place * HOUR})
    before, plain = model.state_sha256(), model.scores("ann")
    np.testing.assert_array_equal(model.scores("ann", at=8 * HOUR + VISIT_MS), plain)
    assert not np.array_equal(model.scores("ann", at=8 * HOUR + VISIT_MS + 1), plain)
    for user, history in (("ann", ["a", "b"]), ("nobody", None)):  # a history does not say when
        np.testing.assert_array_equal(model.scores(user, history, at=99 * HOUR), model.scores(user, history))
    np.testing.assert_array_equal(model.scores("ann"), plain)
    assert model.state_sha256() == before


def test_without_times_nothing_is_learned_about_visits_that_open() -> None:
    model, fresh = shopper(), shopper().state_arrays()
    for place in range(60):
        model.learn_one(f"u{place % 4}", f"i{place % 7}")
    state = model.state_arrays()
    for name in ("fixed.weights", "fixed.habit.worth"):
        np.testing.assert_array_equal(state[name][-1], fresh[name][-1])
        assert not np.array_equal(state[name][:-1], fresh[name][:-1])


@given(seed=st.integers(0, 10_000), n=st.integers(1, 12), q=st.sampled_from([0.0, 0.25, 0.5, 1.0]), opens=st.booleans())
def test_what_kinds_are_worth_moves_down_the_slope(seed: int, n: int, q: float, opens: bool) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.permutation(n)[: rng.integers(n + 1)]
    last, times = rng.integers(12, size=len(rows)), rng.integers(1, 8, size=len(rows))
    log = SeenLog(rows.astype(np.int32), np.arange(-1, len(rows) - 1))
    visits = Visits(
        np.array([12], dtype=np.int32), np.zeros(1, dtype=np.int64), last.astype(np.int32), times.astype(np.int32)
    )
    kinds: list[int | None] = [None] * n
    for row, one, often in zip(rows, last, times, strict=True):
        kinds[row] = kind_of(12 + opens - int(one), int(often))
    base, worth, sums, item = rng.standard_normal(n), rng.standard_normal(KINDS), 1 + rng.random(KINDS), rng.integers(n)
    expected = moved_worth(base, kinds, int(item), worth, sums, 0.3, q)
    total = base + np.array([0.0 if kind is None else worth[kind] for kind in kinds])
    weigh_habits(log, visits, 0, len(rows) - 1, int(opens), worth, sums, total.astype(np.float32), int(item), 0.3, q)
    np.testing.assert_allclose(worth, expected, rtol=1e-3, atol=1e-4)


def test_what_was_bought_last_time_comes_again_and_what_is_in_the_basket_does_not() -> None:
    """Ten people buy their own three things out of thirty, once each visit."""
    model, rng, now = shopper(), np.random.default_rng(0), 0
    model.add_items([f"i{number}" for number in range(30)])
    for _ in range(20):
        for person in range(10):
            now += 24 * HOUR
            for item in rng.permutation(3):
                model.learn_one(f"p{person}", f"i{3 * person + item}", 1.0, {"ts": now})
    model.learn_one("p4", "i12", 1.0, {"ts": now + 24 * HOUR})
    best = {item for item, _ in model.top_k("p4", 2, exclude_seen=False)}
    assert best == {"i13", "i14"}
    later = now + 48 * HOUR
    usual = [item for item, _ in model.top_k("p4", 3, exclude_seen=False, at=later)]
    assert set(usual) == {"i12", "i13", "i14"}
    for place, item in enumerate(usual, start=1):
        assert model.rank_of("p4", model.item_ids.index(item), 3, exclude_seen=False, at=later)[0] == place


def test_many_events_with_their_times_are_learned_as_one_by_one() -> None:
    rng = np.random.default_rng(1)
    users, items = [f"u{n}" for n in rng.integers(4, size=80)], [f"i{n}" for n in rng.integers(9, size=80)]
    times = np.cumsum(rng.choice([0, 1000, HOUR], size=80)).tolist()
    many, one = shopper(), shopper()
    many.learn_many(users, items, times=times)
    for user, item, ts in zip(users, items, times, strict=True):
        one.learn_one(user, item, 1.0, {"ts": ts})
    assert many.state_sha256() == one.state_sha256()
    again = shopper()
    again.load_state(one.state_arrays())
    assert again.state_sha256() == one.state_sha256()
    np.testing.assert_array_equal(again.scores("u1"), one.scores("u1"))
