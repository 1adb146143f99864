"""The blend: mixing and weighing against slow twins, texts, dislikes, and what serving gets."""

from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InvalidSetting, MalformedEvent
from stream.learner.blend import BUCKETS, MEMBERS, Blend
from stream.learner.blending import mix_opinions, weigh
from stream.learner.packing import unpacked_places
from tests.oracles.blending import PlainNeighbours, mixed, moved


def small(**settings: object) -> Blend:
    given = {"n_factors": 8, "negatives": 4, "places": 32, "text_dimensions": 4, "seed": 3, **settings}
    return Blend(**given)  # type: ignore[arg-type]  # settings of several types


def taught(model: Blend, events: int = 300, seed: int = 0) -> Blend:
    rng = np.random.default_rng(seed)
    for _ in range(events):
        group = rng.integers(2)
        model.learn_one(
            f"u{group} {rng.integers(8)}", f"{group} {rng.integers(12)}", float(rng.choice([1.0, 1.0, -1.0]))
        )
    return model


def some_texts(seed: int = 0, turn: bool = False) -> tuple[list[str], np.ndarray]:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((2, 10))
    ids = [f"{group} {number}" for group in range(2) for number in range(14)]
    vectors = np.concatenate([centres[n] + 0.3 * rng.standard_normal((14, 10)) for n in range(2)])
    return ids, vectors @ np.linalg.qr(rng.standard_normal((10, 10)))[0] if turn else vectors


@given(seed=st.integers(0, 10_000), n=st.integers(1, 30))
def test_opinions_are_mixed_as_the_slow_twin_mixes_them(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    raw = rng.standard_normal((4, n)).astype(np.float32) * np.array([[1.0], [50.0], [0.01], [1.0]], dtype=np.float32)
    raw[3] = 7.0
    hidden, weights = rng.random(n) < 0.3, rng.random(4)
    z, total = mixed(raw, ~hidden, weights)
    fast = np.empty(n, dtype=np.float32)
    mix_opinions(raw, hidden, weights, fast)
    np.testing.assert_allclose(raw[:, ~hidden], z[:, ~hidden], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(fast[~hidden], total[~hidden], rtol=1e-3, atol=1e-3)


@given(seed=st.integers(0, 10_000), n=st.integers(2, 30), focus=st.sampled_from([0.25, 0.5, 1.0]))
def test_weights_move_down_the_slope(seed: int, n: int, focus: float) -> None:
    rng = np.random.default_rng(seed)
    z, weights = rng.standard_normal((4, n)).astype(np.float32), rng.random(4)
    hidden = rng.random(n) < 0.3
    item = int(rng.integers(n))
    hidden[item] = False
    expected = moved(z.astype(np.float64), ~hidden, item, weights, 0.3, focus)
    weigh(z, (weights @ z).astype(np.float32), hidden, np.empty(n, dtype=np.float32), item, weights, 0.3, focus)
    np.testing.assert_allclose(weights, expected, rtol=1e-3, atol=1e-4)


def test_the_answer_asked_before_a_click_is_the_one_learned_from() -> None:
    asked, silent = taught(small()), taught(small())
    for turn in range(60):
        user, item = f"u{turn % 2} {turn % 8}", f"{turn % 2} {turn % 12}"
        asked.top_k(user, 3)
        asked.predict_one("somebody else", "brand new")
        asked.learn_one(user, item)
        silent.learn_one(user, item)
    assert asked.state_sha256() == silent.state_sha256()


def test_the_snapshot_lists_each_pair_as_it_is_asked() -> None:
    model = taught(small(places=8))
    for _ in range(40):
        model.learn_one("u0 1", "0 5", -1.0)
    state, members = model.state_arrays(), model.snapshot({}).blend
    assert members is not None
    other, weight = unpacked_places(*(state[f"item.neighbours.{name}"] for name in ("filled", "keys", "values")))
    counts, scale = state["item.neighbours.counts"], state["item.neighbours.scale"]
    expected = [
        [
            (pair - 1, held / (counts[row] ** model.alpha + 1) * scale[pair - 1])
            for pair, held in zip(pairs, weights, strict=True)
            if held
        ]
        for row, (pairs, weights) in enumerate(zip(other, weight, strict=True))
    ]
    assert (weight[other > 0] == 0).any()  # a dislike took all that a pair weighed
    np.testing.assert_array_equal(np.diff(members.pair_starts), [len(pairs) for pairs in expected])
    found = zip(members.pair_items, members.pair_weights, strict=True)
    for (item, asked), (expected_item, expected_asked) in zip(found, chain(*expected), strict=True):
        assert item == expected_item
        assert asked == pytest.approx(expected_asked, rel=1e-5)


def test_an_answer_stands_while_the_next_one_is_made() -> None:
    """The learner answers in one room again and again; what it gave away is nobody else's."""
    model = taught(small())
    users = ("u0 1", "u1 2", "never seen")
    kept = [(user, model.scores(user), model.member_scores(user)) for user in users]
    model.scores("x", history=["1 3"])
    model.predict_one("u1 2", "brand new")
    again = taught(small())
    for user, scores, members in reversed(kept):
        np.testing.assert_array_equal(scores, again.scores(user))
        for member, said in again.member_scores(user).items():
            np.testing.assert_array_equal(members[member], said)
    assert not any(np.shares_memory(one[1], other[1]) for one in kept for other in kept if one is not other)


def test_weights_of_a_bucket_come_from_its_users_only() -> None:
    model = small()
    before = model.weights()
    for number in range(30):
        model.learn_one(f"user {number}", f"item {number % 3}")
    after = model.weights()
    assert set(after) == set(BUCKETS)
    assert after[0] != before[0]
    assert {least: after[least] for least in BUCKETS[1:]} == {least: before[least] for least in BUCKETS[1:]}


@pytest.mark.parametrize("described", [False, True])
def test_a_disliked_item_sinks(described: bool) -> None:
    model = small()
    if described:
        model.describe(*some_texts())
    taught(model)
    for item in ("1 3", "0 5"):
        before = model.predict_one("u0 1", item)
        model.learn_one("u0 1", item, -1.0)
        assert model.predict_one("u0 1", item) < before


def test_what_was_liked_may_come_again_where_repeats_are_allowed() -> None:
    again, once = taught(small(repeats=True)), taught(small())
    z = again.member_scores("u0 1")
    assert set(z) == set(MEMBERS)
    assert all(abs(float(values.mean())) < 1e-4 for values in z.values())
    seen = once.seen_rows("u0 1")
    shown = np.setdiff1d(np.arange(once.n_items), seen)
    assert all(abs(float(values[shown].mean())) < 1e-4 for values in once.member_scores("u0 1").values())


def test_neighbours_go_by_what_was_tried_as_the_slow_twin_does() -> None:
    model, rng = small(places=64), np.random.default_rng(4)
    twin = PlainNeighbours(model.window, model.gap, model.neighbour_recency, model.alpha, model.beta, 1.0)
    model.add_items([f"i{number}" for number in range(20)])
    for _ in range(200):
        user, item, liked = f"u{rng.integers(6)}", f"i{rng.integers(20)}", bool(rng.random() < 0.6)
        twin.learn(user, item, 1.0 if liked else 0.7)
        if liked:
            model.learn_one(user, item)
        else:
            model.try_one(user, item)
    for user in model.user_ids:
        shown = np.setdiff1d(np.arange(model.n_items), model.seen_rows(user))
        expected = np.array([twin.score(user, item) for item in model.item_ids])
        if len(shown) > 1 and expected[shown].std() > 1e-6:
            z = (expected[shown] - expected[shown].mean()) / expected[shown].std()
            np.testing.assert_allclose(model.member_scores(user)["neighbours"][shown], z, rtol=1e-3, atol=1e-3)


def test_what_was_tried_is_shown_again_only_where_repeats_are_allowed() -> None:
    once, again = taught(small()), taught(small(repeats=True))
    for model in (once, again):
        model.try_one("u0 1", "1 3")
        model.try_one("new one", "0 4")
        model.try_one("u0 1", "never heard of")
    assert "1 3" not in {item for item, _ in once.top_k("u0 1", 50)}
    assert "0 4" not in {item for item, _ in once.top_k("new one", 50)}
    assert "0 4" in {item for item, _ in again.top_k("new one", 50)}
    assert once.item_row("never heard of") is None
    with pytest.raises(MalformedEvent):
        once.try_one("", "1 3")
    back = small()
    back.load_state(once.state_arrays())
    assert back.state_sha256() == once.state_sha256()
    np.testing.assert_array_equal(back.scores("new one"), once.scores("new one"))


def test_an_item_without_clicks_is_ranked_by_its_text() -> None:
    """The cold items of the group that a user likes come before those of the other."""
    model = small()
    model.describe(*some_texts())
    taught(model, 400)
    cold = [f"{group} {number}" for group in range(2) for number in (12, 13)]
    for group in range(2):
        best = model.top_k(f"u{group} 1", 2, candidates=cold)
        assert {item[0] for item, _ in best} == {str(group)}


def test_new_texts_carry_over_what_was_learned() -> None:
    model = small(text_dimensions=10)
    ids, vectors = some_texts()
    model.describe(ids, vectors)
    taught(model, 300)
    state = {name: array for name, array in model.state_arrays().items() if "text" not in name}
    before = {item: model.predict_one("u0 1", item) for item in ids}
    model.describe(ids, vectors)
    assert {item: model.predict_one("u0 1", item) for item in ids} == before
    model.describe(*some_texts(turn=True))
    after = model.state_arrays()
    for name in ("factors.history", "factors.factors", "factors.bias", "neighbours.values", "counts"):
        np.testing.assert_array_equal(after[f"item.{name}"], state[f"item.{name}"], err_msg=name)
    for item in ids:
        assert model.predict_one("u0 1", item) == pytest.approx(before[item], abs=0.1)


@pytest.mark.parametrize("described", [False, True])
def test_the_snapshot_scores_as_the_member_factors(described: bool) -> None:
    model = small()
    if described:
        model.describe(*some_texts())
    taught(model)
    snapshot = model.snapshot({"clicks": {"0": 300}})
    assert snapshot.item_factors.shape[1] == snapshot.history_factors.shape[1] == (12 if described else 8)
    for place, user in enumerate(snapshot.user_ids):
        starts = snapshot.history_starts
        scores = snapshot.scores(snapshot.history_items[starts[place] : starts[place + 1]])
        shown = np.setdiff1d(np.arange(model.n_items), model.seen_rows(user))
        z = (scores - scores[shown].mean()) / scores[shown].std()
        np.testing.assert_allclose(z[shown], model.member_scores(user)["factors"][shown], rtol=1e-3, atol=1e-3)


def test_two_interleavings_of_two_partitions_end_with_equal_users() -> None:
    rng = np.random.default_rng(0)
    parts = [[(f"u{part} {rng.integers(4)}", f"i{rng.integers(20)}") for _ in range(60)] for part in range(2)]
    one, two = small(), small()
    for user, item in parts[0] + parts[1]:
        one.learn_one(user, item)
    for pair in zip(parts[1], parts[0], strict=True):
        for user, item in pair:
            two.learn_one(user, item)
    for user in one.user_ids:
        mine = [one.item_ids[row] for row in one.history_rows(user)]
        assert mine == [two.item_ids[row] for row in two.history_rows(user)]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("focus", 0.0),
        ("weight_lr", -1.0),
        ("places", 12),
        ("text_lr", 0.0),
        ("n_factors", 0),
        ("window", 0),
        ("seed", "1"),
    ],
)
def test_a_setting_that_cannot_be_is_named(name: str, value: object) -> None:
    with pytest.raises(InvalidSetting, match=name):
        Blend(**{name: value})  # type: ignore[arg-type]  # the wrong type is the point
