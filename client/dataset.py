"""A node's own interactions, as the records that training draws.

A record is one window of up to W clicks of one user, with its own sampled negatives. Under unit "user" each user gives
one random window a step; under unit "example" the histories are cut into disjoint windows, fixed for ever, and each
window is a record.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from common.errors import EmptyData, InvalidSetting
from common.events import Interaction
from common.ids import arrays_sha256
from common.items import Catalogue
from common.privacy import PrivacyUnit
from common.settings import is_positive

Windows = Sequence[np.ndarray]
NOTHING_OLD: Mapping[str, Windows] = MappingProxyType({})
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
    older
        User id to windows of clicks that the histories no longer hold; see `client.continual`.

    Raises
    ------
    EmptyData
        When no user has two clicks.
    """

    def __init__(
        self, histories: Mapping[str, np.ndarray], items: int, older: Mapping[str, Windows] = NOTHING_OLD
    ) -> None:
        self.histories = {user: rows for user, rows in sorted(histories.items()) if len(rows) >= MIN_CLICKS}
        self.items = items
        self.older = dict(sorted(older.items()))
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

    @property
    def users(self) -> tuple[str, ...]:
        """Everybody whose clicks training may read, sorted."""
        return tuple(sorted(self.histories.keys() | self.older.keys()))

    def digest(self) -> str:
        """Return a hash of everything that training reads; it stays at the node."""
        now = ((f"{user}/{self.items}", rows) for user, rows in self.histories.items())
        before = ((f"{user}/older/{i}", rows) for user, each in self.older.items() for i, rows in enumerate(each))
        return arrays_sha256([*now, *before])

    def population(self, unit: PrivacyUnit, window: int, replay: float = 0.0) -> "Population":
        """Return the records that Poisson sampling draws from.

        Parameters
        ----------
        unit
            The privacy unit.
        window
            Most clicks in a record.
        replay
            Chance that a user's record is made of an older window; of an older window to be drawn under "example", as a
            part of a new one's. 0 leaves everything old out.
        """
        if window < MIN_CLICKS:
            raise InvalidSetting(f"a window of {window} clicks", expected=f"at least {MIN_CLICKS}")
        older = self.older if replay else {}
        if unit == "example":
            new = _cut(self.histories.values(), window)
            old = _cut((rows for windows in older.values() for rows in windows), window)
            weights = np.array([1.0] * len(new) + [replay] * len(old)) if old else None
            return Population([*new, *old], window, self.items, weights=weights)
        if not older:
            return Population(list(self.histories.values()), window, self.items)
        users, none = self.users, np.zeros(0, dtype=np.int64)
        return Population(
            [self.histories.get(user, none) for user in users],
            window,
            self.items,
            older=[older.get(user, ()) for user in users],
            replay=replay,
        )


def _cut(sequences: Iterable[np.ndarray], window: int) -> list[np.ndarray]:
    """Return the disjoint windows of some click sequences, in order."""
    pieces = [rows[i : i + window] for rows in sequences for i in range(0, len(rows), window)]
    return [rows for rows in pieces if len(rows) >= MIN_CLICKS]


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
    older
        The older windows of each unit; empty when there are none at all.
    replay
        Chance that a unit with older windows gives one of them, where it has a choice.
    weights
        Chance of each unit to be drawn, at most 1, as a part of the sample rate, float64 [units]; None: all alike.
    """

    sequences: Sequence[np.ndarray]
    window: int
    items: int
    older: Sequence[Windows] = ()
    replay: float = 0.0
    weights: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.sequences)

    def expected(self, sample_rate: float) -> float:
        """Return how many records a step draws on average."""
        return sample_rate * (len(self) if self.weights is None else float(self.weights.sum()))

    def draw(self, sample_rate: float, negatives: int, rng: np.random.Generator) -> list[Record]:
        """Poisson-sample units, each on its own with probability `sample_rate`, and make one record of each.

        The list may be empty; the step then is noise alone.
        """
        chances = sample_rate if self.weights is None else sample_rate * self.weights
        chosen = np.flatnonzero(rng.random(len(self.sequences)) < chances)
        return [self._record(int(unit), negatives, rng) for unit in chosen]

    def _record(self, unit: int, negatives: int, rng: np.random.Generator) -> Record:
        sequence = own = self.sequences[unit]
        if self.older and (older := self.older[unit]):
            own = np.concatenate([sequence, *older])
            if not len(sequence) or rng.random() < self.replay:
                sequence = older[int(rng.integers(len(older)))]
        start = int(rng.integers(0, max(1, len(sequence) - self.window + 1)))
        window = sequence[start : start + self.window]
        return Record(window, sample_negatives(own, negatives, self.items, rng))


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
