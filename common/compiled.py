"""How arithmetic on arrays is compiled, by numba: once an installation, where there is a place to keep machine code."""

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np

F = TypeVar("F", bound=Callable[..., object])


def compiled(function: F) -> F:
    """Compile, and keep the machine code beside the source, in NUMBA_CACHE_DIR, or in the user's cache."""
    return _kept(function)


def compiled_sum(function: F) -> F:
    """As `compiled`, and let sums be re-ordered so that they run on all lanes."""
    return _kept(function, fastmath={"reassoc"})


def compiled_max(function: F) -> F:
    """As `compiled_sum`, for numbers of which none is NaN: the order in which maxima are taken does not matter then."""
    return _kept(function, fastmath={"reassoc", "nnan", "nsz"})


def _kept(function: F, **options: Any) -> F:
    # division by zero gives infinity, as numpy's does
    options["error_model"] = "numpy"
    made: F
    try:
        made = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no folder may be written to, so each process compiles for itself
        made = numba.njit(**options)(function)
    return made


@compiled_sum
def dot(left: np.ndarray, right: np.ndarray) -> np.float32:
    """Return the product of two float32 vectors."""
    total = np.float32(0.0)
    for place in range(len(left)):
        total += left[place] * right[place]
    return total
