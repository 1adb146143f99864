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

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np

from server.serving.narrowing import LARGEST, InEightBits, still

LEAST_ROWS = 4_096
"""Fewer rows lie in the processor's own memory, where one pass over all takes no longer than one in 8 bits."""
_ROWS = 4_096
_ROUNDING = np.float32(1e-6)
"""Of sums of squares in float32."""


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
    """

    codes: np.ndarray
    scale: np.ndarray
    length: np.ndarray
    error: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray) -> "CoarseRows":
        """Write float32 [n, d] in 8 bits."""
        n, width = rows.shape
        made = cls(np.empty((n, width), dtype=np.int8), *(np.empty(n, dtype=np.float32) for _ in range(3)))
        for start in range(0, n, _ROWS):
            part = rows[start : start + _ROWS]
            here = slice(start, start + len(part))
            scale = np.abs(part).max(axis=1) / np.float32(LARGEST)
            scale[scale == 0.0] = 1.0
            rounded = np.rint(part / scale[:, None])
            made.codes[here], made.scale[here] = rounded, scale
            rounded *= scale[:, None]
            made.length[here] = _lengths(rounded)
            made.error[here] = _lengths(part - rounded)
        return made

    def parts(self) -> InEightBits:
        """Return what a compiled pass is given."""
        return still(self.codes), still(self.scale), still(self.length), still(self.error)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "CoarseRows | None":
        """Return what `arrays` was asked of, None for no arrays."""
        return cls(**{field.name: arrays[field.name] for field in fields(cls)}) if arrays else None


_NOTHING = np.empty(0, dtype=np.float32)
NOT_COARSE = CoarseRows(np.empty((0, 0), dtype=np.int8), _NOTHING, _NOTHING, _NOTHING)
"""What a pass is given where there are no rows in 8 bits."""


def coarse_of(rows: np.ndarray) -> CoarseRows | None:
    """Return the rows in 8 bits, or None where there are too few for that."""
    return CoarseRows.of(rows) if len(rows) >= LEAST_ROWS else None


def _lengths(rows: np.ndarray) -> np.ndarray:
    """Return the lengths of rows, float32, rounded up."""
    lengths: np.ndarray = np.sqrt(np.einsum("ij,ij->i", rows, rows)) * (1 + _ROUNDING)
    return lengths
