"""Real numbers as integers of a ring in which sums wrap around without loss.

The ring is that of 64-bit integers, so a mask is 64 random bits a number and adding is numpy's own. A power of two as
scale makes the conversion exact but for the rounding of what is finer than the grid.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from common.errors import UpdateRejected

LARGEST_BITS = 14
"""No element of an update may exceed 2^14; honest ones are smaller by far."""
COARSEST = 1e-6
"""How much of a bound the grid may add to it."""


@dataclass(frozen=True, slots=True)
class FixedPoint:
    """Numbers on the grid of ``2 ** -fraction_bits``, as unsigned 64-bit integers that stand for signed ones.

    Each number is off by at most half a grid step, so the sum of n updates by at most ``n * step / 2`` an element.

    Parameters
    ----------
    fraction_bits
        Bits behind the point.
    """

    fraction_bits: int

    @classmethod
    def for_sum_of(cls, updates: int) -> "FixedPoint":
        """Return the finest grid on which the sum of so many updates cannot overflow: step 2^-44 for twenty."""
        return cls(63 - LARGEST_BITS - updates.bit_length())

    @property
    def step(self) -> float:
        """The distance of two neighbours on the grid."""
        return 2.0**-self.fraction_bits

    def encode(self, numbers: np.ndarray) -> np.ndarray:
        """Return the nearest numbers of the grid, uint64; ties go to even.

        Rounding is deterministic: it adds no randomness that an accountant would have to know of.

        Raises
        ------
        UpdateRejected
            For what is not finite, or too large to be added up without overflow.
        """
        wide = np.asarray(numbers, dtype=np.float64)
        if not np.isfinite(wide).all() or (wide.size and np.abs(wide).max() > 2.0**LARGEST_BITS):
            raise UpdateRejected(
                "an update with an element that is not finite or larger than the ring can add up",
                expected=f"finite numbers of at most {2**LARGEST_BITS}",
                consequence="the node sends nothing",
            )
        return np.rint(wide * 2.0**self.fraction_bits).astype(np.int64).view(np.uint64)

    def decode(self, total: np.ndarray) -> np.ndarray:
        """Return the numbers that elements of the ring stand for, float64."""
        return total.view(np.int64).astype(np.float64) * self.step

    def widens(self, bound: float, size: int) -> bool:
        """Tell whether rounding may add more than a millionth to a bound of the norm of `size` numbers.

        Two neighbouring inputs are each off by half a step an element, so the bound of their distance grows by at most
        ``sqrt(size) * step``.
        """
        return bool(np.sqrt(size) * self.step > COARSEST * bound)


def flatten(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return all numbers as one row, in the order of the names."""
    return np.concatenate([np.asarray(arrays[name]).ravel() for name in sorted(arrays)])


def unflatten(row: np.ndarray, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Return what `flatten` made a row of."""
    ends = np.cumsum([int(np.prod(shapes[name])) for name in sorted(shapes)])
    pieces = np.split(row, ends[:-1])
    return {name: piece.reshape(shapes[name]) for name, piece in zip(sorted(shapes), pieces, strict=True)}
