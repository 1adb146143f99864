"""Ids as arrays; and rows of places, few of them taken, as arrays of what is taken."""

from collections.abc import Iterable
from itertools import pairwise

import numpy as np

from common.compiled import compiled
from common.errors import CheckpointMismatch


def pack_ids(ids: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids as int64 ends and one uint8 array of UTF-8."""
    held = list(ids)
    text = "".join(held)
    raw = text.encode()
    # a letter of ASCII is a byte, so there is no need to encode each id for its length
    lengths = map(len, held) if len(raw) == len(text) else (len(each.encode()) for each in held)
    ends: np.ndarray = np.cumsum(np.fromiter(lengths, dtype=np.int64, count=len(held)))
    return ends, np.frombuffer(raw, dtype=np.uint8)


def unpack_ids(ends: np.ndarray, content: np.ndarray) -> list[str]:
    """Return what `pack_ids` packed."""
    raw = content.tobytes()
    starts = [0, *ends.tolist()]
    return [raw[start:end].decode() for start, end in pairwise(starts)]


def packed_places(key: np.ndarray, value: np.ndarray) -> dict[str, np.ndarray]:
    """Return what is taken, row by row; a place is free where `key`, [n, p], is 0, and `value` is 0 there too.

    p is a multiple of 8.

    Returns
    -------
    dict
        "filled", uint8 [n, p / 8]: one bit a place, the first one highest; "keys" and "values": what is there, in the
        dtypes of `key` and `value`.
    """
    counts = taken_in_rows(key)
    filled = np.zeros((key.shape[0], key.shape[1] // 8), dtype=np.uint8)
    keys, values = np.empty(counts.sum(), dtype=key.dtype), np.empty(counts.sum(), dtype=value.dtype)
    _fill_packed(key, value, counts, filled, keys, values)
    return {"filled": filled, "keys": keys, "values": values}


@compiled
def taken_in_rows(table: np.ndarray) -> np.ndarray:
    """Return how many places of each row are not 0, int64 [n]."""
    counts, free = np.zeros(len(table), dtype=np.int64), table.dtype.type(0)
    for row in range(len(table)):
        places, taken = table[row], 0
        for place in range(len(places)):
            taken += places[place] != free
        counts[row] = taken
    return counts


@compiled
def _fill_packed(
    key: np.ndarray, value: np.ndarray, counts: np.ndarray, filled: np.ndarray, keys: np.ndarray, values: np.ndarray
) -> None:
    end = 0
    for row in range(len(key)):
        if counts[row] == 0:  # most rows of a large catalogue
            continue
        for place in range(key.shape[1]):
            if key[row, place] != 0:
                filled[row, place // 8] |= np.uint8(128 >> place % 8)
                keys[end], values[end] = key[row, place], value[row, place]
                end += 1


def unpacked_places(filled: np.ndarray, keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return `key` and `value`, bit for bit as `packed_places` got them.

    Raises
    ------
    CheckpointMismatch
        When there are not as many keys and values as places taken.
    """
    taken = np.unpackbits(filled, axis=1).astype(bool)
    count = int(taken.sum())
    if not count == len(keys) == len(values):
        raise CheckpointMismatch(
            f"the checkpoint has {len(keys)} keys and {len(values)} values for {count} places",
            expected="as many of each",
            mend="start with a new store",
        )
    key, value = np.zeros(taken.shape, dtype=keys.dtype), np.zeros(taken.shape, dtype=values.dtype)
    key[taken], value[taken] = keys, values
    return key, value
