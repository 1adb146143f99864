"""Numbers on the grid: sums are exact in the ring, off by half a step an element and update, and never wrap."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UpdateRejected
from common.fixed_point import COARSEST, LARGEST_BITS, FixedPoint, flatten, unflatten

floats = st.floats(-(2.0**LARGEST_BITS), 2.0**LARGEST_BITS, width=32)


@given(st.lists(st.lists(floats, min_size=3, max_size=3), min_size=1, max_size=40))
def test_a_sum_is_the_plain_sum_up_to_half_a_step_an_update(rows: list[list[float]]) -> None:
    grid = FixedPoint.for_sum_of(len(rows))
    plain = np.array(rows, dtype=np.float32).astype(np.float64)
    total = np.zeros(3, dtype=np.uint64)
    for row in plain:
        total += grid.encode(row)
    rounding = np.abs(plain).sum(0) * 2.0**-50  # of the plain sum itself, in float64
    assert np.all(np.abs(grid.decode(total) - plain.sum(0)) <= len(rows) * grid.step / 2 + rounding)


@pytest.mark.parametrize("updates", [1, 2, 3, 4, 7, 8, 20, 1000, 65_536])
def test_the_largest_sum_does_not_wrap(updates: int) -> None:
    grid = FixedPoint.for_sum_of(updates)
    for sign in (1.0, -1.0):
        one = grid.encode(np.array([sign * 2.0**LARGEST_BITS]))
        total = one * np.uint64(updates)
        assert grid.decode(total)[0] == sign * updates * 2.0**LARGEST_BITS


def test_rounding_is_far_below_a_millionth_of_ordinary_updates() -> None:
    rng = np.random.default_rng(0)
    for updates in (5, 100, 1000):
        grid = FixedPoint.for_sum_of(updates)
        rows = (1e-4 * rng.standard_normal((updates, 2000))).astype(np.float32)
        total = np.zeros(2000, dtype=np.uint64)
        for row in rows:
            total += grid.encode(row)
        plain = rows.astype(np.float64).sum(0)
        assert np.linalg.norm(grid.decode(total) - plain) < 1e-6 * np.linalg.norm(plain)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 2.0**LARGEST_BITS * 1.001, -1e30])
def test_what_would_wrap_is_refused_not_sent(value: float) -> None:
    with pytest.raises(UpdateRejected, match="not finite or larger"):
        FixedPoint.for_sum_of(4).encode(np.array([0.0, value]))


def test_zero_and_nothing_pass() -> None:
    grid = FixedPoint.for_sum_of(4)
    assert not grid.encode(np.zeros(3)).any()
    assert grid.encode(np.zeros(0)).shape == (0,)


@given(st.integers(1, 4), st.integers(0, 9))
def test_rounding_is_deterministic_and_adds_no_more_to_a_distance_than_is_said(size: int, seed: int) -> None:
    grid = FixedPoint(8)  # coarse, so that there is something to see
    rng = np.random.default_rng(seed)
    left, right = rng.standard_normal((2, size))
    np.testing.assert_array_equal(grid.encode(left), grid.encode(left))
    seen = np.linalg.norm(grid.decode(grid.encode(left) - grid.encode(right)))
    assert seen <= np.linalg.norm(left - right) + np.sqrt(size) * grid.step


def test_a_grid_too_coarse_for_a_bound_is_told() -> None:
    grid = FixedPoint.for_sum_of(20)
    assert not grid.widens(0.5, 24_576)
    assert grid.widens(grid.step * 10, 24_576)
    assert FixedPoint(10).widens(0.5, 100)
    assert COARSEST == 1e-6


def test_a_row_is_its_arrays_again() -> None:
    arrays = {"b": np.arange(6.0).reshape(2, 3), "a": np.array([[7.0]]), "c": np.zeros((0, 2))}
    back = unflatten(flatten(arrays), {name: array.shape for name, array in arrays.items()})
    assert flatten(arrays)[0] == 7.0
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)
