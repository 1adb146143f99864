"""Robust rules: as defined, and what they bear when some of the updates are anything at all."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from common.errors import InvalidSetting, UpdateRejected
from common.updates import AdapterUpdate
from server.aggregate.base import PlainStep
from server.aggregate.fedsvd import FedSVD
from server.aggregate.layout import cut
from server.aggregate.robust import RULES, Robust, krum, median, multi_krum, trimmed_mean
from tests.contracts.test_strategies import PAIRS, product, start, tensors, update
from tests.oracles.robust import krum_order_slowly, median_slowly, trimmed_mean_slowly

D = 5
sizes = st.integers(1, 12)


def drawn(count: int, seed: int) -> np.ndarray:
    rows: np.ndarray = np.random.default_rng(seed).standard_normal((count, D)).astype(np.float32)
    return rows


# -- as defined ------------------------------------------------------------------------------------------------------


def assert_close(found: torch.Tensor, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-12)


@given(sizes, st.integers(0, 2**32), st.integers(0, 4))
def test_each_rule_is_its_definition(count: int, seed: int, bad: int) -> None:
    rows = drawn(count, seed)
    updates = torch.from_numpy(rows)
    assert_close(median(updates, bad), median_slowly(rows))
    assert_close(trimmed_mean(updates, bad), trimmed_mean_slowly(rows, min(bad, (count - 1) // 2)))
    borne = max(0, min(bad, (count - 3) // 2))
    order = krum_order_slowly(rows, borne)
    if count > 2:  # of two, each is as near to the other
        assert_close(krum(updates, bad), rows[order[0]].astype(np.float64))
        assert_close(multi_krum(updates, bad), rows[order[: count - borne]].astype(np.float64).mean(axis=0))


@pytest.mark.parametrize("rule", sorted(RULES))
def test_of_one_update_or_equal_ones_it_is_that_one(rule: str) -> None:
    row = drawn(1, 3)
    for count in (1, 2, 3, 8):
        found = RULES[rule](torch.from_numpy(np.repeat(row, count, axis=0)), 2).numpy()
        np.testing.assert_allclose(found, row[0].astype(np.float64), rtol=1e-7)


# -- Byzantine -------------------------------------------------------------------------------------------------------

anything = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def cohorts(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Return honest rows and fewer than half as many bad ones as Krum bears: n >= 2 f + 3."""
    bad = draw(st.integers(1, 3))
    honest = draw(st.integers(bad + 3, 10))
    rows = np.random.default_rng(draw(st.integers(0, 2**32))).standard_normal((honest, D)).astype(np.float32)
    return rows, draw(hnp.arrays(np.float32, (bad, D), elements=anything))


def mixed(honest: np.ndarray, bad: np.ndarray, seed: int = 0) -> torch.Tensor:
    rows = np.concatenate([honest, bad])
    return torch.from_numpy(rows[np.random.default_rng(seed).permutation(len(rows))])


@given(cohorts(), st.integers(0, 2**32))
def test_median_and_trimmed_mean_stay_within_the_honest_range(cohort: tuple[np.ndarray, np.ndarray], seed: int) -> None:
    honest, bad = cohort
    for rule in (median, trimmed_mean):
        found = rule(mixed(honest, bad, seed), len(bad)).numpy()
        assert (found >= honest.min(axis=0) - 1e-6).all()
        assert (found <= honest.max(axis=0) + 1e-6).all()


@given(cohorts(), st.integers(0, 2**32))
def test_krum_is_never_far_from_an_honest_update(cohort: tuple[np.ndarray, np.ndarray], seed: int) -> None:
    """One of its neighbours is honest, and it scores no worse than honest ones, whose neighbours may all be honest."""
    honest, bad = cohort
    found = krum(mixed(honest, bad, seed), len(bad)).numpy()
    between = ((honest[:, None].astype(np.float64) - honest[None]) ** 2).sum(axis=2).max()
    nearest = ((honest - found) ** 2).sum(axis=1).min()
    assert nearest <= (len(honest) - 2) * between * (1 + 1e-9)


@given(cohorts(), st.integers(0, 2**32), st.floats(1e3, 1e30))
def test_krum_and_multi_krum_choose_honest_ones_alone_when_the_bad_are_far(
    cohort: tuple[np.ndarray, np.ndarray], seed: int, distance: float
) -> None:
    """Even when the bad ones agree with each other."""
    honest, bad = cohort
    far = np.full_like(bad, np.float32(distance))
    rows = mixed(honest, far, seed)
    assert any((krum(rows, len(bad)).numpy() == row).all() for row in honest)
    np.testing.assert_allclose(multi_krum(rows, len(bad)).numpy(), honest.astype(np.float64).mean(axis=0), atol=1e-9)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rule", sorted(RULES))
def test_what_is_not_finite_does_not_come_through(rule: str, value: float) -> None:
    """Validation refuses it before; this is the second line."""
    rows = torch.cat([torch.full((1, D), value), torch.from_numpy(drawn(6, 0))])
    assert bool(RULES[rule](rows, 1).isfinite().all())


def shifted(step: Robust | FedSVD, bad: int, size: float) -> np.ndarray:
    """Return the change of B, in the basis of the first A, that a strategy makes of ten updates of which some lie."""
    honest = [update(step, seed) for seed in range(10 - bad)]
    lies = [
        AdapterUpdate(each.meta, {name: np.full_like(array, size) for name, array in each.arrays.items()})
        for each in (update(step, 100 + seed) for seed in range(bad))
    ]
    result = step.aggregate(tensors(start()), {}, [*lies, *honest])
    a_name, b_name = PAIRS[0]
    base = start()
    change: np.ndarray = product(result.adapter, a_name, b_name) @ base[a_name].T - base[b_name]
    return change


@pytest.mark.parametrize("size", [5.0, 500.0])
@pytest.mark.parametrize("rule", sorted(RULES))
def test_two_liars_in_ten_move_the_mean_out_of_the_honest_range_and_no_robust_rule(rule: str, size: float) -> None:
    honest = np.stack([update(Robust(name=rule), seed).arrays[PAIRS[0][1]] for seed in range(8)])
    low, high = honest.min(axis=0) - 1e-4, honest.max(axis=0) + 1e-4
    robust = shifted(Robust(PlainStep(), rule), 2, size)
    assert ((robust >= low) & (robust <= high)).all()
    mean = shifted(FedSVD(PlainStep()), 2, size)
    assert (mean > high).any()


# -- the strategy ----------------------------------------------------------------------------------------------------


def test_the_number_to_bear_is_the_share_rounded_up() -> None:
    """Three of ten, not four: 0.3 times 10 is a little more than 3 in floating point for some shares."""
    for count in range(1, 40):
        for share in (0.1, 0.2, 0.3):
            exact = math.ceil(round(share * 10) * count / 10)
            rows = [update(Robust(), seed) for seed in range(count)]
            strategy = Robust(PlainStep(), "trimmed-mean", bad_share=share)
            stacked = np.stack([row.arrays[PAIRS[0][1]].ravel() for row in rows])
            expected = trimmed_mean_slowly(stacked, min(exact, (count - 1) // 2))
            base = start()
            result = strategy.aggregate(tensors(base), {}, rows)
            a_name, b_name = PAIRS[0]
            found = product(result.adapter, a_name, b_name) @ base[a_name].T - base[b_name]
            np.testing.assert_allclose(found.ravel(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("share", [-0.1, 0.5, math.nan])
def test_a_share_that_no_rule_bears_is_refused(share: float) -> None:
    with pytest.raises(InvalidSetting, match="less than one half"):
        Robust(bad_share=share)


def test_a_smaller_rank_is_refused_by_rules_that_compare() -> None:
    narrow = AdapterUpdate(update(Robust(), 1).meta, cut(update(Robust(), 1).arrays, 2))
    with pytest.raises(UpdateRejected, match="an update of rank 2 under 'median'; expected the full rank"):
        Robust().aggregate(tensors(start()), {}, [update(Robust(), 2), narrow])
