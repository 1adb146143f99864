"""A row that was taught very often still moves: its rate has a floor, and haste lifts the floor too."""

from collections.abc import Callable

import numpy as np
import pytest

from common.errors import InvalidSetting
from stream.learner.blend import Blend
from stream.learner.mf import MF

Make = Callable[..., MF | Blend]
both = pytest.mark.parametrize("make", [MF, Blend], ids=["MF", "Blend"])
SMALL = {"n_factors": 8, "negatives": 4, "window": 10, "seed": 3}
FACTORS = ("history", "factors", "bias")


def worn(make: Make, **settings: float) -> MF | Blend:
    """Return a learner whose rows have seen 1e5 times what they have, as their accumulators tell it."""
    learner, rng = make(**SMALL, **settings), np.random.default_rng(0)
    for _ in range(300):
        learner.learn_one(f"u{rng.integers(9)}", f"i{rng.integers(20)}")
    state = learner.state_arrays()
    for name, array in state.items():
        if name.endswith("_sum"):
            array[:] = 1e10
    fresh = make(**SMALL, **settings)
    fresh.load_state({**state, "params": fresh.state_arrays()["params"]})
    return fresh


def moved(learner: MF | Blend) -> dict[str, float]:
    """Return how far each kind of row moves by one like, in all."""
    prefix = "item." if isinstance(learner, MF) else "item.factors."
    before = learner.state_arrays()
    learner.learn_one("u1", "i3")
    after = learner.state_arrays()
    return {name: float(np.abs(after[prefix + name] - before[prefix + name]).sum()) for name in FACTORS}


@both
def test_without_a_floor_a_worn_row_stands_still_and_with_one_it_moves(make: Make) -> None:
    still, moves = moved(worn(make, rate_floor=0.0)), moved(worn(make, rate_floor=0.02))
    for name in FACTORS:
        # 1 / sqrt(1e10) against the floor, less where the step is longer than 1
        assert 0.5 < moves[name] / (still[name] * 0.02 * 1e5) < 1.05


@both
def test_the_default_floor_moves_a_worn_row(make: Make) -> None:
    assert moved(worn(make)) == moved(worn(make, rate_floor=0.02))


@both
def test_a_heavy_event_does_not_throw_a_worn_row(make: Make) -> None:
    learner = worn(make, rate_floor=0.02)
    for number in range(60):
        learner.learn_one("u1", f"i{number % 20}", 1_000.0)
        learner.learn_one("u2", f"i{number % 20}", -1_000.0)
    prefix = "item." if isinstance(learner, MF) else "item.factors."
    # steps are as long as the floor at most, in each of few rows an event
    assert all(np.abs(learner.state_arrays()[prefix + name]).max() < 10.0 for name in FACTORS)


@both
def test_haste_lifts_the_floor(make: Make) -> None:
    calm, hasty = worn(make, drift_boost=4.0), worn(make, drift_boost=4.0)
    hasty.quicken()
    slowly, fast = moved(calm), moved(hasty)
    for name in FACTORS:
        assert fast[name] == pytest.approx(4 * slowly[name], rel=0.02)


@both
def test_young_rows_do_not_notice(make: Make) -> None:
    rng = np.random.default_rng(0)
    events = [(f"u{rng.integers(9)}", f"i{rng.integers(20)}") for _ in range(300)]
    scores = []
    for floor in (0.0, 0.02):
        learner = make(**SMALL, rate_floor=floor)
        for user, item in events:
            learner.learn_one(user, item)
        scores.append(learner.scores("u1"))
    assert np.array_equal(scores[0], scores[1])


@both
@pytest.mark.parametrize("value", [-0.1, float("nan"), "0", True])
def test_an_impossible_floor_is_named(make: Make, value: object) -> None:
    with pytest.raises(InvalidSetting, match="rate_floor"):
        make(rate_floor=value)
