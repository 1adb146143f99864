"""The arithmetic of the learners, compiled by numba; slow twins in plain numpy are in `tests/oracles`.

State is passed as named tuples of arrays and changed in place. Sums of products may be re-ordered by the compiler, so a
result is the same bits on the same kind of processor.
"""

from typing import NamedTuple

import numpy as np

from common.compiled import compiled, dot


class ItemRows(NamedTuple):
    """What is learned about items, one row an item.

    `history` (V) and `factors` (Q) are float32 [n, k], `bias` float32 [n]; the others are their AdaGrad accumulators,
    float32 [n].
    """

    history: np.ndarray
    factors: np.ndarray
    bias: np.ndarray
    history_sum: np.ndarray
    factors_sum: np.ndarray
    bias_sum: np.ndarray


class UserRows(NamedTuple):
    """What is known about users.

    `ring` is int32 [u, window], the last liked items; `positives` int64 [u] counts them; `newest` int64 [u] is the
    user's last entry of the log, -1 for none.
    """

    ring: np.ndarray
    positives: np.ndarray
    newest: np.ndarray


class SeenLog(NamedTuple):
    """Each (user, item) once: int32 item and int64 index of the same user's entry before it, -1 for none."""

    item: np.ndarray
    previous: np.ndarray


class Rule(NamedTuple):
    """How to learn: float32 [window] decay of the history, rates, number of negatives, key of the random numbers.

    `floor` is the least share of a rate that a row keeps, however large its accumulator.
    """

    decay: np.ndarray
    rate: np.float32
    bias_rate: np.float32
    dislike_rate: np.float32
    negatives: int
    key: np.uint64
    floor: np.float32


class Scratch(NamedTuple):
    """Room to work in; its content means nothing between events."""

    marks: np.ndarray
    rows: np.ndarray
    scores: np.ndarray
    user: np.ndarray
    pull: np.ndarray


GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ONE = np.float32(1.0)


@compiled
def mix(state: np.uint64) -> np.uint64:
    """Scramble 64 bits (the output step of SplitMix64, Steele et al. 2014)."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


@compiled
def fold(history: np.ndarray, ring: np.ndarray, positives: int, decay: np.ndarray, out: np.ndarray) -> np.float32:
    """Write ``u = sum decay_d V[h_d] / sqrt(sum decay_d)`` to `out`; return the factor ``1 / sqrt(sum decay_d)``.

    `ring` is one user's; `positives` says how far it was written. No history gives zeros and 0.
    """
    out[:] = np.float32(0.0)
    window = len(ring)
    depth = min(positives, window)
    if depth == 0:
        return np.float32(0.0)
    total = np.float32(0.0)
    for age in range(depth):
        total += decay[age]
    scale: np.float32 = _ONE / np.sqrt(total)
    for age in range(depth):
        weight = decay[age] * scale
        row = history[ring[(positives - 1 - age) % window]]
        for place in range(len(out)):
            out[place] += weight * row[place]
    return scale


@compiled
def score_all(bias: np.ndarray, factors: np.ndarray, user: np.ndarray, out: np.ndarray) -> None:
    """Write ``bias + factors @ user`` to `out`, for as many rows as it has."""
    for row in range(len(out)):
        out[row] = bias[row] + dot(factors[row], user)


@compiled
def seen_rows(log: SeenLog, newest: int) -> np.ndarray:
    """Return the item rows of one user's chain, newest first."""
    count = 0
    entry = newest
    while entry >= 0:
        count += 1
        entry = log.previous[entry]
    rows = np.empty(count, dtype=np.int64)
    entry = newest
    for place in range(count):
        rows[place] = log.item[entry]
        entry = log.previous[entry]
    return rows


@compiled
def note_positive(users: UserRows, log: SeenLog, log_size: int, user: int, item: int, seen: bool) -> int:
    """Append the item to the user's history, and to the log unless it is there; return the log's new size."""
    users.ring[user, users.positives[user] % users.ring.shape[1]] = item
    users.positives[user] += 1
    if seen:
        return log_size
    log.item[log_size] = item
    log.previous[log_size] = users.newest[user]
    users.newest[user] = log_size
    return log_size + 1


@compiled
def mark_seen(log: SeenLog, newest: int, marks: np.ndarray, stamp: int) -> None:
    """Stamp the rows of one user's chain."""
    entry = newest
    while entry >= 0:
        marks[log.item[entry]] = stamp
        entry = log.previous[entry]


@compiled
def entry_of(log: SeenLog, newest: int, item: int) -> int:
    """Return the item's entry in one user's chain, -1 where there is none."""
    entry = newest
    while entry >= 0 and log.item[entry] != item:
        entry = log.previous[entry]
    return entry


@compiled
def draw_unseen(scratch: Scratch, rule: Rule, n_items: int, event: int, item: int, stamp: int) -> int:
    """Write `item` and up to `rule.negatives` uniform unseen rows to `scratch.rows`; return how many negatives.

    The draws depend on the key and the event's number only. A user who has seen nearly everything gets fewer.
    """
    state = mix(rule.key + np.uint64(event + 1) * GOLDEN)
    scratch.rows[0] = item
    count = 0
    for _ in range(4 * rule.negatives):
        if count == rule.negatives:
            break
        state += GOLDEN
        row = np.int64(mix(state) % np.uint64(n_items))
        if row != item and scratch.marks[row] != stamp:
            count += 1
            scratch.rows[count] = row
    return count


@compiled
def share_of(accumulated: np.float32, squared: np.float32, floor: np.float32) -> np.float32:
    """Return the share of its rate that a row learns with: AdaGrad's, and never less than the floor.

    `squared` is the gradient's squared length, which `accumulated` holds already. Where it is above 1 the floor shrinks
    with it, or a heavy event would throw the row.
    """
    share: np.float32 = _ONE / np.sqrt(accumulated)
    if share < floor:
        share = max(share, floor / np.sqrt(max(_ONE, squared)))
    return share


@compiled
def step_item(items: ItemRows, row: int, slope: np.float32, user: np.ndarray, norm: np.float32, rule: Rule) -> None:
    """Move one item's factors and bias against `slope` (d loss / d score); `norm` is the user's squared length."""
    squared = slope * slope
    items.bias_sum[row] += squared
    items.bias[row] -= rule.bias_rate * share_of(items.bias_sum[row], squared, rule.floor) * slope
    if norm > np.float32(0.0):
        items.factors_sum[row] += squared * norm
        step = rule.rate * share_of(items.factors_sum[row], squared * norm, rule.floor) * slope
        factors = items.factors[row]
        for place in range(len(user)):
            factors[place] -= step * user[place]


@compiled
def softmax_step(
    items: ItemRows, scratch: Scratch, count: int, weight: np.float32, rule: Rule, likes: np.ndarray
) -> None:
    """One step of ``-log softmax`` of row 0 among the drawn rows; leaves d loss / d user in `scratch.pull`.

    Of a drawn row without `likes`, int64, only the bias moves; no `likes` at all move every row.
    """
    user, pull, scores = scratch.user, scratch.pull, scratch.scores
    highest = np.float32(-np.inf)
    for place in range(count + 1):
        row = scratch.rows[place]
        scores[place] = items.bias[row] + dot(items.factors[row], user)
        highest = max(highest, scores[place])
    total = np.float32(0.0)
    for place in range(count + 1):
        scores[place] = np.exp(scores[place] - highest)
        total += scores[place]
    pull[:] = np.float32(0.0)
    norm = dot(user, user)
    for place in range(count + 1):
        slope = scores[place] / total
        if place == 0:
            slope -= _ONE
        slope *= weight
        factors = items.factors[scratch.rows[place]]
        for factor in range(len(pull)):
            pull[factor] += slope * factors[factor]
        known = place == 0 or len(likes) == 0 or likes[scratch.rows[place]] > 0
        step_item(items, scratch.rows[place], slope, user, norm if known else np.float32(0.0), rule)


@compiled
def step_history(
    items: ItemRows, ring: np.ndarray, positives: int, scale: np.float32, pull: np.ndarray, rule: Rule
) -> None:
    """Carry `pull` (d loss / d user) on to the rows the user was folded from."""
    norm = dot(pull, pull)
    window = len(ring)
    for age in range(min(positives, window)):
        weight = rule.decay[age] * scale
        row = ring[(positives - 1 - age) % window]
        squared = weight * weight * norm
        items.history_sum[row] += squared
        step = rule.rate * share_of(items.history_sum[row], squared, rule.floor) * weight
        vector = items.history[row]
        for place in range(len(pull)):
            vector[place] -= step * pull[place]


@compiled
def learn_dislike(
    items: ItemRows, users: UserRows, rule: Rule, scratch: Scratch, user: int, item: int, weight: np.float32
) -> None:
    """One step of ``-log(1 - sigmoid(score))`` on the item's row alone; `user` -1 is an unknown one."""
    scratch.user[:] = np.float32(0.0)
    if user >= 0:
        fold(items.history, users.ring[user], users.positives[user], rule.decay, scratch.user)
    score = items.bias[item] + dot(items.factors[item], scratch.user)
    slope = weight * rule.dislike_rate / (_ONE + np.exp(-score))
    step_item(items, item, slope, scratch.user, dot(scratch.user, scratch.user), rule)


@compiled
def step_liked(
    items: ItemRows,
    users: UserRows,
    rule: Rule,
    scratch: Scratch,
    n_items: int,
    event: int,
    user: int,
    item: int,
    weight: np.float32,
    stamp: int,
    likes: np.ndarray,
) -> None:
    """One step of an item that a user with this history likes; items marked with `stamp` are no negatives."""
    ring, positives = users.ring[user], users.positives[user]
    scale = fold(items.history, ring, positives, rule.decay, scratch.user)
    count = draw_unseen(scratch, rule, n_items, event, item, stamp)
    if count > 0:
        softmax_step(items, scratch, count, weight, rule, likes)
        step_history(items, ring, positives, scale, scratch.pull, rule)


@compiled
def learn_event(
    items: ItemRows,
    users: UserRows,
    log: SeenLog,
    rule: Rule,
    scratch: Scratch,
    n_items: int,
    event: int,
    user: int,
    item: int,
    weight: float,
    log_size: int,
    likes: np.ndarray,
) -> int:
    """Learn one event (`weight` > 0 liked, < 0 disliked); return the log's new size. `likes` as for `softmax_step`."""
    if weight < 0.0:
        learn_dislike(items, users, rule, scratch, user, item, np.float32(-weight))
        return log_size
    stamp = event + 1
    mark_seen(log, users.newest[user], scratch.marks, stamp)
    seen = scratch.marks[item] == stamp
    step_liked(items, users, rule, scratch, n_items, event, user, item, np.float32(weight), stamp, likes)
    return note_positive(users, log, log_size, user, item, seen)


@compiled
def learn_events(
    items: ItemRows,
    users: UserRows,
    log: SeenLog,
    rule: Rule,
    scratch: Scratch,
    n_items: np.ndarray,
    event: int,
    user: np.ndarray,
    item: np.ndarray,
    weight: np.ndarray,
    log_size: int,
    likes: np.ndarray,
) -> int:
    """Learn events one after the other; `n_items`, int64 [events], is how many items were known at each."""
    for place in range(len(user)):
        log_size = learn_event(
            items,
            users,
            log,
            rule,
            scratch,
            n_items[place],
            event + place,
            user[place],
            item[place],
            weight[place],
            log_size,
            likes,
        )
    return log_size


@compiled
def rank_among(scores: np.ndarray, hidden: np.ndarray, target: int, k: int) -> tuple[int, np.ndarray]:
    """Return the target's rank, from 1, and the k best rows, best first, leaving out the rows in `hidden`.

    Ties count against the target: whatever is not strictly below it, NaN included, is above it.
    """
    open_scores = scores.copy()
    open_scores[hidden] = np.float32(-np.inf)
    mark = open_scores[target]
    rank = 1
    best = np.full(k, -1, dtype=np.int64)
    values = np.full(k, -np.inf, dtype=np.float32)
    for row in range(len(open_scores)):
        value = open_scores[row]
        if not value < mark and row != target:
            rank += 1
        if value > values[k - 1]:
            place = k - 1
            while place > 0 and value > values[place - 1]:
                values[place] = values[place - 1]
                best[place] = best[place - 1]
                place -= 1
            values[place] = value
            best[place] = row
    return rank, best
