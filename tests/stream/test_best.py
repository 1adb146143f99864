"""The k best beside a sort."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.learner.best import MOST_INSERTED, best_rows


@given(
    scores=st.lists(st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 2.0, np.nan]), max_size=40),
    k=st.integers(1, 50),
    seed=st.integers(0, 99),
)
def test_they_are_the_head_of_a_sort_and_its_ties(scores: list[float], k: int, seed: int) -> None:
    values = np.array(scores, dtype=np.float32)
    allowed = np.random.default_rng(seed).random(len(values)) < 0.7
    ranked = sorted((float(value) for value in values[allowed] if not np.isnan(value)), reverse=True)
    least = ranked[min(k, len(ranked)) - 1] if ranked else 0.0
    expected = [row for row, value in enumerate(values) if allowed[row] and value >= least]
    assert best_rows(values, allowed, k).tolist() == expected


@pytest.mark.parametrize("k", [1, MOST_INSERTED, MOST_INSERTED + 1])
def test_short_and_long_lists_are_found_alike(k: int) -> None:
    rng = np.random.default_rng(0)
    values, allowed = rng.integers(0, 300, 1_000).astype(np.float32), rng.random(1_000) < 0.9
    mark = np.sort(values[allowed])[-k]
    assert best_rows(values, allowed, k).tolist() == np.flatnonzero(allowed & (values >= mark)).tolist()
