"""The algebra of adapter updates."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UpdateRejected
from common.updates import AdapterUpdate, UpdateMeta

SHAPES = {"lora_A": (2, 3), "lora_B": (4, 2), "bias": (5,)}
weights = st.floats(-8, 8, width=32)


@st.composite
def updates(draw: st.DrawFn) -> AdapterUpdate:
    """Draw an update of a fixed shape."""
    seed = draw(st.integers(0, 2**32))
    scale = draw(st.sampled_from([1e-6, 1.0, 1e3]))
    rng = np.random.default_rng(seed)
    arrays = {name: (rng.standard_normal(shape) * scale).astype(np.float32) for name, shape in SHAPES.items()}
    meta = UpdateMeta(client=str(seed), base_version="v1", strategy="fedsvd", round=1, examples=draw(st.floats(0, 99)))
    return AdapterUpdate(meta, arrays)


def assert_equal(left: AdapterUpdate, right: AdapterUpdate, *parts: AdapterUpdate) -> None:
    """Compare arrays up to rounding of the parts that went in."""
    assert left.arrays.keys() == right.arrays.keys()
    for name in left.arrays:
        largest = max([float(np.abs(part.arrays[name]).max()) for part in parts] + [1e-12])
        np.testing.assert_allclose(left.arrays[name], right.arrays[name], rtol=0, atol=largest * 1e-5)
        assert left.arrays[name].dtype == np.float32


@given(updates(), updates(), updates())
def test_addition_is_associative(a: AdapterUpdate, b: AdapterUpdate, c: AdapterUpdate) -> None:
    assert_equal((a + b) + c, a + (b + c), a, b, c)
    assert ((a + b) + c).meta.examples == pytest.approx((a + (b + c)).meta.examples)


@given(updates(), updates())
def test_addition_is_commutative(a: AdapterUpdate, b: AdapterUpdate) -> None:
    assert_equal(a + b, b + a)
    assert (a + b).meta.examples == (b + a).meta.examples


@given(updates())
def test_zero_is_the_unit(a: AdapterUpdate) -> None:
    for total in (a + a.zero(), a.zero() + a):
        for name in SHAPES:
            np.testing.assert_array_equal(total.arrays[name], a.arrays[name])
        assert total.meta.examples == a.meta.examples
    assert a.zero().norm() == 0.0


@given(updates(), updates(), weights)
def test_scaling_distributes_over_addition(a: AdapterUpdate, b: AdapterUpdate, weight: float) -> None:
    wide = max(abs(weight), 1.0)
    assert_equal((a + b).scale(weight), a.scale(weight) + b.scale(weight), a.scale(wide), b.scale(wide))


@given(updates(), weights, weights)
def test_scaling_twice_is_scaling_by_the_product(a: AdapterUpdate, one: float, two: float) -> None:
    bound = a.scale(max(abs(one), 1.0) * max(abs(two), 1.0))
    assert_equal(a.scale(one).scale(two), a.scale(float(np.float32(one) * np.float32(two))), bound)
    assert_equal(a.scale(1.0), a)


@given(updates(), weights)
def test_the_norm_is_that_of_one_long_vector_and_scales(a: AdapterUpdate, weight: float) -> None:
    flat = np.concatenate([array.astype(np.float64).ravel() for array in a.arrays.values()])
    assert a.norm() == pytest.approx(float(np.linalg.norm(flat)), rel=1e-12)
    # products near the smallest float32 numbers lose digits: hence the absolute part
    assert a.scale(weight).norm() == pytest.approx(abs(weight) * a.norm(), rel=1e-5, abs=1e-35)


@given(updates(), updates())
def test_the_norm_obeys_the_triangle(a: AdapterUpdate, b: AdapterUpdate) -> None:
    assert (a + b).norm() <= (a.norm() + b.norm()) * (1 + 1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@given(update=updates())
def test_the_norm_of_a_broken_update_is_not_finite(bad: float, update: AdapterUpdate) -> None:
    arrays = {name: array.copy() for name, array in update.arrays.items()}
    arrays["bias"][3] = bad
    assert not np.isfinite(AdapterUpdate(update.meta, arrays).norm())


def test_the_norm_of_the_largest_float32_numbers_is_finite() -> None:
    huge = np.full(4, np.finfo(np.float32).max, dtype=np.float32)
    meta = UpdateMeta("c", "v", "s", 1, 1.0)
    assert AdapterUpdate(meta, {"a": huge}).norm() == pytest.approx(2 * float(np.finfo(np.float32).max))


@given(updates())
def test_nothing_is_changed_in_place(a: AdapterUpdate) -> None:
    before = {name: array.copy() for name, array in a.arrays.items()}
    _ = (a + a).scale(3.0)
    a.zero().arrays["bias"][:] = 7
    for name, array in before.items():
        np.testing.assert_array_equal(a.arrays[name], array)


@given(updates())
def test_updates_of_other_tensors_are_refused_by_name(a: AdapterUpdate) -> None:
    other = AdapterUpdate(a.meta, {name: array for name, array in a.arrays.items() if name != "bias"})
    for left, right in pairwise([a, other, a]):
        with pytest.raises(UpdateRejected, match="bias"):
            left + right


def test_what_is_public_holds_no_array() -> None:
    meta = UpdateMeta("c", "v", "s", 1, 1.0, metrics={"loss": 0.5})
    values: list[Any] = [getattr(meta, name) for name in meta.__slots__]
    assert not any(isinstance(value, np.ndarray) for value in values)
