"""A ranker made of parts: each part has arrays, an opinion about every item, and a lesson to learn from an event.

Parts know rows, not ids; the ranker keeps ids, histories and seen items once for all of its parts.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from common.errors import InvalidSetting
from stream.learner.base import ArrayRanker
from stream.learner.kernels import SeenLog, UserRows, mark_seen, note_positive
from stream.learner.retention import Retention

Arrays = dict[str, np.ndarray]


class Ground(NamedTuple):
    """What all parts stand on: users, the log of seen items, positive events an item, and marks to work with."""

    users: UserRows
    log: SeenLog
    counts: np.ndarray
    marks: np.ndarray


class Event(NamedTuple):
    """One event in rows, before it is noted; `user` is -1 for a dislike of an unknown user."""

    number: int
    user: int
    item: int
    weight: float
    n_items: int


class Part(ABC):
    """One opinion inside a ranker.

    Item arrays have one row an item and grow with them; fixed arrays do not grow. Both are durable state.
    """

    name: str

    @abstractmethod
    def item_arrays(self) -> Arrays:
        """Return the item arrays, each of no rows."""

    def fixed_arrays(self) -> Arrays:
        """Return the fixed arrays as they start."""
        return {}

    def packed(self, items: Arrays) -> Arrays:
        """Return the item arrays as a checkpoint holds them; they may be smaller and bear other names."""
        return items

    def unpacked(self, items: Arrays) -> Arrays:
        """Return what `packed` got, bit for bit."""
        return items

    @abstractmethod
    def wire(self, items: Mapping[str, np.ndarray], fixed: Mapping[str, np.ndarray], ground: Ground) -> None:
        """Take up arrays that were replaced; the names are those of `item_arrays` and `fixed_arrays`."""

    def start_item(self, row: int, item: str) -> None:  # noqa: B027 - some parts have nothing to fill in
        """Fill in a new item's row; it is all zeros before."""

    def restart_item(self, row: int, item: str) -> None:  # noqa: B027 - some parts fade by themselves
        """Bring an item's row back to its start."""

    @abstractmethod
    def score(self, user: int, event: int, out: np.ndarray) -> None:
        """Write the scores of the first ``len(out)`` items to `out`, float32; `user` -1 has no history."""

    @abstractmethod
    def unknown(self, user: int, event: int, item: str) -> float:
        """Return the score that an item would have if it were added now."""

    @abstractmethod
    def like(self, event: Event) -> None:
        """Learn a liked event; the user's seen items are marked with ``event.number + 1``."""

    def dislike(self, event: Event) -> None:  # noqa: B027 - texts learn nothing
        """Learn a disliked event; its weight is above 0."""


class PartRanker(ArrayRanker):
    """A ranker whose opinion is that of its parts.

    Parameters
    ----------
    parts
        With names apart; the first one's scores are the ranker's unless a subclass mixes them.
    seed, window, retention
        As for `ArrayRanker`.
    """

    def __init__(self, parts: tuple[Part, ...], seed: int, window: int, retention: Retention | None = None) -> None:
        self._parts: tuple[Part, ...] = ()
        super().__init__(seed=seed, window=window, retention=retention)
        self._parts = parts
        for part in parts:
            self._item_arrays |= {f"{part.name}.{key}": array for key, array in part.item_arrays().items()}
            self._fixed_arrays |= {f"{part.name}.{key}": array for key, array in part.fixed_arrays().items()}
        self._rewire()

    def _rewire(self) -> None:
        super()._rewire()
        counts = self._item_arrays["counts"]
        self._ground = Ground(self._users, self._log, counts, np.zeros(len(counts), dtype=np.int64))
        for part in self._parts:
            prefix = f"{part.name}."
            part.wire(_under(prefix, self._item_arrays), _under(prefix, self._fixed_arrays), self._ground)

    def _packed(self, items: Arrays) -> Arrays:
        for part in self._parts:
            own = part.packed(_under(f"{part.name}.", items))
            items = _without(f"{part.name}.", items) | {f"{part.name}.{key}": array for key, array in own.items()}
        return items

    def _unpacked(self, items: Arrays) -> Arrays:
        for part in self._parts:
            own = part.unpacked(_under(f"{part.name}.", items))
            items = _without(f"{part.name}.", items) | {f"{part.name}.{key}": array for key, array in own.items()}
        return items

    def _start_item(self, row: int, item: str) -> None:
        for part in self._parts:
            part.start_item(row, item)

    def _restart_item(self, row: int, item: str) -> None:
        for part in self._parts:
            part.restart_item(row, item)

    def _with_history(self, row: int) -> int:
        return -1 if row < 0 or not self._users.positives[row] else row

    def _scores(self, user: int) -> np.ndarray:
        scored = np.empty(self.n_items, dtype=np.float32)
        self._parts[0].score(self._with_history(user), self._events, scored)
        return scored

    def _unknown_item_score(self, user: int, item: str) -> float:
        return self._parts[0].unknown(self._with_history(user), self._events, item)

    def _learn(self, user: int, item: int, weight: float) -> None:
        if weight < 0:
            event = Event(self._events, user, item, -weight, self.n_items)
            for part in self._parts:
                part.dislike(event)
            return
        stamp = self._events + 1
        mark_seen(self._log, int(self._users.newest[user]), self._ground.marks, stamp)
        event = Event(self._events, user, item, weight, self.n_items)
        for part in self._parts:
            part.like(event)
        self._item_arrays["counts"][item] += 1
        seen = bool(self._ground.marks[item] == stamp)
        self._log_size = note_positive(self._users, self._log, self._log_size, user, item, seen)


def _under(prefix: str, arrays: Mapping[str, np.ndarray]) -> Arrays:
    return {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}


def _without(prefix: str, arrays: Mapping[str, np.ndarray]) -> Arrays:
    return {key: array for key, array in arrays.items() if not key.startswith(prefix)}


def check_rates(rates: Mapping[str, object], *, zero_allowed: frozenset[str] = frozenset()) -> None:
    """Refuse a rate that is no finite number above 0, or from 0 on where that is allowed.

    Raises
    ------
    InvalidSetting
        Naming it.
    """
    for name, rate in rates.items():
        least = 0.0 if name in zero_allowed else 1e-12
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not least <= rate < 1e9:
            wanted = "a finite number from 0 on" if name in zero_allowed else "a finite number above 0"
            raise InvalidSetting(f"{name} {rate!r}", expected=wanted)


def check_counts(counts: Mapping[str, object], least: int = 1) -> None:
    """Refuse a count that is no int of `least` or more.

    Raises
    ------
    InvalidSetting
        Naming it.
    """
    for name, count in counts.items():
        if type(count) is not int or count < least:
            raise InvalidSetting(f"{name} {count!r}", expected=f"an int of {least} or more")


def decay_of(window: int, recency: float) -> np.ndarray:
    """Return exp(-d / recency) for d from 0 to window - 1, float32."""
    decay: np.ndarray = np.exp(-np.arange(window, dtype=np.float32) / np.float32(recency)).astype(np.float32)
    return decay
