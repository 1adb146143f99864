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

from common.compiled import compiled_max
from server.serving.narrowing import LARGEST, InEightBits, still

LEAST_ROWS = 4_096
"""Fewer rows lie in the processor's own memory, where one pass over all takes no longer than one in 8 bits."""
_UP = 1.0 + 1e-6
"""More than a number in float64 may lose when it is written as float32."""


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
        _write(still(rows), made.codes, made.scale, made.length, made.error)
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


@compiled_max
def _write(rows: np.ndarray, codes: np.ndarray, scale: np.ndarray, length: np.ndarray, error: np.ndarray) -> None:
    """Write rows, which are finite, in 8 bits; lengths are rounded up."""
    most = np.float32(LARGEST)
    for row in range(len(rows)):
        largest = np.float32(0.0)
        for value in rows[row]:
            largest = max(largest, abs(value))
        step = largest / most
        if step == np.float32(0.0):
            step = np.float32(1.0)
        coded, off = 0.0, 0.0
        for place in range(rows.shape[1]):
            # a step that is hardly a number may be rounded so far down that more than the largest would be needed
            whole = max(-most, min(most, np.rint(rows[row, place] / step)))
            codes[row, place] = np.int8(whole)
            part = np.float64(whole) * np.float64(step)
            coded += part * part
            off += (np.float64(rows[row, place]) - part) ** 2
        scale[row] = step
        length[row], error[row] = np.sqrt(coded) * _UP, np.sqrt(off) * _UP
