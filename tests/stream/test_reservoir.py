"""Likes of the past, a fair sample a user, are learned again; off by default, bounded, and durable."""

from collections.abc import Callable

import numpy as np
import pytest

from common.errors import CheckpointMismatch, InvalidSetting
from common.ids import stable_hash
from common.store import pack_arrays, unpack_arrays
from stream.learner.blend import Blend
from stream.learner.kernels import GOLDEN, UserRows
from stream.learner.mf import MF
from stream.learner.reservoir import Reservoir, copy_without, drawn, keep
from tests.oracles.folded_mf import FoldedMF

Make = Callable[..., MF | Blend]
both = pytest.mark.parametrize("make", [MF, Blend], ids=["MF", "Blend"])
SMALL = {"n_factors": 8, "negatives": 4, "window": 10, "seed": 3}


def some_events(count: int, seed: int = 0) -> list[tuple[str, str, float]]:
    rng = np.random.default_rng(seed)
    return [(f"u{rng.integers(6)}", f"i{rng.integers(25)}", float(rng.choice([1.0, 2.0, -1.0]))) for _ in range(count)]


def taught(make: Make, events: list[tuple[str, str, float]], **settings: float) -> MF | Blend:
    learner = make(**SMALL, **settings)
    for user, item, y in events:
        learner.learn_one(user, item, y)
    return learner


def test_every_like_stays_with_the_same_chance_however_long_ago() -> None:
    counts, runs, length, size = np.zeros(40), 4_000, 40, 8
    for run in range(runs):
        kept = np.zeros(size, dtype=np.int32)
        for number in range(length):
            keep(kept, number, run * length + number, np.uint64(99), number)
        assert len(set(kept.tolist())) == size
        counts[kept] += 1
    expected = runs * size / length
    # five standard deviations of a binomial
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected * (1 - size / length))


def test_one_of_the_sample_is_recalled_at_the_rate() -> None:
    kept = np.array([7, 8, 9, 0], dtype=np.int32)
    found = [drawn(kept, 3, event, np.uint64(5), 0.25) for event in range(8_000)]
    assert set(found) == {-1, 7, 8, 9}
    assert 0.23 < np.mean(np.array(found) >= 0) < 0.27
    shares = np.bincount([item for item in found if item >= 0])[7:] / sum(item >= 0 for item in found)
    assert np.abs(shares - 1 / 3).max() < 0.04
    assert drawn(kept, 0, 1, np.uint64(5), 1.0) == -1
    assert all(drawn(kept, 3, event, np.uint64(5), 1.0) >= 0 for event in range(100))


def test_the_history_without_an_item_keeps_its_order() -> None:
    ring, out = np.array([5, 1, 2, 1], dtype=np.int32), np.zeros(4, dtype=np.int32)
    # positives 6: the newest are at places 5 % 4 and 4 % 4, the oldest is at place 2
    assert copy_without(ring, 6, 1, out) == 2
    assert out[:2].tolist() == [2, 5]
    assert copy_without(ring, 2, 5, out) == 1
    assert out[0] == 1
    assert copy_without(ring, 0, 5, out) == 0


class RecallingMF(FoldedMF):
    """The slow twin, told what to learn again after each like."""

    def relearn(self, user: str, item: str, event: int, key: int) -> None:
        past, self.liked[user] = self.liked[user], [one for one in self.liked[user][-self.window :] if one != item]
        vector, shares = self.folded(user)
        self.liked[user] = past
        if shares:
            # another key with this event's number is the same state as the own key with another number
            apart = (key - stable_hash(self.seed, "mf-negatives")) * pow(int(GOLDEN), -1, 2**64)
            events, self.events = self.events, event + apart
            negatives = self.drawn(user, item)
            self.events = events
            if negatives:
                self._softmax(item, negatives, vector, shares, 1.0)


def test_it_learns_again_what_its_slow_twin_learns_again() -> None:
    rates = {"recency": 3.0, "lr": 0.4, "bias_lr": 0.2, "accumulator": 0.5, "dislike": 0.1, "rate_floor": 0.0}
    fast = MF(n_factors=6, negatives=4, window=6, seed=3, replay=4, replay_rate=0.7, **rates)  # type: ignore[arg-type]  # settings of several types
    slow = RecallingMF(n_factors=6, negatives=4, window=6, seed=3, **rates)
    watched = Reservoir(4, 0.7, 6, 3)
    again = 0
    for event, (user, item, y) in enumerate(some_events(150)):
        row, names = fast.user_row(user), fast.item_ids
        recalled = -1
        if y > 0 and row is not None:
            arrays = {name.removeprefix("user."): a for name, a in fast.state_arrays().items() if "user." in name}
            users = UserRows(arrays["ring"], arrays["positives"], arrays["newest"])
            watched.wire({"kept": arrays["kept"]}, users)
            recalled = watched.turn(row, 0, event)
        fast.learn_one(user, item, y)
        slow.learn(user, item, y)
        if recalled >= 0:
            again += 1
            slow.relearn(user, names[recalled], event, int(watched._key))
    assert again > 40
    snapshot = fast.snapshot({})
    np.testing.assert_allclose(snapshot.item_factors, [slow.rows[i] for i in slow.items], rtol=2e-3, atol=2e-4)
    np.testing.assert_allclose(
        snapshot.history_factors, [slow.history_rows[i] for i in slow.items], rtol=2e-3, atol=2e-4
    )
    np.testing.assert_allclose(snapshot.item_bias, [slow.bias[i] for i in slow.items], rtol=2e-3, atol=2e-4)


@both
def test_it_is_off_by_default_and_leaves_no_trace_there(make: Make) -> None:
    assert not any("kept" in name for name in make(**SMALL).state_arrays())
    events = some_events(200)
    plain, recalling = taught(make, events), taught(make, events, replay=8)
    assert not np.array_equal(plain.scores("u1"), recalling.scores("u1"))
    # what is not learned by gradients does not see it
    assert np.array_equal(plain.item_counts, recalling.item_counts)
    assert np.array_equal(plain.history_rows("u1"), recalling.history_rows("u1"))
    assert np.array_equal(np.sort(plain.seen_rows("u1")), np.sort(recalling.seen_rows("u1")))


@both
def test_memory_is_the_sample_and_not_the_events(make: Make) -> None:
    few, many = (taught(make, some_events(count), replay=8).state_arrays() for count in (300, 900))
    assert few["user.kept"].shape == many["user.kept"].shape == (6, 8)


@both
def test_a_restored_learner_recalls_the_same(make: Make) -> None:
    original = taught(make, some_events(200), replay=5, replay_rate=0.8)
    restored = make(**SMALL, replay=5, replay_rate=0.8)
    restored.load_state(unpack_arrays(pack_arrays(original.state_arrays()), "test"))
    for user, item, y in some_events(200, seed=1):
        original.learn_one(user, item, y)
        restored.learn_one(user, item, y)
    assert restored.state_sha256() == original.state_sha256()
    with pytest.raises(CheckpointMismatch, match="replay"):
        make(**SMALL, replay=6, replay_rate=0.8).load_state(original.state_arrays())


@both
def test_many_are_learned_as_one_by_one(make: Make) -> None:
    events = some_events(150)
    many = make(**SMALL, replay=8)
    many.learn_many([e[0] for e in events], [e[1] for e in events], [e[2] for e in events])
    assert many.state_sha256() == taught(make, events, replay=8).state_sha256()


@both
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("replay", -1),
        ("replay", 2.0),
        ("replay", 1_001),
        ("replay_rate", 0.0),
        ("replay_rate", 1.5),
        ("replay_rate", "1"),
    ],
)
def test_impossible_settings_are_named(make: Make, name: str, value: object) -> None:
    with pytest.raises(InvalidSetting, match=name):
        make(**{name: value})
