"""Event ids that came of late, to know a second copy of an event."""

from collections import deque

import numpy as np

from common.ids import stable_hash


class RecentIds:
    """Remembers the last `window` event ids, as stable 64-bit hashes.

    Two different ids among a million collide with a chance of 3e-8.
    """

    def __init__(self, window: int) -> None:
        self._window = window
        self._order: deque[int] = deque()
        self._known: set[int] = set()

    def __contains__(self, event_id: str) -> bool:
        return stable_hash(event_id) in self._known

    def add(self, event_id: str) -> bool:
        """Remember the id; return False when it is remembered already."""
        mark = stable_hash(event_id)
        if mark in self._known:
            return False
        if self._window > 0:
            self._known.add(mark)
            self._order.append(mark)
            if len(self._order) > self._window:
                self._known.discard(self._order.popleft())
        return True

    def as_array(self) -> np.ndarray:
        """Return the hashes, oldest first, uint64."""
        return np.fromiter(self._order, dtype=np.uint64, count=len(self._order))

    def load(self, hashes: np.ndarray) -> None:
        """Take back what `as_array` gave, cut to the window."""
        kept = [int(value) for value in hashes][-self._window :] if self._window else []
        self._order, self._known = deque(kept), set(kept)
