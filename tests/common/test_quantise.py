"""Rounding to 8 bits: no draw is off by a step, the mean of many is the number, and nothing else gets through."""

from collections.abc import Callable, Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from common.errors import UpdateRejected
from common.ids import rng_for
from common.quantise import LARGEST, STEP, dequantise, quantise
from tests.oracles.quantising import quantised

Arrays = Mapping[str, np.ndarray]

FLOATS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=6),
    elements=st.floats(-(2.0**66), 2.0**66, width=32),
)


@given(FLOATS, st.integers(0, 9))
def test_no_number_is_off_by_a_step(array: np.ndarray, seed: int) -> None:
    coded = quantise({"t": array}, seed)
    (found,) = dequantise(coded).values()
    step = float(coded["t" + STEP])
    assert found.dtype == np.float32
    assert found.shape == array.shape
    # the product is rounded to float32 once
    assert (np.abs(found.astype(np.float64) - array) <= step + np.spacing(np.abs(found))).all()
    assert coded["t"].dtype == np.int8
    assert np.abs(coded["t"].astype(int)).max(initial=0) <= LARGEST


@given(FLOATS, st.integers(0, 9))
def test_it_is_the_obvious_rounding_one_number_after_the_other(array: np.ndarray, seed: int) -> None:
    coded = quantise({"t": array}, seed)
    codes, step = quantised(array, rng_for("quantise", "t", seed))
    assert float(coded["t" + STEP]) == step
    assert coded["t"].ravel().tolist() == codes


def test_the_mean_of_many_draws_is_the_number() -> None:
    array = np.array([1.0, -0.3, 0.0, 1e-3, 0.007874, -0.9999], dtype=np.float32)
    draws = np.array([dequantise(quantise({"t": array}, seed))["t"] for seed in range(4000)], dtype=np.float64)
    step = float(quantise({"t": array}, 0)["t" + STEP])
    # a draw's deviation is at most half a step, so that of the mean is step / (2 sqrt(4000)); five of them
    assert np.abs(draws.mean(axis=0) - array).max() < 5 * step / (2 * np.sqrt(4000))
    # and it does draw: nearest would give the small one the same zero each time
    assert set(np.unique(draws[:, 3])) == {0.0, np.float32(step)}


def test_the_same_seed_gives_the_same_codes_and_another_others() -> None:
    array = rng_for("numbers").standard_normal((5, 7)).astype(np.float32)
    first, again, other = (quantise({"t": array}, seed)["t"] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_tensors_draw_apart() -> None:
    array = np.full(64, 0.5, dtype=np.float32)
    array[0] = 1.0
    coded = quantise({"a": array, "b": array}, 0)
    assert not np.array_equal(coded["a"], coded["b"])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_has_no_place_on_a_grid(value: float) -> None:
    with pytest.raises(UpdateRejected, match="tensor 'b' has NaN or infinite elements; expected finite numbers"):
        quantise({"a": np.zeros(2, np.float32), "b": np.array([0.0, value], np.float32)}, 0)


GOOD = quantise({"a": np.array([[1.0, -2.0]], np.float32), "b": np.array([3.0], np.float32)}, 0)

REASONS: list[tuple[str, Callable[[], Arrays], str]] = [
    ("no step", lambda: {k: v for k, v in GOOD.items() if k != "a" + STEP}, "'a' has codes or a step width alone"),
    ("no codes", lambda: {k: v for k, v in GOOD.items() if k != "b"}, "'b' has codes or a step width alone"),
    ("floats", lambda: {**GOOD, "a": GOOD["a"].astype(np.float32)}, "codes of tensor 'a' are float32; expected int8"),
    ("wide", lambda: {**GOOD, "a": GOOD["a"].astype(np.int16)}, "codes of tensor 'a' are int16; expected int8"),
    ("off the grid", lambda: {**GOOD, "a": np.array([[-128, 0]], np.int8)}, "code -128 in tensor 'a'; expected -127"),
    ("step of doubles", lambda: {**GOOD, "a" + STEP: np.array(0.1)}, "step width of tensor 'a' is float64 ()"),
    ("two steps", lambda: {**GOOD, "a" + STEP: np.ones(2, np.float32)}, "step width of tensor 'a' is float32 (2,)"),
    *[
        (
            f"step {value}",
            lambda value=value: {**GOOD, "b" + STEP: np.asarray(value, np.float32)},
            f"step width {value}",
        )
        for value in (0.0, -1.0, np.nan, np.inf)
    ],
]


@pytest.mark.parametrize(("make", "reason"), [row[1:] for row in REASONS], ids=[row[0] for row in REASONS])
def test_what_is_not_quantised_is_refused_by_name(make: Callable[[], Arrays], reason: str) -> None:
    with pytest.raises(UpdateRejected) as caught:
        dequantise(make())
    assert reason in str(caught.value)
