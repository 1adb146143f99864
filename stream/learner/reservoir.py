"""What each user liked once, a fair sample of it, to be learned again now and then."""

from collections.abc import Mapping

import numpy as np

from common.compiled import compiled
from common.errors import InvalidSetting
from common.ids import stable_hash
from stream.learner.kernels import GOLDEN, Rule, UserRows, mix

MOST_KEPT = 1_000


@compiled
def drawn(kept: np.ndarray, positives: int, event: int, key: np.uint64, rate: float) -> int:
    """Return one of a user's kept items, at the given chance, otherwise -1; depends on key and event number only."""
    size = min(positives, len(kept))
    if size == 0:
        return -1
    state = mix(key + np.uint64(event + 1) * GOLDEN)
    if np.float64(state >> np.uint64(11)) * 2.0**-53 >= rate:
        return -1
    item: int = kept[np.int64(mix(state + GOLDEN) % np.uint64(size))]
    return item


@compiled
def keep(kept: np.ndarray, positives: int, event: int, key: np.uint64, item: int) -> None:
    """Take in an item as the `positives`-th, from 0 on: each so far stays with the same chance (Vitter's R)."""
    if positives < len(kept):
        kept[positives] = item
        return
    state = mix(key + np.uint64(event + 1) * GOLDEN)
    place = mix(state + GOLDEN + GOLDEN) % np.uint64(positives + 1)
    if place < np.uint64(len(kept)):
        kept[np.int64(place)] = item


@compiled
def copy_without(ring: np.ndarray, positives: int, item: int, out: np.ndarray) -> int:
    """Write the history without one item to `out`, oldest first; return how many there are."""
    count, window = 0, len(ring)
    for age in range(min(positives, window) - 1, -1, -1):
        row = ring[(positives - 1 - age) % window]
        if row != item:
            out[count] = row
            count += 1
    return count


class Reservoir:
    """A sample of each user's likes, all of them with the same chance however long ago, of fixed size.

    After a like, at the chance of `rate`, one of the sample is to be learned again: as if it came next after what the
    user likes now, with weight 1. It is not liked again: histories, counts and neighbours stay.

    Parameters
    ----------
    size
        Items kept a user, 4 bytes each; 0 is off.
    rate
        Of the likes, what share is followed by a recalled one.
    window
        Length of a history.
    seed
        Of what stays and what is recalled, together with the event's number.

    References
    ----------
    Vitter: Random sampling with a reservoir. ACM Transactions on Mathematical Software 11(1), 1985 (algorithm R).
    """

    def __init__(self, size: int, rate: float, window: int, seed: int) -> None:
        if type(size) is not int or not 0 <= size <= MOST_KEPT:
            raise InvalidSetting(f"replay {size!r}", expected=f"an int from 0 to {MOST_KEPT}")
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0.0 < rate <= 1.0:
            raise InvalidSetting(f"replay_rate {rate!r}", expected="a number above 0 and up to 1")
        self._size, self._rate = size, float(rate)
        self._key = np.uint64(stable_hash(seed, "replay"))
        newest = np.full(1, -1, dtype=np.int64)
        self._alone = UserRows(np.zeros((1, window), dtype=np.int32), np.zeros(1, dtype=np.int64), newest)

    @property
    def on(self) -> bool:
        """Whether anything is kept."""
        return self._size > 0

    def user_arrays(self) -> dict[str, np.ndarray]:
        """Return the user array of no rows: the rows of the kept items, int32 [u, size]; nothing where it is off."""
        return {"kept": np.zeros((0, self._size), dtype=np.int32)} if self.on else {}

    def wire(self, arrays: Mapping[str, np.ndarray], users: UserRows) -> None:
        """Take up arrays that were replaced."""
        self._kept, self._users = arrays.get("kept"), users

    def turn(self, user: int, item: int, event: int) -> int:
        """Return the item to learn again after an event, -1 for none, and take the event's own one in.

        To be called before the event is noted in the user's history.
        """
        if self._kept is None:
            return -1
        kept, positives = self._kept[user], int(self._users.positives[user])
        recalled = drawn(kept, positives, event, self._key, self._rate)
        keep(kept, positives, event, self._key, item)
        return int(recalled)

    def without(self, user: int, item: int) -> UserRows:
        """Return a user's history without one item, as that of user 0; it may be empty, and stands until the next."""
        alone = self._alone
        alone.positives[0] = copy_without(self._users.ring[user], int(self._users.positives[user]), item, alone.ring[0])
        return alone

    def negatives(self, rule: Rule) -> Rule:
        """Return the rule with other random numbers: an event's own are taken."""
        return rule._replace(key=self._key)
