"""Stochastic rounding, one number after the other, on whole fractions."""

from fractions import Fraction
from math import floor

import numpy as np


def quantised(array: np.ndarray, rng: np.random.Generator) -> tuple[list[int], float]:
    """Return the codes in the order of the numbers, and the step width: the first float32 above a 127th of the largest.

    A number goes up when a draw, added to what it has above the code below, reaches one.
    """
    draws = rng.random(array.shape).ravel().tolist()
    numbers = [float(value) for value in array.ravel()]
    step = float(np.nextafter(np.float32(max(map(abs, numbers), default=0.0) / 127), np.float32(np.inf)))
    codes = []
    for value, draw in zip(numbers, draws, strict=True):
        place = value / step
        below = floor(place)
        codes.append(below + int(Fraction(place) - below + Fraction(draw) >= 1))
    return codes, step
