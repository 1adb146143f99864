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
    """Return a snapshot of the factors with the learner's items, counts, users and histories, these all copied.

    Parameters
    ----------
    learner
        Whose users and items they are.
    history_factors, item_factors, item_bias
        float32 [n, k], [n, k] and [n], as they are to be kept: no view of what the learner goes on with.
    recency
        Decay of the history, in events.
    offsets
        Topic to partition (as text) to the next offset to read.
    blend
        The other members, frozen already.
    """
    histories, seen = learner.all_users_items()
    return MFSnapshot(
        item_ids=learner.item_ids,
        history_factors=history_factors,
        item_factors=item_factors,
        item_bias=item_bias,
        item_counts=learner.item_counts.copy(),
        user_ids=learner.user_ids,
        history_starts=histories[0],
        history_items=histories[1],
        seen_starts=seen[0],
        seen_items=seen[1],
        recency=recency,
        window=learner.window,
        events=learner.events,
        offsets={topic: dict(parts) for topic, parts in offsets.items()},
        blend=blend,
    )
