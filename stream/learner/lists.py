"""All users' items at once, end to end, as snapshots hold them."""

from collections.abc import Sequence

import numpy as np

from common.compiled import compiled
from stream.learner.kernels import SeenLog, UserRows

Lists = tuple[np.ndarray, np.ndarray]
"""int64 [u + 1] starts and int32 items: user j's are ``items[starts[j]:starts[j + 1]]``."""


def all_histories(users: UserRows, n_users: int) -> Lists:
    """Return each user's newest liked items, oldest first."""
    window = users.ring.shape[1]
    positives = users.positives[:n_users]
    order = positives[:, None] - window + np.arange(window)
    items = np.take_along_axis(users.ring[:n_users], order % window, axis=1)[order >= 0]
    return _starts(np.minimum(positives, window)), items.astype(np.int32)


def all_seen(users: UserRows, log: SeenLog, n_users: int) -> Lists:
    """Return each user's liked items, each once, sorted."""
    newest = users.newest[:n_users]
    starts = _starts(_chain_lengths(log.previous, newest))
    items = np.empty(starts[-1], dtype=np.int32)
    _fill_chains(log, newest, starts, items)
    return starts, items


def lay_out(users: UserRows, logs: Sequence[np.ndarray], previous: np.ndarray, n_users: int) -> None:
    """Bring each user's entries of the log together, in the order in which they came; what the log says stays.

    Who follows a user's entries then reads memory from one end to the other, where each step was a miss of the cache.

    Parameters
    ----------
    users
        Their `newest` is changed.
    logs
        Arrays with one row an entry, cut to the entries that there are; changed.
    previous
        Of `SeenLog`, likewise.
    n_users
        How many users there are.
    """
    newest = users.newest[:n_users]
    starts = _starts(_chain_lengths(previous, newest))
    order = np.empty(len(previous), dtype=np.int64)
    _order_chains(previous, newest, starts, order)
    for array in logs:
        array[:] = array[order]
    previous[:] = np.arange(-1, len(previous) - 1)
    previous[starts[:-1][np.diff(starts) > 0]] = -1
    newest[:] = np.where(np.diff(starts) > 0, starts[1:] - 1, -1)


def _starts(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


@compiled
def _chain_lengths(previous: np.ndarray, newest: np.ndarray) -> np.ndarray:
    lengths = np.zeros(len(newest), dtype=np.int64)
    for user in range(len(newest)):
        entry = newest[user]
        while entry >= 0:
            lengths[user] += 1
            entry = previous[entry]
    return lengths


@compiled
def _order_chains(previous: np.ndarray, newest: np.ndarray, starts: np.ndarray, order: np.ndarray) -> None:
    for user in range(len(newest)):
        place, entry = starts[user + 1], newest[user]
        while entry >= 0:
            place -= 1
            order[place] = entry
            entry = previous[entry]


@compiled
def _fill_chains(log: SeenLog, newest: np.ndarray, starts: np.ndarray, items: np.ndarray) -> None:
    for user in range(len(newest)):
        place, entry = starts[user], newest[user]
        while entry >= 0:
            items[place] = log.item[entry]
            place += 1
            entry = log.previous[entry]
        items[starts[user] : place].sort()
