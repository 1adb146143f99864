"""What the compiled part of an answer reads of a snapshot, in the one form that it is compiled for."""

from dataclasses import dataclass

import numpy as np

from common.snapshots import MFSnapshot
from server.serving.coarse import NOT_COARSE, CoarseRows
from server.serving.narrowing import InEightBits, still
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
    in_8_bits: InEightBits

    @classmethod
    def of(cls, snapshot: MFSnapshot, sums: ItemSums, coarse: CoarseRows | None) -> "ItemRows":
        """Take them from a snapshot; none is copied."""
        blend = snapshot.blend
        none, no_rows = np.empty(0, dtype=np.float32), np.empty(0, dtype=np.int32)
        fading = np.exp(-np.arange(snapshot.window, dtype=np.float32) / np.float32(snapshot.recency))
        return cls(
            history_factors=still(snapshot.history_factors),
            factors=still(snapshot.item_factors),
            bias=still(snapshot.item_bias),
            fading=still(fading),
            popularity=still(none if blend is None else blend.popularity),
            neighbour_decay=still(none if blend is None else blend.neighbour_decay),
            pair_starts=still(no_rows.astype(np.int64) if blend is None else blend.pair_starts),
            pair_items=still(no_rows if blend is None else blend.pair_items),
            pair_weights=still(none if blend is None else blend.pair_weights),
            columns=still(sums.columns),
            products=still(sums.products),
            in_8_bits=(coarse or NOT_COARSE).parts(),
        )
