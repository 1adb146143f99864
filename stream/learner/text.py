"""The items' text vectors inside a learner: few dimensions, and a bridge from one adapter version to the next."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from common.compiled import compiled, dot
from common.errors import InvalidSetting
from common.ids import arrays_sha256, stable_hash
from stream.learner.kernels import UserRows, fold
from stream.learner.parts import Arrays, Event, Ground, Part, check_counts, check_rates, decay_of

_RIDGE = 1e-3
ROWS = 16_384
"""So many rows tell what axes texts lie along."""
_AT_A_TIME = 1_024
"""So many rows are turned into float64 at a time: memory that is used again, not fetched and let go of."""


def blocks_of(rows: int) -> Iterator[slice]:
    """Give the rows block by block."""
    return (slice(start, start + _AT_A_TIME) for start in range(0, rows, _AT_A_TIME))


def fitted_on(vectors: np.ndarray) -> np.ndarray:
    """Return the rows that axes are fitted to, a view: all, or of very many `ROWS`, from everywhere."""
    return vectors[:: -(-len(vectors) // ROWS) or 1]


def principal_rows(vectors: np.ndarray, dimensions: int) -> np.ndarray:
    """Return the vectors' first principal components, each row of length 1, float32 [n, dimensions].

    Missing dimensions are zeros. The sign of each component is fixed (its largest entry is positive), so the same
    vectors give the same rows. Of more than `ROWS` vectors that many tell the axes.
    """
    sample = fitted_on(vectors)
    mean, spread = sample.mean(axis=0, dtype=np.float64), np.zeros((vectors.shape[1], vectors.shape[1]))
    for block in blocks_of(len(sample)):
        centred = sample[block] - mean
        spread += centred.T @ centred
    _, axes = np.linalg.eigh(spread)
    kept = axes[:, ::-1][:, :dimensions]
    kept = kept * np.sign(kept[np.argmax(np.abs(kept), axis=0), np.arange(kept.shape[1])])
    found = np.zeros((len(vectors), dimensions), dtype=np.float32)
    for block in blocks_of(len(vectors)):
        rows = (vectors[block] - mean) @ kept
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        found[block, : kept.shape[1]] = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 1e-9)
    return found


def change_of(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Return R, float64 [d, d], with ``new @ R`` closest to `old`: ridge regression over rows of both, `fitted_on`."""
    told, wanted = fitted_on(new).astype(np.float64), fitted_on(old).astype(np.float64)
    gram = told.T @ told + _RIDGE * max(1, len(told)) / told.shape[1] * np.eye(told.shape[1])
    change: np.ndarray = np.linalg.solve(gram, told.T @ wanted)
    return change


@compiled
def score_texts(
    texts: np.ndarray, users: UserRows, decay: np.ndarray, user: int, interest: np.ndarray, out: np.ndarray
) -> None:
    """Write ``texts @ interest`` to `out`, where interest is folded from the history's texts."""
    fold(texts, users.ring[user], users.positives[user], decay, interest)
    for row in range(len(out)):
        out[row] = dot(texts[row], interest)


class TextSpace(Part):
    """Text rows of the items, and the part that scores by likeness to the recent history's texts.

    Nothing is learned here. An item without a text has a row of zeros.

    Parameters
    ----------
    dimensions
        Length of a text row.
    window, recency
        As for `Neighbours`.
    """

    name = "content"

    def __init__(self, dimensions: int, window: int, recency: float) -> None:
        check_counts({"text_dimensions": dimensions})
        check_rates({"text_recency": recency})
        self.dimensions = dimensions
        self._decay = decay_of(window, recency)

    def item_arrays(self) -> Arrays:
        """Return the item arrays, each of no rows."""
        return {"rows": np.zeros((0, self.dimensions), dtype=np.float32)}

    def fixed_arrays(self) -> Arrays:
        """Return the fingerprint of what the items were described with; 0 for nothing yet."""
        return {"described": np.zeros(1, dtype=np.int64)}

    def wire(self, items: Mapping[str, np.ndarray], fixed: Mapping[str, np.ndarray], ground: Ground) -> None:
        """Take up arrays that were replaced."""
        self.take(items["rows"], fixed["described"])
        self._users = ground.users

    def take(self, rows: np.ndarray, described: np.ndarray) -> None:
        """Take up text rows and the fingerprint, for whoever asks for no scores."""
        self._rows, self._flag = rows, described

    @property
    def rows(self) -> np.ndarray:
        """The text rows, float32 [capacity, dimensions]."""
        return self._rows

    @property
    def described(self) -> bool:
        """Whether any item has a text."""
        return bool(self._flag[0])

    def describe(self, places: np.ndarray, vectors: np.ndarray) -> np.ndarray | None:
        """Take the vectors, float [n, h], for the texts of the items in rows `places`.

        Returns
        -------
        numpy.ndarray | None
            The change to the new space for whoever learned in the old one (see `change_of`), or None at
            the first time, and for vectors that were told before.
        """
        fingerprint = stable_hash(arrays_sha256([("places", places), ("vectors", vectors)])) >> 1 or 1
        if fingerprint == int(self._flag[0]):  # told before: a restart must change nothing
            return None
        rows = principal_rows(vectors, self.dimensions)
        change = change_of(self._rows[places], rows) if self.described else None
        self._rows[:] = 0.0
        self._rows[places] = rows
        self._flag[0] = fingerprint
        return change

    def score(self, user: int, event: int, out: np.ndarray) -> None:
        """Write the likeness to the history; 0 without one."""
        out[:] = 0.0
        if user >= 0 and self.described:
            score_texts(self._rows, self._users, self._decay, user, np.zeros(self.dimensions, dtype=np.float32), out)

    def unknown(self, user: int, event: int, item: str) -> float:
        """Return 0: it has no text."""
        return 0.0

    def like(self, event: Event) -> None:
        """Learn nothing: texts do not change by clicks."""


def checked_vectors(ids: Sequence[str], vectors: np.ndarray) -> np.ndarray:
    """Return the vectors.

    Raises
    ------
    InvalidSetting
        When they are not one finite row an id, or an id comes twice.
    """
    fitting = vectors.ndim == 2 and len(vectors) == len(ids) > 0
    if not fitting or not all(np.isfinite(vectors[block]).all() for block in blocks_of(len(vectors))):
        raise InvalidSetting(
            f"text vectors of shape {vectors.shape} for {len(ids)} items", expected="one row of finite numbers an item"
        )
    if len(set(ids)) != len(ids):
        raise InvalidSetting("an item is described twice", expected="each item once")
    return vectors
