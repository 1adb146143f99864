"""The log of seen items is laid out by user, and says the same as before."""

from collections.abc import Callable

import numpy as np
import pytest

from common.ids import rng_for
from stream.learner.base import ArrayRanker
from stream.learner.blend import Blend
from stream.learner.mf import MF
from stream.learner.popularity import Popularity

EVENTS, USERS, ITEMS = 3_000, 17, 90
KINDS: dict[str, Callable[[], ArrayRanker]] = {
    "popularity": Popularity,
    "mf": lambda: MF(n_factors=4, negatives=2),
    "blend": lambda: Blend(n_factors=4, negatives=2, places=16),
    "blend with repeats": lambda: Blend(n_factors=4, negatives=2, places=16, repeats=True),
}


def teach(model: ArrayRanker, first: int, end: int) -> None:
    for number in range(first, end):
        rng = rng_for("log", number)
        # later ones come in between those of the first half
        user, item = int(rng.integers(USERS if number > EVENTS // 2 else USERS // 2)), int(rng.integers(ITEMS))
        model.learn_one(f"u{user}", f"i{item}", x={"ts": number * 10**6})


def seen(model: ArrayRanker) -> dict[str, list[int]]:
    return {user: model.seen_rows(user).tolist() for user in model.user_ids}


@pytest.mark.parametrize("kind", KINDS)
def test_what_users_have_seen_stays_in_its_order(kind: str) -> None:
    model = KINDS[kind]()
    teach(model, 0, EVENTS)
    before, scores = seen(model), {user: model.scores(user) for user in model.user_ids}
    state = model.state_arrays()
    assert seen(model) == before
    for user, expected in scores.items():
        np.testing.assert_array_equal(model.scores(user), expected)
    previous, newest = state["log.previous"], state["user.newest"]
    # each user's entries lie beside one another, in the order of the users
    begins = np.flatnonzero(previous == -1)
    np.testing.assert_array_equal(previous[previous >= 0], np.flatnonzero(previous >= 0) - 1)
    np.testing.assert_array_equal(newest, [*begins[1:] - 1, len(previous) - 1])


@pytest.mark.parametrize("kind", KINDS)
def test_whoever_laid_it_out_in_between_learned_the_same(kind: str) -> None:
    often, once = KINDS[kind](), KINDS[kind]()
    for start in range(0, EVENTS, 250):
        teach(often, start, start + 250)
        often.state_views()
    teach(once, 0, EVENTS)
    assert often.state_sha256() == once.state_sha256()


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_of_another_order_is_taken(kind: str) -> None:
    model, reader = KINDS[kind](), KINDS[kind]()
    teach(model, 0, EVENTS)
    state = model.state_arrays()
    # as an older program wrote it: the same chains through entries in any order
    size = len(state["log.item"])
    place = rng_for("order").permutation(size)
    moved = {name: array.copy() for name, array in state.items()}
    for name, array in state.items():
        if name.startswith("log."):
            moved[name][place] = np.where(array >= 0, place[array], -1) if name == "log.previous" else array
    moved["user.newest"] = np.where(state["user.newest"] >= 0, place[state["user.newest"]], -1)
    reader.load_state(moved)
    assert seen(reader) == seen(model)
    teach(reader, EVENTS, EVENTS + 200)
    teach(model, EVENTS, EVENTS + 200)
    assert reader.state_sha256() == model.state_sha256()


def test_a_guest_is_no_user_of_the_log() -> None:
    model = Blend(n_factors=4, negatives=2, places=16)
    teach(model, 0, 100)
    before = model.state_sha256()
    model.top_k("nobody", 3, history=["i1", "i2", "i3"])
    assert model.state_sha256() == before


def test_users_who_saw_nothing_have_no_entries() -> None:
    model = Blend(n_factors=4, negatives=2, places=16, repeats=True)
    model.add_items(["i1"])
    model.try_one("u0", "i1")  # a user without an entry, since repeats are allowed
    model.learn_one("u1", "i1")
    state = model.state_arrays()
    assert state["user.newest"].tolist() == [-1, 0]
