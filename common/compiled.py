"""The one door to numba: how arithmetic on arrays is compiled."""

from collections.abc import Callable
from typing import TypeVar

import numba

F = TypeVar("F", bound=Callable[..., object])


def compiled(function: F) -> F:
    """Compile once and keep the machine code beside the source."""
    compiled: F = numba.njit(cache=True, error_model="numpy")(function)
    return compiled


def compiled_sum(function: F) -> F:
    """As `compiled`, and let sums be re-ordered so that they run on all lanes."""
    compiled: F = numba.njit(cache=True, error_model="numpy", fastmath={"reassoc"})(function)
    return compiled


def compiled_max(function: F) -> F:
    """As `compiled_sum`, for numbers of which none is NaN: the order in which maxima are taken does not matter then."""
    compiled: F = numba.njit(cache=True, error_model="numpy", fastmath={"reassoc", "nnan", "nsz"})(function)
    return compiled
