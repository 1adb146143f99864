"""Updates in 8 bits: stochastic rounding to a grid, one step width a tensor.

A number x becomes the whole number below or above x / s, the one above with the chance of its fraction, so the mean
over many draws is x and no draw is off by a whole step s or more (Alistarh et al., 2017, "QSGD", arXiv 1610.02132, with
the largest number of a tensor in place of its norm). It reads nothing but the numbers that it rounds: of a noised
update it is post-processing, and costs no privacy.
"""

from collections.abc import Mapping

import numpy as np

from common.errors import UpdateRejected
from common.ids import rng_for

LARGEST = 127
"""Codes reach from -127 to 127; -128 is none, so that the grid is symmetric."""
STEP = "/step"
"""What follows a tensor's name in the name of its step width."""


def quantise(arrays: Mapping[str, np.ndarray], *seed: str | int) -> dict[str, np.ndarray]:
    """Return codes, int8 of each tensor's shape, and beside each its step width, float32 [].

    Parameters
    ----------
    arrays
        Tensor name to float32 array.
    seed
        Of the draws; the same seed gives the same codes.

    Raises
    ------
    UpdateRejected
        When an element is NaN or infinite: it has no place on a grid.
    """
    coded: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise UpdateRejected(
                f"tensor {name!r} has NaN or infinite elements",
                expected="finite numbers",
                consequence="it is not quantised",
            )
        # rounded up: no number then lies beyond the last code
        largest = float(np.abs(array).max(initial=0.0))
        step = np.nextafter(np.float32(largest / LARGEST), np.float32(np.inf))
        draws = rng_for("quantise", name, *seed).random(array.shape)
        coded[name] = np.floor(array.astype(np.float64) / np.float64(step) + draws).astype(np.int8)
        coded[name + STEP] = np.asarray(step, dtype=np.float32)
    return coded


def dequantise(coded: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the numbers that codes stand for, float32.

    Raises
    ------
    UpdateRejected
        When there is a tensor without a step width or the other way round, or one of them is not what `quantise` makes;
        naming the first.
    """
    names = {name for name in coded if not name.endswith(STEP)}
    for odd in sorted({name + STEP for name in names} ^ (coded.keys() - names)):
        raise UpdateRejected(
            f"a quantised update in which {odd.removesuffix(STEP)!r} has codes or a step width alone",
            expected="both of each tensor",
        )
    return {name: _numbers(name, coded[name], coded[name + STEP]) for name in sorted(names)}


def _numbers(name: str, codes: np.ndarray, step: np.ndarray) -> np.ndarray:
    if codes.dtype != np.int8:
        raise UpdateRejected(f"codes of tensor {name!r} are {codes.dtype}", expected="int8")
    if codes.min(initial=0) < -LARGEST:
        raise UpdateRejected(f"code {codes.min()} in tensor {name!r}", expected=f"-{LARGEST} to {LARGEST}")
    if step.dtype != np.float32 or step.shape:
        raise UpdateRejected(f"the step width of tensor {name!r} is {step.dtype} {step.shape}", expected="float32 ()")
    if not 0 < step < np.inf:
        raise UpdateRejected(f"step width {step} of tensor {name!r}", expected="a finite number above 0")
    with np.errstate(over="ignore"):  # whoever sends such a step is refused for what it comes to
        return (codes * np.float64(step)).astype(np.float32)
