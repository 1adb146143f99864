"""A node's own interactions, as the records that training draws.

A record is one window of up to W clicks of one user, with its own sampled negatives. Under unit "user" each user gives
one random window a step; under unit "example" the histories are cut into disjoint windows, fixed for ever, and each
window is a record.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from common.errors import EmptyData, InvalidSetting
from common.events import Interaction
from common.ids import arrays_sha256
from common.items import Catalogue
from common.privacy import PrivacyUnit
from common.settings import is_positive

MIN_CLICKS = 2
"""A record needs one click to predict from and one to predict."""


@dataclass(frozen=True, slots=True)
class Record:
    """What the loss of one record reads, and nothing else.

    Parameters
    ----------
    window
        Item rows in click order, int64 [w], 2 <= w <= W.
    negatives
        Item rows, int64 [n].
    """

    window: np.ndarray
    negatives: np.ndarray


class NodeData:
    """The click histories that a node holds.

    Parameters
    ----------
    histories
        User id to item rows in click order; users with fewer than two clicks are left out.
    items
        Size of the catalogue.

    Raises
    ------
    EmptyData
        When no user has two clicks.
    """

    def __init__(self, histories: Mapping[str, np.ndarray], items: int) -> None:
        self.histories = {user: rows for user, rows in sorted(histories.items()) if len(rows) >= MIN_CLICKS}
        self.items = items
        if not self.histories:
            raise EmptyData(
                f"a node with {len(histories)} users, none with {MIN_CLICKS} positive interactions",
                expected="at least one user to learn from",
                consequence="the node takes no part",
            )

    @classmethod
    def from_interactions(cls, interactions: Iterable[Interaction], catalogue: Catalogue) -> "NodeData":
        """Collect positive interactions, in time order, with items of the catalogue."""
        histories: dict[str, list[int]] = {}
        for event in sorted(interactions, key=lambda each: each.ts):
            row = catalogue.index(event.item_id)
            if row is not None and is_positive(event):
                histories.setdefault(event.user_id, []).append(row)
        return cls({user: np.array(rows, dtype=np.int64) for user, rows in histories.items()}, len(catalogue))

    def digest(self) -> str:
        """Return a hash of everything that training reads; it stays at the node."""
        return arrays_sha256((f"{user}/{self.items}", rows) for user, rows in self.histories.items())

    def population(self, unit: PrivacyUnit, window: int) -> "Population":
        """Return the records that Poisson sampling draws from, for a privacy unit and a window length."""
        if window < MIN_CLICKS:
            raise InvalidSetting(f"a window of {window} clicks", expected=f"at least {MIN_CLICKS}")
        if unit == "example":
            cut = [rows[i : i + window] for rows in self.histories.values() for i in range(0, len(rows), window)]
            return Population([rows for rows in cut if len(rows) >= MIN_CLICKS], window, self.items)
        return Population(list(self.histories.values()), window, self.items)


@dataclass(frozen=True, slots=True)
class Population:
    """The units that may be drawn, each a click sequence.

    Parameters
    ----------
    sequences
        Item rows in click order, one array a unit.
    window
        W, the longest window.
    items
        Size of the catalogue.
    """

    sequences: Sequence[np.ndarray]
    window: int
    items: int

    def __len__(self) -> int:
        return len(self.sequences)

    def draw(self, sample_rate: float, negatives: int, rng: np.random.Generator) -> list[Record]:
        """Poisson-sample units, each on its own with probability `sample_rate`, and make one record of each.

        The list may be empty; the step then is noise alone.
        """
        chosen = np.flatnonzero(rng.random(len(self.sequences)) < sample_rate)
        return [self._record(self.sequences[int(unit)], negatives, rng) for unit in chosen]

    def _record(self, sequence: np.ndarray, negatives: int, rng: np.random.Generator) -> Record:
        start = int(rng.integers(0, max(1, len(sequence) - self.window + 1)))
        window = sequence[start : start + self.window]
        return Record(window, sample_negatives(sequence, negatives, self.items, rng))


def sample_negatives(own: np.ndarray, count: int, items: int, rng: np.random.Generator) -> np.ndarray:
    """Draw `count` item rows uniformly, none of them in `own`: int64 [count].

    `own` is what the unit itself holds, so a record still depends on no other unit. A unit that owns the whole
    catalogue gets rows at random.
    """
    draws = rng.integers(0, items, size=4 * count + 16)
    fresh = draws[~np.isin(draws, own)][:count]
    if len(fresh) == count:
        return fresh
    left = np.setdiff1d(np.arange(items), own)  # `own` is most of the catalogue: choose among the few that are left
    return rng.choice(left if len(left) else items, size=count)
