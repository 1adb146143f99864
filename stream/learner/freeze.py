"""Frozen copies of a learner's arrays, as serving reads them."""

from collections.abc import Mapping

import numpy as np

from common.blends import BlendMembers
from common.snapshots import MFSnapshot
from stream.learner.base import ArrayRanker


def frozen_snapshot(
    learner: ArrayRanker,
    history_factors: np.ndarray,
    item_factors: np.ndarray,
    item_bias: np.ndarray,
    recency: float,
    offsets: Mapping[str, Mapping[str, int]],
    blend: BlendMembers | None = None,
) -> MFSnapshot:
    """Return a snapshot of the factors with the learner's items, counts, users and histories, all copied.

    Parameters
    ----------
    learner
        Whose users and items they are.
    history_factors, item_factors, item_bias
        float32 [n, k], [n, k] and [n].
    recency
        Decay of the history, in events.
    offsets
        Topic to partition (as text) to the next offset to read.
    blend
        The other members, frozen already.
    """
    users = learner.user_ids
    histories = [learner.history_rows(user) for user in users]
    seen = [np.sort(learner.seen_rows(user)) for user in users]
    return MFSnapshot(
        item_ids=learner.item_ids,
        history_factors=np.array(history_factors, dtype=np.float32, order="C"),
        item_factors=np.array(item_factors, dtype=np.float32, order="C"),
        item_bias=np.array(item_bias, dtype=np.float32),
        item_counts=learner.item_counts.copy(),
        user_ids=users,
        history_starts=_starts(histories),
        history_items=_joined(histories),
        seen_starts=_starts(seen),
        seen_items=_joined(seen),
        recency=recency,
        window=learner.window,
        events=learner.events,
        offsets={topic: dict(parts) for topic, parts in offsets.items()},
        blend=blend,
    )


def _starts(groups: list[np.ndarray]) -> np.ndarray:
    return np.cumsum([0, *map(len, groups)], dtype=np.int64)


def _joined(groups: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype=np.int64), *groups]).astype(np.int32)
