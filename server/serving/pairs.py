"""What the neighbours of the items that a user tried add to other items: sums over pairs of items."""

from dataclasses import dataclass

import numpy as np

from common.blends import BlendMembers


@dataclass(frozen=True, slots=True)
class PairSum:
    """What neighbours add, one entry for each pair of an asking item and another one.

    Parameters
    ----------
    newest
        Rows of the asking items, newest first, int64 [q].
    lengths
        How many pairs each of them has, int64 [q]; theirs stand one after another.
    item
        Row of the other item, int32 [p].
    amount
        What it gets, float64 [p].
    history
        Rows of the items liked, oldest first.
    n_items
        Of the catalogue.
    """

    newest: np.ndarray
    lengths: np.ndarray
    item: np.ndarray
    amount: np.ndarray
    history: np.ndarray
    n_items: int

    def above_average(self, chosen: np.ndarray, over: np.ndarray) -> np.ndarray:
        """Return what each item of the history adds to each chosen row above its average, float64 [c, h]."""
        # an item that was tried and not liked has no place in the history
        latest = {row: place for place, row in enumerate(self.history.tolist())}
        places = np.array([latest.get(row, -1) for row in self.newest.tolist()], dtype=np.int64)
        position = np.repeat(places, self.lengths)
        liked, length = position >= 0, len(self.history)
        shown = (self.amount * over[self.item])[liked]
        average = np.bincount(position[liked], weights=shown, minlength=length) / max(1, int(over.sum()))
        place = np.full(self.n_items, -1, dtype=np.int64)
        place[chosen] = np.arange(len(chosen))
        hit = place[self.item]
        kept = (hit >= 0) & liked
        added = np.zeros((len(chosen), length))
        np.add.at(added, (hit[kept], position[kept]), self.amount[kept])
        return added - average


def pairs_of(blend: BlendMembers, tried: np.ndarray, history: np.ndarray) -> PairSum:
    """Return what the neighbours of what was tried add; it and the history are given oldest first."""
    newest = tried[::-1][: len(blend.neighbour_decay)]
    starts, ends = blend.pair_starts[newest], blend.pair_starts[newest + 1]
    pieces = [slice(*each) for each in zip(starts.tolist(), ends.tolist(), strict=True)]
    lengths, n_items = ends - starts, len(blend.popularity)
    if not pieces:
        return PairSum(newest, lengths, np.empty(0, dtype=np.int32), np.empty(0), history, n_items)
    amount = np.repeat(blend.neighbour_decay[: len(newest)].astype(np.float64), lengths)
    amount *= np.concatenate([blend.pair_weights[piece] for piece in pieces])
    item = np.concatenate([blend.pair_items[piece] for piece in pieces])
    return PairSum(newest, lengths, item, amount, history, n_items)
