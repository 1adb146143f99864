"""All users' items at once, end to end, as snapshots hold them."""

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
    starts = _starts(_chain_lengths(log, newest))
    items = np.empty(starts[-1], dtype=np.int32)
    _fill_chains(log, newest, starts, items)
    return starts, items


def _starts(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


@compiled
def _chain_lengths(log: SeenLog, newest: np.ndarray) -> np.ndarray:
    lengths = np.zeros(len(newest), dtype=np.int64)
    for user in range(len(newest)):
        entry = newest[user]
        while entry >= 0:
            lengths[user] += 1
            entry = log.previous[entry]
    return lengths


@compiled
def _fill_chains(log: SeenLog, newest: np.ndarray, starts: np.ndarray, items: np.ndarray) -> None:
    for user in range(len(newest)):
        place, entry = starts[user], newest[user]
        while entry >= 0:
            items[place] = log.item[entry]
            place += 1
            entry = log.previous[entry]
        items[starts[user] : place].sort()
