"""Exponential and logarithm in float32, written out so that loops over them run on all lanes.

The compiler calls the C library once for each number otherwise, which takes four times as long and gives the bits of
whatever library is installed. Polynomials and splits of ln 2 are those of Cephes (Moshier), `expf.c` and `logf.c`.
"""

import numpy as np

from common.compiled import compiled

_ONE, _HALF = np.float32(1.0), np.float32(0.5)
_MANTISSA, _EXPONENT_OF_ONE = np.int32(23), np.int32(127)
_LEAST_EXPONENT = np.float32(-87.0)
_LOG2_E = np.float32(1.44269504088896341)
_LN2_HIGH, _LN2_LOW, _LN2 = np.float32(0.693359375), np.float32(-2.12194440e-4), np.float32(0.69314718056)
_ROOT_OF_HALF = np.int32(0x3F3504F3)
"""Bits of the square root of 1/2: mantissas are taken from there to the root of 2, where the series is best."""


@compiled
def exp_32(x: np.float32) -> np.float32:
    """Return e to the power of x, to 2e-7 of itself, for x up to 88; below -87 what it is at -87, 1.6e-38."""
    x = max(x, _LEAST_EXPONENT)
    power = np.floor(x * _LOG2_E + _HALF)
    rest = x - power * _LN2_HIGH
    rest = rest - power * _LN2_LOW
    series = np.float32(1.9875691500e-4)
    series = series * rest + np.float32(1.3981999507e-3)
    series = series * rest + np.float32(8.3334519073e-3)
    series = series * rest + np.float32(4.1665795894e-2)
    series = series * rest + np.float32(1.6666665459e-1)
    series = series * rest + np.float32(5.0000001201e-1)
    series = series * rest * rest + rest + _ONE
    scale: np.float32 = np.int32((np.int32(power) + _EXPONENT_OF_ONE) << _MANTISSA).view(np.float32)
    power_of_e: np.float32 = series * scale
    return power_of_e


@compiled
def log_32(x: np.float32) -> np.float32:
    """Return the natural logarithm of a finite x above 1.2e-38, to 1e-6 of itself, or 1e-7 near 1."""
    bits = np.float32(x).view(np.int32)
    power = (bits - _ROOT_OF_HALF) >> _MANTISSA
    rest = np.int32(bits - (power << _MANTISSA)).view(np.float32) - _ONE
    series = np.float32(7.0376836292e-2)
    series = series * rest + np.float32(-1.1514610310e-1)
    series = series * rest + np.float32(1.1676998740e-1)
    series = series * rest + np.float32(-1.2420140846e-1)
    series = series * rest + np.float32(1.4249322787e-1)
    series = series * rest + np.float32(-1.6668057665e-1)
    series = series * rest + np.float32(2.0000714765e-1)
    series = series * rest + np.float32(-2.4999993993e-1)
    series = series * rest + np.float32(3.3333331174e-1)
    square = rest * rest
    return series * rest * square - _HALF * square + rest + np.float32(power) * _LN2
