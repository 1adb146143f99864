"""Which items get a row, and how long a row keeps what it learned while no event names it."""

from collections import OrderedDict
from collections.abc import Mapping

import numpy as np

from common.errors import InvalidSetting
from common.ids import stable_hash

DAY_MS = 86_400_000
CELLS = 1 << 14
"""Counters of waiting items, in each of two rows; after as many events all are halved, so memory stays bounded."""
MOST_WAITED = 1_000


class Retention:
    """Time to live of item rows, and a threshold for new items; both are off unless told otherwise.

    Time is that of the events. It moves to the earlier of the last two events' times and never back, so one event with
    a wrong date drops nothing. Waiting items are counted by hash in a sketch of fixed size: one may be let in early,
    never late by more than a halving.

    Parameters
    ----------
    ttl_days
        A row that no event named for longer goes back to its start, at the next event; 0 keeps all for ever.
    admit_at
        An item gets its row at its so-manieth event, and what came before is not learned; 1 admits all at once.

    References
    ----------
    Liu et al.: Monolith: real time recommendation system with collisionless embedding table. ORSUM at RecSys 2022.
    Cormode, Muthukrishnan: An improved data stream summary: the count-min sketch. Journal of Algorithms 55(1), 2005.
    """

    def __init__(self, ttl_days: float = 0.0, admit_at: int = 1) -> None:
        if isinstance(ttl_days, bool) or not isinstance(ttl_days, int | float) or not 0.0 <= ttl_days < 1e6:
            raise InvalidSetting(f"ttl_days {ttl_days!r}", expected="a number of days from 0 on")
        if type(admit_at) is not int or not 1 <= admit_at <= MOST_WAITED:
            raise InvalidSetting(f"admit_at {admit_at!r}", expected=f"an int from 1 to {MOST_WAITED}")
        self._ttl_ms, self._admit_at = int(ttl_days * DAY_MS), admit_at
        self._order: OrderedDict[int, None] = OrderedDict()

    @property
    def on(self) -> bool:
        """Whether anything is dropped or kept waiting."""
        return self._ttl_ms > 0 or self._admit_at > 1

    def item_arrays(self) -> dict[str, np.ndarray]:
        """Return the item arrays, each of no rows: a row's last event, in milliseconds plus 1; 0 is never."""
        return {"touched": np.zeros(0, dtype=np.int64)} if self._ttl_ms else {}

    def fixed_arrays(self) -> dict[str, np.ndarray]:
        """Return the fixed arrays as they start: time and the last event's time; counters of waiting items."""
        found = {"clock": np.zeros(2, dtype=np.int64)} if self._ttl_ms else {}
        if self._admit_at > 1:
            found |= {"waiting": np.zeros((2, CELLS), dtype=np.uint16), "waited": np.zeros(1, dtype=np.int64)}
        return found

    def wire(self, items: Mapping[str, np.ndarray], fixed: Mapping[str, np.ndarray]) -> None:
        """Take up arrays that were replaced."""
        if self._ttl_ms:
            self._touched, self._clock = items["touched"], fixed["clock"]
            by_age = np.argsort(self._touched, kind="stable")
            self._order = OrderedDict.fromkeys(int(row) for row in by_age if self._touched[row])
        if self._admit_at > 1:
            self._waiting, self._waited = fixed["waiting"], fixed["waited"]

    def admits(self, item: str) -> bool:
        """Count an event of an item without a row; return whether it gets one now."""
        if self._admit_at == 1:
            return True
        if self._waited[0] >= CELLS:
            self._waiting //= 2
            self._waited[0] = 0
        self._waited[0] += 1
        mark = stable_hash("waiting", item)
        cells = [mark % CELLS, (mark >> 32) % CELLS]
        self._waiting[[0, 1], cells] += np.uint16(1)
        return bool(self._waiting[[0, 1], cells].min() >= self._admit_at)

    def expired(self, ts: object) -> list[int]:
        """Move time on with an event's milliseconds, and return the rows whose time is up; they are not asked again.

        Anything but an int from 0 on is no time, and moves nothing.
        """
        if not self._ttl_ms or type(ts) is not int or not 0 <= ts < 2**62:
            return []
        now, before = int(self._clock[0]), int(self._clock[1])
        now = max(now, min(before, ts))
        self._clock[:] = now, ts
        found = []
        while self._order and int(self._touched[oldest := next(iter(self._order))]) - 1 + self._ttl_ms < now:
            del self._order[oldest]
            self._touched[oldest] = 0
            found.append(oldest)
        return found

    def touch(self, row: int) -> None:
        """Note that an event named the row."""
        if self._ttl_ms:
            self._touched[row] = self._clock[0] + 1
            self._order[row] = None
            self._order.move_to_end(row)
