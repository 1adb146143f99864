"""Products of many rows with one vector, first in 8 bits: a quarter of the memory is read, and all errors are bounded.

A row is written as ``q = s a + e`` with whole numbers a from -127 to 127, and the vector as ``w = t v + f`` likewise.
Then ``q . w = s t (a . v) + s a . f + e . w``, and by Cauchy-Schwarz the last two are at most ``|s a| |f| + |e| |w|``:
the lengths of s a and e are kept with each row, those of f and w are known once asked. So what can be among the best is
found without a look at the rows themselves, and none of the best is missed.

References
----------
Li, Chan, Yiu, Mamoulis: FEXIPRO: fast and exact inner product retrieval in recommender systems. SIGMOD 2017 (bounds
from whole numbers; here with one scale a row, and bounds by lengths).
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np

LEAST_ROWS = 4_096
"""Of fewer rows, a pass over all takes no longer than what this one takes beside its product."""
_LARGEST = 127.0
_ROWS = 4_096
_ROUNDING = np.float32(1e-6)
"""Of sums of products in float32 and of the bounds themselves, beside the rows' and the vector's lengths."""
_TRIES, _TRIED_ROWS, _TRIED_WIDTH = 5, 16_384, 128

Multiply = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""Of int8 [n, d] with int8 [d], each row times its float32 [n]; float32 [n]."""


@dataclass(frozen=True, slots=True)
class CoarseRows:
    """Rows in 8 bits, and how far each is off.

    Parameters
    ----------
    codes
        a, int8 [n, d].
    scale
        s, float32 [n].
    length, error
        Lengths of s a and of e, float32 [n].
    most
        The greatest of each, float32 [2].
    """

    codes: np.ndarray
    scale: np.ndarray
    length: np.ndarray
    error: np.ndarray
    most: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray) -> "CoarseRows":
        """Write float32 [n, d] in 8 bits."""
        n, width = rows.shape
        numbers = (np.empty(size, dtype=np.float32) for size in (n, n, n, 2))
        made = cls(np.empty((n, width), dtype=np.int8), *numbers)
        for start in range(0, n, _ROWS):
            part = rows[start : start + _ROWS]
            here = slice(start, start + len(part))
            scale = np.abs(part).max(axis=1) / np.float32(_LARGEST)
            scale[scale == 0.0] = 1.0
            rounded = np.rint(part / scale[:, None])
            made.codes[here], made.scale[here] = rounded, scale
            rounded *= scale[:, None]
            made.length[here] = _lengths(rounded)
            made.error[here] = _lengths(part - rounded)
        made.most[:] = made.length.max(initial=0.0), made.error.max(initial=0.0)
        return made

    def product(self, weights: np.ndarray) -> tuple[np.ndarray, "Bounds"]:
        """Return the rows' products with float32 [d], float32 [n], and how far each may be off."""
        multiply = integer_product()
        assert multiply is not None  # noqa: S101  who asks has looked: `pays`
        step = np.float32(float(np.abs(weights).max()) / _LARGEST or 1.0)
        rounded = np.rint(weights / step)
        off = np.linalg.norm(weights - rounded * step)
        whole = np.linalg.norm(weights)
        products = multiply(self.codes, rounded.astype(np.int8), self.scale)
        products *= step
        return products, Bounds(self, np.float32(off + _ROUNDING * whole), np.float32(whole))

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "CoarseRows | None":
        """Return what `arrays` was asked of, None for no arrays."""
        return cls(**{field.name: arrays[field.name] for field in fields(cls)}) if arrays else None


@dataclass(frozen=True, slots=True)
class Bounds:
    """How far the products of coarse rows may be off, each and all.

    Parameters
    ----------
    rows
        The rows.
    off, whole
        Lengths of f and of w.
    """

    rows: CoarseRows
    off: np.float32
    whole: np.float32

    @property
    def most(self) -> float:
        """No product is off by more."""
        return float(self.rows.most[0] * self.off + self.rows.most[1] * self.whole)

    def at(self, rows: np.ndarray) -> np.ndarray:
        """Return by how much the products of some rows may be off, float32."""
        bound: np.ndarray = self.rows.length[rows] * self.off + self.rows.error[rows] * self.whole
        return bound


def coarse_of(rows: np.ndarray) -> CoarseRows | None:
    """Return the rows in 8 bits, or None where there are too few for that."""
    return CoarseRows.of(rows) if len(rows) >= LEAST_ROWS else None


@lru_cache(maxsize=1)
def pays() -> bool:
    """Tell whether this machine multiplies in 8 bits, and faster than in 32; tried once, in some milliseconds.

    Processors with instructions for it take a tenth of the time, others may take longer.
    """
    multiply = integer_product()
    if multiply is None:
        return False
    codes = np.ones((_TRIED_ROWS, _TRIED_WIDTH), dtype=np.int8)
    rows, ones = codes.astype(np.float32), np.ones(_TRIED_ROWS, dtype=np.float32)
    return _seconds(lambda: multiply(codes, codes[0], ones)) < _seconds(lambda: rows @ rows[0])


@lru_cache(maxsize=1)
def integer_product() -> Multiply | None:
    """Return what multiplies in 8 bits, or None where torch cannot, or gets it wrong on this processor."""
    import torch
    from torch.utils.dlpack import from_dlpack

    # the one product of whole numbers that torch offers for processors
    product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = getattr(torch, "_int_mm", None)
    if product is None:
        return None

    def multiply(codes: np.ndarray, weights: np.ndarray, scale: np.ndarray) -> np.ndarray:
        # by DLPack, which takes arrays that nobody may write to, such as mapped ones; torch's view, because numpy's new
        # axis has a stride of 0, with which the product comes out as another one
        sums = product(from_dlpack(codes), torch.from_numpy(weights).view(-1, 1)).numpy()
        scaled: np.ndarray = np.multiply(sums[:, 0], scale, dtype=np.float32, casting="unsafe")
        return scaled

    # with the largest numbers too: instructions that add up in 16 bits would overflow
    codes = np.resize(np.arange(-127, 128, dtype=np.int8), (_TRIED_WIDTH, _TRIED_WIDTH)).copy()
    codes[0], codes[1] = 127, -127
    expected = codes.astype(np.int64) @ codes[0].astype(np.int64)
    try:
        found = multiply(codes, codes[0], np.ones(_TRIED_WIDTH, dtype=np.float32))
    except RuntimeError:  # how torch says that it was built without
        return None
    return multiply if np.array_equal(found, expected) else None


def _seconds(run: Callable[[], object]) -> float:
    """Return the shortest time that it takes."""
    taken = []
    for _ in range(_TRIES):
        begun = time.perf_counter()
        run()
        taken.append(time.perf_counter() - begun)
    return min(taken)


def _lengths(rows: np.ndarray) -> np.ndarray:
    """Return the lengths of rows, float32, rounded up."""
    lengths: np.ndarray = np.sqrt(np.einsum("ij,ij->i", rows, rows)) * (1 + _ROUNDING)
    return lengths
