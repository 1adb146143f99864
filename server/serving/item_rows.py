"""What the compiled part of an answer reads of a snapshot, in the one form that it is compiled for."""

from dataclasses import dataclass

import numpy as np

from common.snapshots import MFSnapshot
from server.serving.sums import ItemSums


@dataclass(frozen=True, slots=True)
class ItemRows:
    """Arrays that nobody may write to; see `server.serving.standing.standing`.

    Without a blend those that only it has are empty.
    """

    history_factors: np.ndarray
    factors: np.ndarray
    bias: np.ndarray
    fading: np.ndarray
    popularity: np.ndarray
    neighbour_decay: np.ndarray
    pair_starts: np.ndarray
    pair_items: np.ndarray
    pair_weights: np.ndarray
    columns: np.ndarray
    products: np.ndarray

    @classmethod
    def of(cls, snapshot: MFSnapshot, sums: ItemSums) -> "ItemRows":
        """Take them from a snapshot; none is copied."""
        blend = snapshot.blend
        none, no_rows = np.empty(0, dtype=np.float32), np.empty(0, dtype=np.int32)
        fading = np.exp(-np.arange(snapshot.window, dtype=np.float32) / np.float32(snapshot.recency))
        arrays = (
            snapshot.history_factors,
            snapshot.item_factors,
            snapshot.item_bias,
            fading,
            none if blend is None else blend.popularity,
            none if blend is None else blend.neighbour_decay,
            no_rows.astype(np.int64) if blend is None else blend.pair_starts,
            no_rows if blend is None else blend.pair_items,
            none if blend is None else blend.pair_weights,
            sums.columns,
            sums.products,
        )
        return cls(*map(still, arrays))


def still(array: np.ndarray) -> np.ndarray:
    """Return an array, or a view of it, that nobody may write to: mapped ones are such, and others are made so."""
    if not array.flags.writeable:
        return array
    view = array.view()
    view.flags.writeable = False
    return view
