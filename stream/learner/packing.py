"""Ids as arrays; and rows of places, few of them taken, as arrays of what is taken."""

from collections.abc import Iterable
from itertools import accumulate, pairwise

import numpy as np

from common.errors import CheckpointMismatch


def pack_ids(ids: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids as int64 ends and one uint8 array of UTF-8."""
    encoded = [text.encode() for text in ids]
    ends = np.fromiter(accumulate(map(len, encoded)), dtype=np.int64, count=len(encoded))
    return ends, np.frombuffer(b"".join(encoded), dtype=np.uint8)


def unpack_ids(ends: np.ndarray, content: np.ndarray) -> list[str]:
    """Return what `pack_ids` packed."""
    raw = content.tobytes()
    starts = [0, *ends.tolist()]
    return [raw[start:end].decode() for start, end in pairwise(starts)]


def packed_places(key: np.ndarray, value: np.ndarray) -> dict[str, np.ndarray]:
    """Return what is taken, row by row; a place is free where `key`, [n, p], is 0, and `value` is 0 there too.

    Returns
    -------
    dict
        "filled", uint8 [n, p / 8]: one bit a place, the first one highest; "keys" and "values": what is there, in the
        dtypes of `key` and `value`.
    """
    taken = key != 0
    return {"filled": np.packbits(taken, axis=1), "keys": key[taken], "values": value[taken]}


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
