"""What each member of the blend says of the items, before it is brought to a scale: any item's, and sums over all.

Factors and texts are products of an item's row with one vector each. So their mean and spread over all items follow
from sums that were taken beforehand (`server.serving.sums`), less what the few items say that may not be shown.
"""

from dataclasses import dataclass

import numpy as np

from common.blends import BlendMembers
from server.serving.bundle import Stream
from server.serving.fusion import MemberKind
from server.serving.narrowing import ranked
from server.serving.shortlist import CLOSE, Product, QuickScores
from server.serving.standing import FACTORS, NEIGHBOURS, POPULARITY, TEXT, exactly, said, standing

KINDS: tuple[MemberKind, ...] = ("neighbours", "factors", "text", "popularity")
"""The blend's members, in the order of `common.blends.MEMBERS`; its content is the answer's text."""
Habits = tuple[np.ndarray, np.ndarray]
"""Rows, int64, each once, and what habit adds to the score of each, float64."""
NO_LIKENESS = np.empty(0, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class RawScores:
    """The members' raw scores for one question, and where each member stands.

    Parameters
    ----------
    stream, blend
        The bundle's.
    vectors
        What item rows are multiplied with, float32 [2, d]: for the factors, and for the texts.
    neighbours
        What neighbours say of each item, float64 [n].
    told
        The rows of which they say something, int64.
    likeness
        How like the history each item's text is, float32 [n], where it is not in the item rows; else [0].
    shown
        bool [n]: the items that means and spreads are taken over.
    mean, spread
        Of each member over these, float64 [m]; the spread is infinite where it says the same of all.
    """

    stream: Stream
    blend: BlendMembers
    vectors: np.ndarray
    neighbours: np.ndarray
    told: np.ndarray
    likeness: np.ndarray
    shown: np.ndarray
    mean: np.ndarray
    spread: np.ndarray

    def z(self, rows: np.ndarray) -> np.ndarray:
        """Return what all members say of some rows, brought to a scale, float64 [m, r]."""
        items = self.stream.still
        raw = said(rows, self.vectors, self.neighbours, self.likeness, items.factors, items.bias, items.popularity)
        z: np.ndarray = (raw - self.mean[:, None]) / self.spread[:, None]
        return z

    def exactly(self, rows: np.ndarray, coefficient: np.ndarray, habits: Habits) -> np.ndarray:
        """Return the scores of some rows, float64: ``coefficient @ z``, and the habits on top."""
        items = self.stream.still
        return exactly(
            rows, self.vectors, self.neighbours, self.likeness, items.factors, items.bias, items.popularity,
            self.mean, self.spread, coefficient, *habits,
        )  # fmt: skip

    def ranked(
        self, eligible: np.ndarray, wanted: int, coefficient: np.ndarray, habits: Habits
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the best so many eligible rows, best first, and their scores."""
        items = self.stream.still
        return ranked(
            eligible, wanted, CLOSE, self.vectors, self.neighbours, self.told, self.likeness,
            items.factors, items.in_8_bits, items.bias, items.popularity, self.mean, self.spread, coefficient, *habits,
        )  # fmt: skip

    def quick(self, coefficient: np.ndarray, habits: Habits) -> QuickScores:
        """Return the scores but for a constant and for rounding."""
        by, snapshot = (coefficient / self.spread).astype(np.float32), self.stream.snapshot
        vector = by[FACTORS : TEXT + 1] @ self.vectors
        columns = (snapshot.item_bias, by[FACTORS]), (self.blend.popularity, by[POPULARITY])
        loose = ((self.likeness, by[TEXT]),) if len(self.likeness) else ()
        near = self.told, (self.neighbours[self.told] * by[NEIGHBOURS]).astype(np.float32)
        again = habits[0], habits[1].astype(np.float32)
        product = Product(snapshot.item_factors, vector, self.stream.coarse)
        return QuickScores((product,), columns, loose, (near, again))


def raw_scores(
    stream: Stream,
    blend: BlendMembers,
    history: np.ndarray,
    tried: np.ndarray,
    without: np.ndarray,
    likeness: np.ndarray,
) -> RawScores:
    """Return what the members say, without a query.

    Parameters
    ----------
    history, tried
        Rows, oldest first, int64.
    without
        Rows that may not be shown, int64.
    likeness
        As for `RawScores`.
    """
    items = stream.still
    told = standing(
        history, items.fading, tried, items.neighbour_decay, without,
        items.history_factors, items.factors, items.bias, items.popularity, blend.text_columns, likeness,
        items.pair_starts, items.pair_items, items.pair_weights, items.columns, items.products,
    )  # fmt: skip
    vectors, neighbours, rows, shown, mean, spread = told
    return RawScores(stream, blend, vectors, neighbours, rows, likeness, shown, mean, spread)
