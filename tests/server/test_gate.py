"""The gate: paired, so that it sees what two intervals side by side would not; a coin toss holds nothing back."""

import numpy as np
import pytest

from common.ids import rng_for
from server.evaluate import bootstrap
from server.gate import Difference, difference, judge

USER = np.repeat(np.arange(60), 20)


def hits(seed: int, rate: float) -> np.ndarray:
    return (rng_for("gate", seed).random(len(USER)) < rate).astype(np.float64)


def test_a_version_that_loses_hits_is_held_back() -> None:
    old = hits(0, 0.3)
    new = old * (rng_for("lost").random(len(USER)) > 0.2)
    verdict = judge("v000003", difference(new, old, USER))
    assert not verdict.promoted
    assert verdict.against == "v000003"
    assert "worse than that of v000003" in verdict.reason
    told = verdict.as_json()
    assert told["promoted"] is False
    assert told["difference"] == pytest.approx(new.mean() - old.mean())


def test_pairing_sees_what_two_intervals_do_not() -> None:
    old = hits(0, 0.3)
    new = old.copy()
    new[np.flatnonzero(old)[::15]] = 0.0
    (_, high), (low, _) = bootstrap(new, USER, 0), bootstrap(old, USER, 0)
    assert high > low  # the intervals of the two overlap
    assert difference(new, old, USER).is_worse


def test_equal_and_better_versions_are_promoted() -> None:
    old = hits(0, 0.3)
    assert judge("v1", difference(old, old, USER)).promoted
    better = judge("v1", difference(np.maximum(old, hits(1, 0.2)), old, USER))
    assert better.promoted
    assert "better than that of v1" in better.reason


def test_chance_alone_rarely_holds_back() -> None:
    """Of versions that are no better and no worse, the 95% interval holds back about one in forty."""
    held = sum(difference(hits(2 * n + 1, 0.3), hits(2 * n, 0.3), USER).is_worse for n in range(200))
    assert held <= 15


def test_the_interval_is_that_of_whole_users() -> None:
    """One user's many lost events say little: resampling the plain way agrees with the multinomial one."""
    gained = np.zeros(len(USER))
    gained[USER == 0] = -1.0
    found = difference(gained, np.zeros(len(USER)), USER)
    assert not found.is_worse
    rng = rng_for("plain")
    means = [np.mean([gained[USER == user].mean() for user in rng.integers(0, 60, size=60)]) for _ in range(400)]
    low, high = np.percentile(means, [2.5, 97.5])
    assert found.ci95 == pytest.approx((low, high), abs=0.012)


def test_what_it_says_is_readable() -> None:
    assert str(Difference(-0.0123, (-0.02, -0.004))) == "-0.0123 (95% interval -0.0200 to -0.0040)"
