"""The arithmetic of `stream.learner.blend`: one compiled call asks all members, one teaches them."""

from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.experimental import structref

from common.compiled import compiled, compiled_max, compiled_sum, dot
from stream.learner.elementary import exp_32
from stream.learner.factors import Taste, Tools, ask, learn_liked
from stream.learner.kernels import (
    ItemRows,
    SeenLog,
    UserRows,
    entry_of,
    fold,
    mark_seen,
    note_positive,
)
from stream.learner.neighbours import Pairs, Query, learn_neighbours, score_neighbours
from stream.learner.popularity import Masses, add_mass, fade_of, score_mass

_LEAST_SPREAD = 1e-6


class Learned(NamedTuple):
    """All that was learned, in rows: histories, the log of seen items, counts, and the members' arrays.

    `tried` has the histories that neighbours go by, what was tried and not liked among them, and `tries` their counts.
    """

    users: UserRows
    log: SeenLog
    counts: np.ndarray
    pairs: Pairs
    items: ItemRows
    taste: Taste
    texts: np.ndarray
    masses: Masses
    tried: UserRows
    tries: np.ndarray


class Opinions(NamedTuple):
    """What the members say of all items for one user.

    `z`, float32 [members, n]: z-scores in the order neighbours, factors, content, popularity; `total`, float32 [n]:
    their weighted sum; `hidden`, bool [n]: seen items, which mean and spread leave out; `spare`, float32 [n + 1]: room
    to work in.
    """

    z: np.ndarray
    total: np.ndarray
    hidden: np.ndarray
    spare: np.ndarray


def room_for(members: int, items: int) -> Opinions:
    """Return room for what so many members say of so many items."""
    return Opinions(
        np.empty((members, items), dtype=np.float32),
        np.empty(items, dtype=np.float32),
        np.empty(items, dtype=np.bool_),
        np.empty(items + 1, dtype=np.float32),
    )


@structref.register
class _KitType(types.StructRef):  # type: ignore[misc]  # numba has no types
    """What a `Kit` is to the compiler."""

    def preprocess_fields(self, fields: list[tuple[str, Any]]) -> tuple[tuple[str, Any], ...]:
        """Return the fields as they are kept."""
        return tuple((name, types.unliteral(kind)) for name, kind in fields)


class Kit(structref.StructRefProxy):  # type: ignore[misc]  # numba has no types
    """All that was learned and how to go on, `learned`, `query` and `tools`, as one argument of compiled code.

    Compiled code is entered in half a microsecond with it, and in three with its forty arrays.
    """

    def __new__(cls, learned: Learned, query: Query, tools: Tools) -> "Kit":
        """Return a kit of these arrays; they are shared, not copied."""
        made: Kit = _kit_of(learned, query, tools)
        made._parts = (learned, query, tools)
        return made

    def __reduce__(self) -> tuple[type["Kit"], tuple[Learned, Query, Tools]]:
        """Return how a copy is made: of copies of the same arrays."""
        return Kit, self._parts


structref.define_boxing(_KitType, Kit)
structref.define_constructor(Kit, _KitType, ["learned", "query", "tools"])


@compiled
def _kit_of(learned: Learned, query: Query, tools: Tools) -> Kit:
    return Kit(learned, query, tools)


@compiled_sum
def moments(values: np.ndarray, hidden: np.ndarray) -> tuple[float, float]:
    """Return mean and standard deviation over what is not hidden, float64; (0, 0) over nothing."""
    count, total, squares = 0, 0.0, 0.0
    for row in range(len(values)):
        if not hidden[row]:
            count += 1
            total += np.float64(values[row])
            squares += np.float64(values[row]) * np.float64(values[row])
    if count == 0:
        return 0.0, 0.0
    mean = total / count
    return mean, np.sqrt(max(0.0, squares / count - mean * mean))


@compiled
def mix_opinions(raw: np.ndarray, hidden: np.ndarray, weights: np.ndarray, total: np.ndarray) -> None:
    """Turn `raw` [members, n] into z-scores over what is not hidden, and write their weighted sum to `total`.

    A member that says the same of all items says nothing: its z-scores are 0.
    """
    total[:] = np.float32(0.0)
    for member in range(len(raw)):
        values, weight = raw[member], weights[member]
        mean, spread = moments(values, hidden)
        scale = 1.0 / spread if spread > _LEAST_SPREAD * max(1.0, abs(mean)) else 0.0
        centre, factor = np.float32(mean), np.float32(scale)
        for row in range(len(values)):
            values[row] = (values[row] - centre) * factor
            total[row] += weight * values[row]


@compiled_sum
def dots(vector: np.ndarray, first: np.ndarray, second: np.ndarray) -> tuple[np.float32, np.float32]:
    """Return the products of a float32 vector with two others; it is read once."""
    one, two = np.float32(0.0), np.float32(0.0)
    for place in range(len(vector)):
        one += vector[place] * first[place]
        two += vector[place] * second[place]
    return one, two


@compiled
def score_rows(
    learned: Learned, tools: Tools, described: bool, user: int, factors: np.ndarray, content: np.ndarray
) -> None:
    """Write what factors and texts say of the items for a user, -1 for one without history.

    The same as `score_factors` and `score_texts`, with one fold and one pass over the texts for both.
    """
    items, users, room, vector = learned.items, learned.users, tools.room, tools.scratch.user
    vector[:] = np.float32(0.0)
    room.text[:] = np.float32(0.0)
    if user >= 0:
        fold(items.history, users.ring[user], users.positives[user], tools.rule.decay, vector)
        if described:
            fold(learned.texts, users.ring[user], users.positives[user], tools.rule.decay, room.text)
    for row in range(len(factors)):
        factors[row] = items.bias[row] + dot(items.factors[row], vector)
    if not described:
        content[:] = np.float32(0.0)
        return
    ask(learned.taste, room.text, room.asked)
    for row in range(len(factors)):
        asked, alike = dots(learned.texts[row], room.asked, room.text)
        factors[row] += asked
        content[row] = alike


@compiled
def ask_all(
    described: bool,
    event: int,
    user: int,
    weights: np.ndarray,
    hide: bool,
    n_items: int,
    z: np.ndarray,
    total: np.ndarray,
    hidden: np.ndarray,
    spare: np.ndarray,
    kit: Kit,
) -> None:
    """Fill in the opinions for a user, -1 for one without history.

    They have room for `n_items` items or for more; the latter are unknown ones, of which no member knows anything.
    `event` is the number of the next event.
    """
    learned, query, tools = kit.learned, kit.query, kit.tools
    hidden[:] = False
    if user >= 0 and hide:
        entry = learned.users.newest[user]
        while entry >= 0:
            hidden[learned.log.item[entry]] = True
            entry = learned.log.previous[entry]
    z[:, n_items:] = np.float32(0.0)
    score_neighbours(learned.pairs, learned.tried, learned.tries, query, user, spare, z[0, :n_items])
    score_rows(learned, tools, described, user, z[1, :n_items], z[2, :n_items])
    fade = fade_of(learned.masses.since, event, learned.masses.half_life)
    score_mass(learned.masses.mass, fade, z[3, :n_items])
    score_mass(np.zeros(z.shape[1] - n_items, dtype=np.float64), fade, z[3, n_items:])
    mix_opinions(z, hidden, weights, total)


@compiled_max
def highest_of(values: np.ndarray, hidden: np.ndarray, floor: np.float32) -> np.float32:
    """Return the largest of `floor` and what is not hidden."""
    highest = floor
    for row in range(len(values)):
        highest = max(highest, floor if hidden[row] else values[row])
    return highest


@compiled
def fill_shares(total: np.ndarray, hidden: np.ndarray, highest: np.float32, shares: np.ndarray) -> None:
    """Write ``exp(total - highest)`` to `shares`, 0 where it is hidden."""
    for row in range(len(total)):
        share = exp_32(min(total[row] - highest, np.float32(0.0)))
        shares[row] = np.float32(0.0) if hidden[row] else share


@compiled_sum
def sum_64(values: np.ndarray) -> float:
    """Return the float64 sum of float32 values."""
    total = 0.0
    for row in range(len(values)):
        total += np.float64(values[row])
    return total


@compiled
def weigh(
    z: np.ndarray, total: np.ndarray, hidden: np.ndarray, spare: np.ndarray, item: int, weights: np.ndarray,
    rate: float, focus: float,
) -> None:  # fmt: skip
    """One step of the weights on ``(1 - p ** focus) / focus``, p being the item's softmax among the not hidden.

    Weights stay at 0 or above. The item itself counts, hidden or not.
    """
    highest = highest_of(total, hidden, total[item])
    shares = spare[: len(total)]
    fill_shares(total, hidden, highest, shares)
    shares[item] = exp_32(total[item] - highest)
    mass = sum_64(shares)
    step = rate * (np.float64(shares[item]) / mass) ** focus
    for member in range(len(weights)):
        slope = np.float64(dot(shares, z[member])) / mass - np.float64(z[member, item])
        weights[member] = max(0.0, weights[member] - step * slope)


@compiled
def teach_all(
    described: bool,
    n_items: int,
    event: int,
    user: int,
    item: int,
    weight: float,
    log_size: int,
    z: np.ndarray,
    total: np.ndarray,
    hidden: np.ndarray,
    spare: np.ndarray,
    weights: np.ndarray,
    rate: float,
    focus: float,
    kit: Kit,
) -> int:
    """Learn a liked event: weights from the opinions before it, all members, count and note it; return the log's size.

    A rate of 0 leaves the weights alone, and the opinions may be of nobody.
    """
    learned, query, tools = kit.learned, kit.query, kit.tools
    if rate > 0.0 and not hidden[item]:
        weigh(z, total, hidden, spare, item, weights, rate, focus)
    add_mass(learned.masses.mass, learned.masses.since, learned.masses.half_life, event, item, 1.0)
    mark_seen(learned.log, learned.users.newest[user], tools.scratch.marks, event + 1)
    amount = np.float32(weight)
    learn_liked(
        learned.items,
        learned.taste,
        learned.texts,
        described,
        learned.users,
        learned.counts,
        tools,
        n_items,
        event,
        user,
        item,
        amount,
    )
    learn_neighbours(learned.pairs, learned.tried, learned.tries, query, user, item, amount)
    append_to(learned.tried, user, item)
    seen = tools.scratch.marks[item] == event + 1
    learned.counts[item] += 1
    return note_positive(learned.users, learned.log, log_size, user, item, seen)


@compiled
def append_to(users: UserRows, user: int, item: int) -> None:
    """Make the item the newest of a user's history."""
    users.ring[user, users.positives[user] % users.ring.shape[1]] = item
    users.positives[user] += 1


@compiled
def try_item(
    pairs: Pairs, tried: UserRows, tries: np.ndarray, query: Query, log: SeenLog, log_size: int,
    user: int, item: int, amount: np.float32, hide: bool,
) -> int:  # fmt: skip
    """Pair an item that was tried and not liked with the history; `hide`: see that it is in the log of seen items.

    Returns
    -------
    int
        The log's new size.
    """
    learn_neighbours(pairs, tried, tries, query, user, item, amount)
    append_to(tried, user, item)
    if not hide or entry_of(log, tried.newest[user], item) >= 0:
        return log_size
    log.item[log_size], log.previous[log_size] = item, tried.newest[user]
    tried.newest[user] = log_size
    return log_size + 1
