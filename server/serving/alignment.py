"""A snapshot's rows, brought to the order of a catalogue."""

from dataclasses import replace

import numpy as np

from common.blends import BlendMembers
from common.items import Catalogue
from common.snapshots import MFSnapshot


def align(snapshot: MFSnapshot, catalogue: Catalogue) -> MFSnapshot:
    """Return the snapshot with its rows in catalogue order.

    An item that only the catalogue has gets zero rows and count 0 (it is cold); one that only the snapshot has is
    dropped, from histories as well.
    """
    if snapshot.item_ids == catalogue.ids:
        return snapshot
    row_in_snapshot = {item_id: row for row, item_id in enumerate(snapshot.item_ids)}
    source = np.array([row_in_snapshot.get(item_id, -1) for item_id in catalogue.ids], dtype=np.int64)
    known = source >= 0
    target = np.full(len(snapshot.item_ids), -1, dtype=np.int64)
    target[source[known]] = np.flatnonzero(known)

    def rows(array: np.ndarray) -> np.ndarray:
        moved = np.zeros((len(catalogue), *array.shape[1:]), dtype=array.dtype)
        moved[known] = array[source[known]]
        return moved

    history_starts, history_items = _moved_lists(snapshot.history_starts, snapshot.history_items, target)
    seen_starts, seen_items = _moved_lists(snapshot.seen_starts, snapshot.seen_items, target)
    return replace(
        snapshot,
        item_ids=catalogue.ids,
        history_factors=rows(snapshot.history_factors),
        item_factors=rows(snapshot.item_factors),
        item_bias=rows(snapshot.item_bias),
        item_counts=rows(snapshot.item_counts),
        history_starts=history_starts,
        history_items=history_items,
        seen_starts=seen_starts,
        seen_items=seen_items,
        blend=None if snapshot.blend is None else _moved_blend(snapshot, snapshot.blend, target, len(catalogue)),
    )


def _moved_blend(snapshot: MFSnapshot, blend: BlendMembers, target: np.ndarray, n_items: int) -> BlendMembers:
    """Return the members with items moved to `target`, -1 for those that are dropped."""
    kept = target >= 0
    popularity = np.full(n_items, blend.unknown_popularity, dtype=np.float32)
    popularity[target[kept]] = blend.popularity[kept]
    rows = np.repeat(target, np.diff(blend.pair_starts))
    items = target[blend.pair_items]
    tried_starts, tried_items = _moved_lists(blend.tried_starts, blend.tried_items, target)
    stay = np.flatnonzero((rows >= 0) & (items >= 0))
    stay = stay[np.argsort(rows[stay], kind="stable")]
    sizes = np.bincount(rows[stay], minlength=n_items)
    return replace(
        blend,
        popularity=popularity,
        pair_starts=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        pair_items=items[stay].astype(np.int32),
        pair_weights=blend.pair_weights[stay],
        tried_starts=tried_starts,
        tried_items=tried_items,
        habit=_kept_habit(blend.habit, target[snapshot.seen_items] >= 0),
        opening_habit=_kept_habit(blend.opening_habit, target[snapshot.seen_items] >= 0),
    )


def _kept_habit(habit: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Return what is said of the seen items that are kept; empty where users like nothing twice."""
    return habit[kept] if len(habit) else habit


def _moved_lists(starts: np.ndarray, items: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rename the items of the users' lists, without those that have no new row."""
    moved = target[items]
    kept = moved >= 0
    before = np.concatenate([[0], np.cumsum(kept)])
    return before[starts].astype(starts.dtype), moved[kept].astype(items.dtype)
