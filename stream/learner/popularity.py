"""The control that every report shows: how often an item was liked."""

import numpy as np

from stream.learner.base import ArrayRanker
from stream.learner.kernels import mark_seen, note_positive


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

    def _rewire(self) -> None:
        super()._rewire()
        self._marks = np.zeros(len(self._item_arrays["counts"]), dtype=np.int64)

    def scores(self, user: str) -> np.ndarray:
        """Return the counts, float32 [n_items]."""
        return self._item_arrays["counts"][: self.n_items].astype(np.float32)

    def _unknown_item_score(self, user: str, item: str) -> float:
        return 0.0

    def _learn(self, user: int, item: int, weight: float) -> None:
        if weight < 0:
            return
        self._item_arrays["counts"][item] += 1
        stamp = self._events + 1
        mark_seen(self._log, int(self._users.newest[user]), self._marks, stamp)
        seen = bool(self._marks[item] == stamp)
        self._log_size = note_positive(self._users, self._log, self._log_size, user, item, seen)
