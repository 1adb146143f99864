"""What is worked out of item rows and kept beside them: their sums, and the rows in 8 bits where there are many.

A version carries that of its item vectors from its publication (`rows_file`), so that a service which takes it up maps
a file instead of computing one: what it would have to write and to let go of is a third of the vectors each time.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from common.errors import ArtifactCorrupt
from common.store import pack_arrays
from server.artifact import ITEM_ROWS
from server.serving.coarse import CoarseRows, coarse_of
from server.serving.sums import ItemSums

SUMS, COARSE = "sums.", "coarse."
"""How the names of the arrays begin."""
_LOOKED_AT = 64
"""Rows that are held against the vectors: the hash says that the file is as published, not that it was made of them."""
_SLACK = 1e-4


@dataclass(frozen=True, slots=True)
class Beside:
    """Sums of item rows, and the rows in 8 bits where there are many."""

    sums: ItemSums
    coarse: CoarseRows | None

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays by name."""
        coarse = {} if self.coarse is None else self.coarse.arrays()
        return named(SUMS, self.sums.arrays()) | named(COARSE, coarse)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Beside":
        """Return what `arrays` was asked of, whatever else is there."""
        return cls(ItemSums.from_arrays(part_of(SUMS, arrays)), CoarseRows.from_arrays(part_of(COARSE, arrays)))


def rows_file(vectors: np.ndarray) -> dict[str, bytes]:
    """Return the file, by name, that a version carries beside its item vectors, float32 [n, d]; none for few items."""
    coarse = coarse_of(vectors)
    # few take a service no time, and the sums alone may be larger than the vectors
    return {} if coarse is None else {ITEM_ROWS: pack_arrays(Beside(ItemSums.estimated(vectors), coarse).arrays())}


def checked_beside(arrays: Mapping[str, np.ndarray], vectors: np.ndarray, where: str) -> Beside:
    """Return what a version carries beside its item vectors, float32 [n, d].

    Raises
    ------
    ArtifactCorrupt
        When it has other shapes or types, or what it says of some of the vectors is not so.
    """
    count, width = vectors.shape
    expected = {
        f"{SUMS}columns": ("float64", (width,)),
        f"{SUMS}products": ("float64", (width, width)),
        f"{COARSE}codes": ("int8", (count, width)),
        **{f"{COARSE}{name}": ("float32", (count,)) for name in ("scale", "length", "error")},
    }
    found = {name: (array.dtype.name, array.shape) for name, array in arrays.items() if name in expected}
    if found != expected:
        raise _unfit(where, f"holds {found}", f"{expected}, as its item vectors have")
    beside = Beside.from_arrays(arrays)
    numbers = (array for name, array in arrays.items() if name in expected and array.dtype.kind == "f")
    if not all(np.isfinite(array).all() for array in numbers):
        raise _unfit(where, "holds a number that is not finite", "finite numbers")
    assert beside.coarse is not None  # noqa: S101  its arrays were compared
    some = slice(None, None, max(1, count // _LOOKED_AT))
    rows, coded = vectors[some].astype(np.float64), beside.coarse.codes[some] * beside.coarse.scale[some, None]
    error, length = np.linalg.norm(rows - coded, axis=1), np.linalg.norm(coded, axis=1)
    if np.any(error > beside.coarse.error[some] + _SLACK) or np.any(length > beside.coarse.length[some] + _SLACK):
        raise _unfit(where, "says of its item vectors what is not so", "them in 8 bits, with how far each is off")
    return beside


def _unfit(where: str, found: str, expected: str) -> ArtifactCorrupt:
    return ArtifactCorrupt(
        f"{where} {found}",
        expected=expected,
        consequence="the version is not served",
        mend="roll back to another version",
    )


def named(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays with a prefix before their names."""
    return {f"{prefix}{name}": array for name, array in arrays.items()}


def part_of(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return what `named` was given."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
