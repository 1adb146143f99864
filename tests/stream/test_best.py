"""The k best beside a sort."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.learner.best import MOST_INSERTED, best_rows


def by_sorting(scores: np.ndarray, barred: np.ndarray, k: int) -> list[tuple[float, int]]:
    """Return score and row of each that is at least as good as the k-th best, best first, then by row."""
    shut = set(barred.tolist())
    ranked = sorted((-value, row) for row, value in enumerate(scores.tolist()) if row not in shut and value == value)
    return [(-value, row) for value, row in ranked if value <= ranked[min(k, len(ranked)) - 1][0]]


def found(scores: np.ndarray, barred: np.ndarray, k: int) -> tuple[list[tuple[float, int]], bool]:
    """Return the same of `best_rows`, which may have equal ones in any order, and whether it says that some are."""
    rows, values, tied = best_rows(scores, barred, k)
    assert values == sorted(values, reverse=True)
    return sorted(zip(values, rows, strict=True), key=lambda each: (-each[0], each[1])), tied


@given(
    scores=st.lists(st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 2.0, 3.0, np.nan]), max_size=40),
    k=st.integers(1, 50),
    seed=st.integers(0, 99),
)
def test_they_are_the_head_of_a_sort_and_its_ties(scores: list[float], k: int, seed: int) -> None:
    values = np.array(scores, dtype=np.float32)
    barred = np.flatnonzero(np.random.default_rng(seed).random(len(values)) < 0.3)
    expected = by_sorting(values, barred, k)
    kept = [value for value, _ in expected]
    assert found(values, barred, k) == (expected, len(set(kept)) < len(kept))


@pytest.mark.parametrize("k", [1, MOST_INSERTED, MOST_INSERTED + 1])
@pytest.mark.parametrize("most", [300, 10_000_000])
def test_short_and_long_lists_are_found_alike(k: int, most: int) -> None:
    rng = np.random.default_rng(0)
    values, barred = rng.integers(0, most, 1_000).astype(np.float32), np.flatnonzero(rng.random(1_000) < 0.1)
    expected = by_sorting(values, barred, k)
    kept = [value for value, _ in expected]
    assert found(values, barred, k) == (expected, len(set(kept)) < len(kept))
