"""A rise of the loss raises an alarm and, where that is on, the rates for a while; the state survives a restart."""

from collections.abc import Callable

import numpy as np
import pytest

from common.errors import InvalidSetting
from common.store import pack_arrays, unpack_arrays
from stream.learner.blend import Blend
from stream.learner.mf import MF
from stream.progressive import Progressive, Protocol

Make = Callable[..., MF | Blend]
both = pytest.mark.parametrize("make", [MF, Blend], ids=["MF", "Blend"])
SMALL = {"n_factors": 8, "negatives": 8, "window": 10, "seed": 3}
ITEMS, GROUPS, BEFORE, AFTER = 400, 4, 3_000, 800


def planted(drift: bool, seed: int = 0) -> list[tuple[str, str]]:
    """Return likes of users whose group likes a block of the items; with drift, groups move to another block."""
    rng = np.random.default_rng(seed)
    block = ITEMS // GROUPS
    events = []
    for number in range(BEFORE + AFTER):
        user = int(rng.integers(60))
        liked = (user + 1 if drift and number >= BEFORE else user) % GROUPS
        events.append((f"user {user}", f"i{liked * block + int(rng.integers(block))}"))
    return events


def run_over(make: Make, events: list[tuple[str, str]], boost: float) -> tuple[Progressive, list[int]]:
    learner = make(**SMALL, drift_boost=boost, drift_events=300)
    learner.add_items([f"i{n}" for n in range(ITEMS)])
    run = Progressive({"ours": learner}, Protocol())
    ranks = [run.step(user, item, 1.0) or 0 for user, item in events]
    return run, ranks


def test_a_stationary_stream_raises_no_alarm() -> None:
    run, _ = run_over(MF, planted(drift=False), 2.0)
    assert run.drift_alarms == 0
    assert not run.contenders["ours"].state_arrays()["fixed.hasty_until"].any()


def test_a_drift_raises_an_alarm_and_haste_is_sooner_at_home() -> None:
    """Over the 200 events after the drift, three streams together; what it costs later is another matter."""
    slow, fast = 0.0, 0.0
    for seed in range(3):
        calm, calmly = run_over(MF, planted(drift=True, seed=seed), 1.0)
        hasty, hastily = run_over(MF, planted(drift=True, seed=seed), 2.0)
        assert calm.drift_alarms == hasty.drift_alarms == 1
        assert calmly[:BEFORE] == hastily[:BEFORE]
        slow, fast = slow + _loss(calmly), fast + _loss(hastily)
    assert fast < slow - 0.1


def _loss(ranks: list[int]) -> float:
    return float(np.mean([np.log2(rank) for rank in ranks[BEFORE : BEFORE + 200] if rank]))


@both
def test_haste_ends_and_survives_a_restart(make: Make) -> None:
    options = {**SMALL, "drift_boost": 3.0, "drift_events": 20}
    whole, parts, calm = make(**options), make(**options), make(**SMALL)
    events = planted(drift=False)[:60]
    for learner in (whole, calm):
        for number, (user, item) in enumerate(events):
            if number == 15:
                learner.quicken()
            learner.learn_one(user, item)
    for start, end in ((0, 15), (15, 30), (30, 45), (45, 60)):
        if start == 15:
            parts.quicken()
        users, items = zip(*events[start:end], strict=True)
        parts.learn_many(users, items)
        restored = make(**options)
        restored.load_state(unpack_arrays(pack_arrays(parts.state_arrays()), "test"))
        parts = restored
    assert parts.state_sha256() == whole.state_sha256()
    assert int(whole.state_arrays()["fixed.hasty_until"][0]) == 35
    assert not np.array_equal(_biases(whole), _biases(calm))


def _biases(learner: MF | Blend) -> np.ndarray:
    state = learner.state_arrays()
    return state["item.factors.bias" if isinstance(learner, Blend) else "item.bias"]


@both
def test_off_means_nothing_happens(make: Make) -> None:
    told, untold = make(**SMALL), make(**SMALL)
    for user, item in planted(drift=False)[:50]:
        told.quicken()
        told.learn_one(user, item)
        untold.learn_one(user, item)
    assert told.state_sha256() == untold.state_sha256()


@pytest.mark.parametrize(("name", "value"), [("drift_boost", 0.0), ("drift_boost", "2"), ("drift_events", 0)])
def test_a_setting_that_cannot_be_is_named(name: str, value: object) -> None:
    with pytest.raises(InvalidSetting, match=name):
        MF(**{name: value})  # type: ignore[arg-type]  # the wrong type is the point
