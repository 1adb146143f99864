"""A snapshot of a population that a learner would take an hour to meet: random members, the real files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.blends import BlendMembers
from common.snapshots import MFSnapshot
from stream.snapshot import publish_snapshot

LIKES, NEIGHBOURS, TEXT_COLUMNS = 10, 40, 64


def a_snapshot(root: Path, item_ids: Sequence[str], users: int, factors: int) -> None:
    """Publish a blend's snapshot in which each user liked `LIKES` items and each item has `NEIGHBOURS` others."""
    rng, items = np.random.default_rng(4), len(item_ids)
    width = factors + TEXT_COLUMNS
    lists = np.arange(users + 1, dtype=np.int64) * LIKES
    liked = rng.integers(0, items, users * LIKES).astype(np.int32)
    seen = np.sort(liked.reshape(users, LIKES), axis=1).reshape(-1)
    nothing = np.empty(0, dtype=np.float32)
    blend = BlendMembers(
        weights=np.ones((1, 4)),
        pair_starts=np.arange(items + 1, dtype=np.int64) * NEIGHBOURS,
        pair_items=rng.integers(0, items, items * NEIGHBOURS).astype(np.int32),
        pair_weights=rng.random(items * NEIGHBOURS).astype(np.float32),
        neighbour_decay=np.exp(-np.arange(16) / 4.0).astype(np.float32),
        popularity=rng.random(items).astype(np.float32),
        positives=np.full(users, LIKES, dtype=np.int64),
        habit=nothing,
        opening_weights=np.empty((0, 4)),
        opening_habit=nothing,
        moments=np.empty(0, dtype=np.int64),
        tried_starts=lists,
        tried_items=liked,
        buckets=(0,),
        visit_ms=1_800_000,
        unknown_popularity=0.0,
        text_columns=TEXT_COLUMNS,
        repeats=False,
    )
    snapshot = MFSnapshot(
        item_ids=tuple(item_ids),
        history_factors=rng.standard_normal((items, width)).astype(np.float32),
        item_factors=rng.standard_normal((items, width)).astype(np.float32),
        item_bias=rng.standard_normal(items).astype(np.float32),
        item_counts=np.full(items, 100, dtype=np.int64),
        user_ids=tuple(f"user {row}" for row in range(users)),
        history_starts=lists,
        history_items=liked,
        seen_starts=lists,
        seen_items=seen,
        recency=10.0,
        window=50,
        events=users * LIKES,
        offsets={},
        blend=blend,
    )
    publish_snapshot(root, snapshot, 1, 1)
