"""The float32 exponential and logarithm beside those of the C library in float64."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stream.learner.elementary import exp_32, log_32

_least, _most = float(np.float32(1.2e-38)), float(np.finfo(np.float32).max)


@given(x=st.floats(-86.5, 88.0, width=32))
def test_the_exponential(x: float) -> None:
    assert math.isclose(float(exp_32(np.float32(x))), math.exp(x), rel_tol=2e-7)


@given(x=st.floats(_least, _most, width=32))
def test_the_logarithm(x: float) -> None:
    assert math.isclose(float(log_32(np.float32(x))), math.log(x), rel_tol=1e-6, abs_tol=1e-7)


def test_what_is_far_below_is_as_good_as_nothing() -> None:
    assert float(exp_32(np.float32(0.0))) == 1.0
    assert float(log_32(np.float32(1.0))) == 0.0
    for far in (-87.0, -1e4, -np.inf):
        assert 0.0 < float(exp_32(np.float32(far))) < 2e-38
