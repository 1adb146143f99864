"""How often an item was liked: ever (the control that every report shows), and lately."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from common.compiled import compiled
from stream.learner.base import ArrayRanker
from stream.learner.elementary import log_32
from stream.learner.kernels import entry_of, note_positive
from stream.learner.parts import Arrays, Event, Ground, Part, PartRanker, check_counts, check_rates

FLOOR = 0.3
"""Counted for an item without clicks, so that its logarithm is finite."""
_LEAST_SCALE = 2.0**-256


class Popularity(ArrayRanker):
    """Ranks items by how often they were liked, for everybody alike: ``score(k) = n_k``.

    Dislikes change nothing.

    Parameters
    ----------
    seed
        Unused; every learner has one.
    window
        How many of a user's newest positive items are kept in order.

    Examples
    --------
    >>> from stream.learner.popularity import Popularity
    >>> model = Popularity()
    >>> model.learn_many(["ann", "bob", "ann"], ["tea", "tea", "cake"])
    >>> model.top_k("cid", 2)
    [('tea', 2.0), ('cake', 1.0)]
    >>> model.top_k("bob", 2)
    [('cake', 1.0)]
    """

    def __init__(self, seed: int = 0, window: int = 1) -> None:
        super().__init__(seed=seed, window=window)

    def _scores(self, user: int) -> np.ndarray:
        return self._item_arrays["counts"][: self.n_items].astype(np.float32)

    def _unknown_item_score(self, user: int, item: str) -> float:
        return 0.0

    def _learn(self, user: int, item: int, weight: float) -> None:
        if weight < 0:
            return
        self._item_arrays["counts"][item] += 1
        seen = entry_of(self._log, int(self._users.newest[user]), item) >= 0
        self._log_size = note_positive(self._users, self._log, self._log_size, user, item, seen)


@compiled
def score_mass(mass: np.ndarray, scale: float, out: np.ndarray) -> None:
    """Write ``log(mass * scale + FLOOR)`` to `out`, for as many rows as it has."""
    for row in range(len(out)):
        out[row] = log_32(np.float32(mass[row] * scale) + np.float32(FLOOR))


class Masses(NamedTuple):
    """Masses, float64 [capacity], the event that they are as of, int64 [1], and in how many events half is lost."""

    mass: np.ndarray
    since: np.ndarray
    half_life: float


@compiled
def fade_of(since: np.ndarray, event: int, half_life: float) -> float:
    """Return what a mass as of the event ``since[0]`` must be multiplied with at a later one."""
    fade: float = 0.5 ** ((event - since[0]) / half_life)
    return fade


@compiled
def add_mass(mass: np.ndarray, since: np.ndarray, half_life: float, event: int, item: int, amount: float) -> None:
    """Add to what is left of an item's mass at an event, down to 0; `since` moves up when numbers become too large."""
    scale = fade_of(since, event, half_life)
    if scale < _LEAST_SCALE:
        mass *= scale
        since[0] = event
        scale = 1.0
    mass[item] = max(0.0, mass[item] + amount / scale)


class PopularityPart(Part):
    """The arithmetic of `DecayedPopularity`.

    Masses are kept as of one event of the past, `since`: a click now counts the more the longer that is ago, and all
    others fade without being touched. Now and then `since` is moved up, before the numbers become too large.
    """

    name = "popularity"

    def __init__(self, half_life: float, dislike: float) -> None:
        check_rates({"half_life": half_life, "dislike": dislike}, zero_allowed=frozenset({"dislike"}))
        self._half_life, self._dislike = float(half_life), dislike

    def item_arrays(self) -> Arrays:
        """Return the item arrays, each of no rows."""
        return {"mass": np.zeros(0, dtype=np.float64)}

    def fixed_arrays(self) -> Arrays:
        """Return the event that masses are as of."""
        return {"since": np.zeros(1, dtype=np.int64)}

    def wire(self, items: Mapping[str, np.ndarray], fixed: Mapping[str, np.ndarray], ground: Ground) -> None:
        """Take up arrays that were replaced."""
        self._mass, self._since = items["mass"], fixed["since"]

    @property
    def masses(self) -> Masses:
        """What was learned, and how it fades."""
        return Masses(self._mass, self._since, self._half_life)

    def scale(self, event: int) -> float:
        """Return what a mass must be multiplied with at an event."""
        return float(fade_of(self._since, event, self._half_life))

    def score(self, user: int, event: int, out: np.ndarray) -> None:
        """Write the scores, the same for every user."""
        score_mass(self._mass, self.scale(event), out)

    def unknown(self, user: int, event: int, item: str) -> float:
        """Return the score of an item without clicks."""
        scored = np.empty(1, dtype=np.float32)
        score_mass(np.zeros(1), 1.0, scored)
        return float(scored[0])

    def like(self, event: Event) -> None:
        """Add one to what is left of the item's mass."""
        self._add(event, 1.0)

    def dislike(self, event: Event) -> None:
        """Take from what is left of the item's mass, down to 0."""
        self._add(event, -self._dislike)

    def _add(self, event: Event, amount: float) -> None:
        add_mass(self._mass, self._since, self._half_life, event.number, event.item, amount)


class DecayedPopularity(PartRanker):
    """Ranks items by how often they were liked lately, for everybody alike.

    A like counts 1 and loses half of it in `half_life` events; ``score(k) = log(mass_k + 0.3)``.

    Parameters
    ----------
    half_life
        In events of the whole stream.
    dislike
        How much of a like a dislike takes away.
    window
        How many of a user's newest positive items are kept in order.
    seed
        Unused; every learner has one.

    Examples
    --------
    >>> from stream.learner.popularity import DecayedPopularity
    >>> model = DecayedPopularity(half_life=2.0)
    >>> model.learn_many(["ann", "bob", "cid", "dan"], ["tea", "tea", "cake", "cake"])
    >>> [item for item, _ in model.top_k("eve", 2)]
    ['cake', 'tea']
    """

    def __init__(self, half_life: float = 3000.0, dislike: float = 0.5, window: int = 1, seed: int = 0) -> None:
        self.half_life, self.dislike = half_life, dislike
        check_counts({"window": window})
        super().__init__((PopularityPart(half_life, dislike),), seed, window)
