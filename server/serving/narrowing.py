"""The best of all items for one question, in one compiled pass over them; `tests.oracles.best` is the slow twin.

Rows that are there in 8 bits (`server.serving.coarse`) say first what comes into question.
"""

import numpy as np

from common.compiled import compiled, dot
from server.serving.standing import FACTORS, NEIGHBOURS, POPULARITY, TEXT, exactly

LARGEST = 127
"""Of the whole numbers that 8 bits are used for."""
_ROUNDING = 1e-6
"""Of a sum of float32, beside the greatest of them."""

InEightBits = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Codes, scale, length and error, as `server.serving.coarse.CoarseRows` has them; all [0] where there are none."""
Given = tuple[np.ndarray, np.ndarray, InEightBits]
"""A product: rows and vector, float32 [n, d] and [d], and the rows in 8 bits."""


def still(array: np.ndarray) -> np.ndarray:
    """Return an array, or a view of it, that nobody may write to, as mapped ones are: one form is compiled."""
    if not array.flags.writeable:
        return array
    view = array.view()
    view.flags.writeable = False
    return view


@compiled
def whole_dot(left: np.ndarray, right: np.ndarray) -> np.int32:
    """Return the product of int8 with int16 vectors, exactly; each step is cut to 32 bits, which lanes can add up."""
    total = np.int32(0)
    for place in range(len(left)):
        total = np.int32(total + np.int32(np.int32(left[place]) * np.int32(right[place])))
    return total


@compiled
def _sink(heap: np.ndarray, value: np.float32) -> None:
    """Put a value in the place of a heap's least one, which is not greater."""
    place, size = 0, len(heap)
    while True:
        below = 2 * place + 1
        if below + 1 < size and heap[below + 1] < heap[below]:
            below += 1
        if below >= size or value <= heap[below]:
            break
        heap[place] = heap[below]
        place = below
    heap[place] = value


@compiled
def best_of(values: np.ndarray, rows: np.ndarray, k: int) -> np.ndarray:
    """Return the rows of the k greatest values, float32, in the order in which they stand; of equal ones the first."""
    if len(rows) <= k:
        return rows
    heap = np.full(k, -np.inf, dtype=np.float32)
    for value in values:
        if value > heap[0]:
            _sink(heap, value)
    last, above = heap[0], 0
    for value in values:
        above += value > last
    level, count = k - above, 0
    kept = np.empty(k, dtype=np.int64)
    for place in range(len(rows)):
        value = values[place]
        if value > last or (value == last and level > 0):
            level -= value == last
            kept[count] = rows[place]
            count += 1
    return kept


@compiled
def in_whole_numbers(vector: np.ndarray) -> tuple[np.ndarray, np.float32, np.float32, np.float32]:
    """Return v, int16 [d], and the float32 t with ``w = t v + f``, and the lengths of f and w, rounded up."""
    largest = np.float32(0.0)
    for value in vector:
        largest = max(largest, abs(value))
    step = largest / np.float32(LARGEST)
    if step == np.float32(0.0):
        step = np.float32(1.0)
    whole, off, length = np.empty(len(vector), dtype=np.int16), 0.0, 0.0
    for place in range(len(vector)):
        value = np.float64(vector[place])
        rounded = np.rint(value / step)
        whole[place] = np.int16(rounded)
        off += (value - rounded * step) ** 2
        length += value**2
    length = np.sqrt(length) * (1.0 + _ROUNDING)
    return whole, step, np.float32(np.sqrt(off) * (1.0 + _ROUNDING) + _ROUNDING * length), np.float32(length)


@compiled
def narrowed(base: np.ndarray, eligible: np.ndarray, wanted: int, one: Given, two: bool, other: Given) -> np.ndarray:
    """Return all rows that may be among the best so many, rising, going by the rows in 8 bits."""
    _, vector, (codes, scale, length, error) = one
    _, other_vector, (other_codes, other_scale, other_length, other_error) = other
    n = len(base)
    whole, step, off, size = in_whole_numbers(vector)
    other_whole, other_step, other_off, other_size = in_whole_numbers(other_vector)
    scores, bounds = np.empty(n, dtype=np.float32), np.empty(n, dtype=np.float32)
    heap = np.full(wanted, -np.inf, dtype=np.float32)
    greatest = np.float32(0.0)
    for row in range(n):
        if not eligible[row]:
            continue
        said = np.float32(whole_dot(codes[row], whole)) * (scale[row] * step)
        bound = length[row] * off + error[row] * size
        largest = max(abs(base[row]), abs(said))
        if two:
            more = np.float32(whole_dot(other_codes[row], other_whole)) * (other_scale[row] * other_step)
            bound += other_length[row] * other_off + other_error[row] * other_size
            largest, said = max(largest, abs(more)), said + more
        greatest = max(greatest, largest)
        scores[row], bounds[row] = base[row] + said, bound
        if scores[row] - bound > heap[0]:
            _sink(heap, scores[row] - bound)
    # as many as are wanted score this, or more
    least = heap[0] - np.float32(8.0 * _ROUNDING) * greatest
    possible, count = np.empty(n, dtype=np.int64), 0
    for row in range(n):
        if eligible[row] and scores[row] + bounds[row] >= least:
            possible[count] = row
            count += 1
    return possible[:count]


@compiled
def shortlisted(base: np.ndarray, eligible: np.ndarray, wanted: int, one: Given, two: bool, other: Given) -> np.ndarray:
    """Return the best so many eligible rows by ``base + rows @ vector``, rising; of equal ones the first.

    Parameters
    ----------
    base
        float32 [n].
    eligible
        bool [n].
    one
        What is multiplied.
    two
        Whether the `other` product is added.
    """
    rows, vector, in_8_bits = one
    other_rows, other_vector, other_in_8_bits = other
    n = len(base)
    if len(in_8_bits[0]) == n and (not two or len(other_in_8_bits[0]) == n):
        possible = narrowed(base, eligible, wanted, one, two, other)
    else:
        possible = np.flatnonzero(eligible)
    found = np.empty(len(possible), dtype=np.float32)
    for place in range(len(possible)):
        row = possible[place]
        found[place] = base[row] + dot(rows[row], vector)
        if two:
            found[place] += dot(other_rows[row], other_vector)
    return best_of(found, possible, wanted)


@compiled
def ranked(
    eligible: np.ndarray,
    wanted: int,
    close: int,
    vectors: np.ndarray,
    neighbours: np.ndarray,
    told: np.ndarray,
    likeness: np.ndarray,
    item_factors: np.ndarray,
    in_8_bits: InEightBits,
    item_bias: np.ndarray,
    popularity: np.ndarray,
    mean: np.ndarray,
    spread: np.ndarray,
    coefficient: np.ndarray,
    habitual: np.ndarray,
    habit: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the best so many eligible rows, best first, of equal ones the first, and their scores, float64.

    Parameters
    ----------
    close
        So many more come into question, for float32 may order neighbours wrongly.
    vectors, neighbours, told, likeness
        As `standing` gives and takes them.
    in_8_bits
        The item factors.
    """
    by = (coefficient / spread).astype(np.float32)
    vector = by[FACTORS] * vectors[0] + by[TEXT] * vectors[1]
    base = np.empty(len(item_bias), dtype=np.float32)
    for row in range(len(base)):
        base[row] = by[FACTORS] * item_bias[row] + by[POPULARITY] * popularity[row]
    for row in range(len(likeness)):
        base[row] += by[TEXT] * likeness[row]
    for row in told:
        base[row] += by[NEIGHBOURS] * np.float32(neighbours[row])
    for place in range(len(habitual)):
        base[habitual[place]] += np.float32(habit[place])
    one = (item_factors, vector, in_8_bits)
    rows = shortlisted(base, eligible, wanted + close, one, False, one)
    scores = exactly(
        rows, vectors, neighbours, likeness, item_factors, item_bias, popularity,
        mean, spread, coefficient, habitual, habit,
    )  # fmt: skip
    order = np.argsort(-scores, kind="mergesort")[:wanted]
    return rows[order], scores[order]
