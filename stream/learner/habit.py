"""What users do again: one number for how long ago and how often a user liked an item, learned from the same clicks.

Shops re-buy, but what is in the basket already is hardly bought a second time. So history is counted in visits: likes
of a user that lie no further apart than `VISIT_MS` are one visit.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from common.compiled import compiled
from stream.learner.blending import fill_shares, highest_of, sum_64
from stream.learner.kernels import SeenLog, UserRows, entry_of
from stream.learner.parts import Arrays

RATE = 0.3
"""AdaGrad's rate of what a kind is worth."""
VISIT_MS = 30 * 60 * 1000
"""A user who liked nothing for longer comes for another visit; without times there is one visit only."""
_AGES, _COUNTS = 6, 5
KINDS = _AGES * _COUNTS
"""Visits ago (0, 1, 2, 3-4, 5-8, more) times in how many visits (1, 2, 3, 4, more)."""

OPENING_WORTH = (2.0, 3.0, 4.0, 5.0, 6.0)
"""What an item that was liked in so many visits (1, 2, 3, 4, more) is worth at first, where a visit opens; by hand."""


class Visits(NamedTuple):
    """When users liked what, in visits.

    `number` int32 [u] is the user's newest visit, from 0, and `moment` int64 [u] the milliseconds of the newest like
    plus 1, 0 for no time. `last` and `times`, int32 [log], say of each entry of the log of seen items in which visit it
    was liked last, and in how many.
    """

    number: np.ndarray
    moment: np.ndarray
    last: np.ndarray
    times: np.ndarray


class Habits(NamedTuple):
    """What is learned: float64 [tables, KINDS], what a kind of item is worth, and AdaGrad's sums."""

    worth: np.ndarray
    sums: np.ndarray


@compiled
def kind_of(ago: int, times: int) -> int:
    """Return the kind of an item that was liked so many visits ago, and in so many visits."""
    age = ago if ago < 3 else 3 if ago < 5 else 4 if ago < 9 else 5
    return age * _COUNTS + min(times, _COUNTS) - 1


@compiled
def opens_visit(newest: int, moment: int) -> bool:
    """Return whether a moment is of another visit than the newest like's; both are milliseconds plus 1, 0 for none."""
    return newest > 0 and moment - newest > VISIT_MS


@compiled
def add_habits(
    log: SeenLog, visits: Visits, user: int, newest: int, opens: int, worth: np.ndarray, total: np.ndarray
) -> None:
    """Add to `total`, float32 [n], what the user's habit says of each item liked before; `worth` is one table's.

    `opens` is 1 where the question opens another visit, which is not counted yet, and 0 where it does not.
    """
    entry = newest
    while entry >= 0:
        kind = kind_of(visits.number[user] + opens - visits.last[entry], visits.times[entry])
        total[log.item[entry]] += np.float32(worth[kind])
        entry = log.previous[entry]


@compiled
def weigh_habits(
    log: SeenLog, visits: Visits, user: int, newest: int, opens: int, worth: np.ndarray, sums: np.ndarray,
    total: np.ndarray, item: int, rate: float, focus: float,
) -> None:  # fmt: skip
    """One step of one table on the loss of `stream.learner.blending.weigh`; `total` has all items and their habits."""
    hidden = np.zeros(len(total), dtype=np.bool_)
    shares = np.empty(len(total), dtype=np.float32)
    fill_shares(total, hidden, highest_of(total, hidden, total[item]), shares)
    mass = sum_64(shares)
    slopes = np.zeros(len(worth), dtype=np.float64)
    entry = newest
    while entry >= 0:
        row = log.item[entry]
        kind = kind_of(visits.number[user] + opens - visits.last[entry], visits.times[entry])
        slopes[kind] += np.float64(shares[row]) / mass - (1.0 if row == item else 0.0)
        entry = log.previous[entry]
    step = (np.float64(shares[item]) / mass) ** focus
    for kind in range(len(worth)):
        slope = step * slopes[kind]
        sums[kind] += slope * slope
        worth[kind] -= rate / np.sqrt(sums[kind]) * slope


@compiled
def note_visit(log: SeenLog, visits: Visits, user: int, newest: int, item: int, moment: int) -> None:
    """Take note of a like that is in the log already; `moment` is its milliseconds plus 1, 0 for no time."""
    if moment > 0:
        if opens_visit(visits.moment[user], moment):
            visits.number[user] += 1
        visits.moment[user] = max(visits.moment[user], moment)
    entry = entry_of(log, newest, item)
    if visits.times[entry] == 0 or visits.last[entry] != visits.number[user]:
        visits.times[entry] += 1
        visits.last[entry] = visits.number[user]


def moment_of(ts: object) -> int:
    """Return a time in milliseconds plus 1, and 0 for anything but an int from 0 on."""
    return ts + 1 if type(ts) is int and 0 <= ts < 2**62 else 0


class Habit:
    """What users do again, for a ranker whose `stream.learner.base.ArrayRanker` arrays hold it.

    Parameters
    ----------
    tables
        How many tables there are; the ranker says which one a question is answered from. The last is that of questions
        that open a visit.
    """

    def __init__(self, tables: int) -> None:
        self._tables = tables

    def user_arrays(self) -> Arrays:
        """Return the arrays with one row a user, each of no rows."""
        return {"habit.number": np.zeros(0, dtype=np.int32), "habit.moment": np.zeros(0, dtype=np.int64)}

    def log_arrays(self) -> Arrays:
        """Return the arrays with one row an entry of the log of seen items, each of no rows."""
        return {"habit.last": np.zeros(0, dtype=np.int32), "habit.times": np.zeros(0, dtype=np.int32)}

    def fixed_arrays(self) -> Arrays:
        """Return what is learned as it starts.

        What was liked before is worth what any item is; where a visit opens, the more the more often it was liked.
        """
        worth = np.zeros((self._tables, KINDS))
        worth[-1] = np.tile(OPENING_WORTH, _AGES)
        return {"habit.worth": worth, "habit.sums": np.ones((self._tables, KINDS))}

    def wire(
        self,
        users: Mapping[str, np.ndarray],
        log: Mapping[str, np.ndarray],
        fixed: Mapping[str, np.ndarray],
        rows: tuple[UserRows, SeenLog],
    ) -> None:
        """Take up arrays that were replaced; there are none yet while the ranker is being made."""
        if "habit.worth" not in fixed:
            return
        self._users, self._log = rows
        self._visits = Visits(users["habit.number"], users["habit.moment"], log["habit.last"], log["habit.times"])
        self._worth, self._sums = fixed["habit.worth"], fixed["habit.sums"]

    def opens(self, user: int, at: object) -> bool:
        """Return whether at that time, in milliseconds, the user comes for another visit; False without a time."""
        return bool(opens_visit(self._visits.moment[user], moment_of(at)))

    def moments(self, users: int) -> np.ndarray:
        """Return the milliseconds of each user's newest like, -1 for no time, int64 [users]."""
        moments: np.ndarray = self._visits.moment[:users] - 1
        return moments

    def add(self, user: int, table: int, opens: bool, total: np.ndarray) -> None:
        """Add to `total`, float32 [n], what the habit says of each item that a user liked before."""
        newest = self._users.newest[user]
        add_habits(self._log, self._visits, user, newest, int(opens), self._worth[table], total)

    def weigh(
        self, user: int, table: int, opens: bool, total: np.ndarray, item: int, share: float, focus: float
    ) -> None:
        """Learn from a like before it is noted: one step at `share` of `RATE`."""
        worth, sums, newest = self._worth[table], self._sums[table], self._users.newest[user]
        visits, rate = self._visits, share * RATE
        weigh_habits(self._log, visits, user, newest, int(opens), worth, sums, total, item, rate, focus)

    def note(self, user: int, item: int, ts: object) -> None:
        """Take note of a like after it was noted in the log; anything but an int from 0 on is no time."""
        note_visit(self._log, self._visits, user, self._users.newest[user], item, moment_of(ts))
