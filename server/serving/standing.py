"""What each member of the blend says, and where it stands over all items; compiled.

In one call, because between questions a processor forgets: a hundred small calls of numpy take four times as long in a
service that is asked now and then as in a loop. `tests.oracles.served_blend` is the slow twin.
"""

import numpy as np

from common.compiled import compiled, compiled_sum, dot

LEAST_SPREAD = 1e-6
"""A member that tells items apart by no more, beside its mean, says the same of all."""
NEIGHBOURS, FACTORS, TEXT, POPULARITY = range(4)
"""The blend's members, in the order of `common.blends.MEMBERS`."""


@compiled
def said(
    rows: np.ndarray,
    vectors: np.ndarray,
    neighbours: np.ndarray,
    likeness: np.ndarray,
    item_factors: np.ndarray,
    item_bias: np.ndarray,
    popularity: np.ndarray,
) -> np.ndarray:
    """Return what the blend's members say of some rows, float64 [4, r]; parameters as for `standing`."""
    told = np.empty((4, len(rows)))
    for place in range(len(rows)):
        row = rows[place]
        told[NEIGHBOURS, place] = neighbours[row]
        told[FACTORS, place] = dot(item_factors[row], vectors[0]) + item_bias[row]
        told[TEXT, place] = likeness[row] if len(likeness) else dot(item_factors[row], vectors[1])
        told[POPULARITY, place] = popularity[row]
    return told


@compiled
def folded(history: np.ndarray, fading: np.ndarray, rows: np.ndarray, out: np.ndarray) -> None:
    """Write ``sum_d fading[d] rows[h_d] / sqrt(sum_d fading[d])`` to `out`; h is the history, newest first."""
    depth = min(len(history), len(fading))
    if depth == 0:
        return
    total = np.float32(0.0)
    for age in range(depth):
        total += fading[age]
    scale = np.float32(1.0) / np.sqrt(total)
    for age in range(depth):
        weight = fading[age] * scale
        row = rows[history[len(history) - 1 - age]]
        for place in range(len(out)):
            out[place] += weight * row[place]


@compiled_sum
def _sums(weights: np.ndarray, columns: np.ndarray, products: np.ndarray) -> tuple[float, float]:
    """Return ``c . w`` and ``w' P w``, with as many leading columns as there are weights; P is symmetric."""
    total, squares = 0.0, 0.0
    for place in range(len(weights)):
        weight = weights[place]
        if weight == 0.0:
            continue
        total += weight * columns[place]
        row, here = products[place], 0.0
        for other in range(len(weights)):
            here += row[other] * weights[other]
        squares += weight * here
    return total, squares


@compiled
def _neighbours(
    n: int,
    tried: np.ndarray,
    neighbour_decay: np.ndarray,
    pair_starts: np.ndarray,
    pair_items: np.ndarray,
    pair_weights: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return what neighbours say of each item, float64 [n], and the rows of which they say something."""
    depth, pairs = min(len(tried), len(neighbour_decay)), 0
    for age in range(depth):
        row = tried[len(tried) - 1 - age]
        pairs += pair_starts[row + 1] - pair_starts[row]
    said, met, count = np.zeros(n), np.zeros(n, dtype=np.bool_), 0
    rows = np.empty(min(pairs, n), dtype=np.int64)
    for age in range(depth):
        row, decay = tried[len(tried) - 1 - age], np.float64(neighbour_decay[age])
        for entry in range(pair_starts[row], pair_starts[row + 1]):
            item = pair_items[entry]
            if not met[item]:
                met[item] = True
                rows[count] = item
                count += 1
            said[item] += decay * np.float64(pair_weights[entry])
    return said, rows[:count]


@compiled
def _over_all(
    vectors: np.ndarray,
    neighbours: np.ndarray,
    rows: np.ndarray,
    likeness: np.ndarray,
    columns: np.ndarray,
    products: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the sum of what each member says of all items, and that of its squares, float64 [4] each."""
    width = vectors.shape[1]
    total, squares = np.zeros(4), np.zeros(4)
    for row in rows:
        total[NEIGHBOURS] += neighbours[row]
        squares[NEIGHBOURS] += neighbours[row] * neighbours[row]
    # behind the columns of the item factors stand the biases, which are the factors', and the popularity
    weights = np.ones(width + 1)
    weights[:width] = vectors[0]
    total[FACTORS], squares[FACTORS] = _sums(weights, columns, products)
    weights[:width], weights[width] = vectors[1], 0.0
    total[TEXT], squares[TEXT] = _sums(weights, columns, products)
    for value in likeness:
        total[TEXT] += np.float64(value)
        squares[TEXT] += np.float64(value) * np.float64(value)
    total[POPULARITY], squares[POPULARITY] = columns[width + 1], products[width + 1, width + 1]
    return total, squares


@compiled
def _parted(n: int, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which items are not among some rows, bool [n], and these rows, each once."""
    shown, without, count = np.ones(n, dtype=np.bool_), np.empty(len(seen), dtype=np.int64), 0
    for row in seen:
        if shown[row]:
            shown[row] = False
            without[count] = row
            count += 1
    return shown, without[:count]


@compiled
def standing(
    history: np.ndarray,
    fading: np.ndarray,
    tried: np.ndarray,
    neighbour_decay: np.ndarray,
    seen: np.ndarray,
    history_factors: np.ndarray,
    item_factors: np.ndarray,
    item_bias: np.ndarray,
    popularity: np.ndarray,
    text_columns: int,
    likeness: np.ndarray,
    pair_starts: np.ndarray,
    pair_items: np.ndarray,
    pair_weights: np.ndarray,
    columns: np.ndarray,
    products: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return what the members' scores of all items are made of, and where each stands over those that may be shown.

    Parameters
    ----------
    history, tried
        Rows, oldest first, int64 [h] and [t].
    fading
        How much items of the history count, newest first, float32 [window].
    neighbour_decay
        The same for what was tried, float32 [depth].
    seen
        Rows that may not be shown, some of them more than once, int64.
    history_factors, item_factors, item_bias, popularity
        float32 [n, d], [n, d], [n] and [n].
    text_columns
        So many columns of `item_factors`, the last ones, are the texts.
    likeness
        How like the history each item's text is, float32 [n], where the columns do not tell; else [0].
    pair_starts, pair_items, pair_weights
        As `common.blends.BlendMembers` has them.
    columns, products
        As `server.serving.sums.ItemSums` has them, of item factors, biases and popularity: float64 [d + 2] and
        [d + 2, d + 2].

    Returns
    -------
    tuple of arrays
        What item rows are multiplied with for the factors and for the texts, float32 [2, d]; what neighbours say of
        each item, float64 [n], and the rows of which they say something, int64; which items may be shown, bool [n];
        mean and spread of each member over these, float64 [4] each, the spread infinite where it says the same of all.
    """
    n, width = item_factors.shape
    vectors = np.zeros((2, width), dtype=np.float32)
    folded(history, fading, history_factors, vectors[0])
    if text_columns:
        first = width - text_columns
        folded(history, fading, item_factors[:, first:], vectors[1, first:])
    neighbours, rows = _neighbours(n, tried, neighbour_decay, pair_starts, pair_items, pair_weights)
    mean, squares = _over_all(vectors, neighbours, rows, likeness, columns, products)
    shown, without = _parted(n, seen)
    told = said(without, vectors, neighbours, likeness, item_factors, item_bias, popularity)
    spread, count = np.full(4, np.inf), n - len(without)
    for member in range(4):
        for value in told[member]:
            mean[member] -= value
            squares[member] -= value * value
        mean[member] = mean[member] / count if count else 0.0
        variance = squares[member] / count - mean[member] * mean[member] if count else 0.0
        deviation = np.sqrt(max(variance, 0.0))
        if deviation > LEAST_SPREAD * max(1.0, abs(mean[member])):
            spread[member] = deviation
    return vectors, neighbours, rows, shown, mean, spread


@compiled
def exactly(
    rows: np.ndarray,
    vectors: np.ndarray,
    neighbours: np.ndarray,
    likeness: np.ndarray,
    item_factors: np.ndarray,
    item_bias: np.ndarray,
    popularity: np.ndarray,
    mean: np.ndarray,
    spread: np.ndarray,
    coefficient: np.ndarray,
    habitual: np.ndarray,
    habit: np.ndarray,
) -> np.ndarray:
    """Return the scores of some rows: their members' z-scores times the coefficients, and their habits, float64 [r].

    Parameters
    ----------
    mean, spread, coefficient
        Of each member, float64 [4].
    habitual, habit
        Rows with a habit, int64, and what it adds to each, float64.
    """
    told = said(rows, vectors, neighbours, likeness, item_factors, item_bias, popularity)
    scores = np.zeros(len(rows))
    for place in range(len(rows)):
        for member in range(4):
            scores[place] += coefficient[member] * ((told[member, place] - mean[member]) / spread[member])
        for other in range(len(habitual)):
            if habitual[other] == rows[place]:
                scores[place] += habit[other]
    return scores
