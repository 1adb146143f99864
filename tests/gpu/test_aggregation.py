"""Aggregation on a GPU against the same on a processor, for every strategy."""

import numpy as np
import pytest

from server.aggregate import STRATEGIES, aggregate_arrays, strategy_named
from server.aggregate.base import RowAdam
from tests.contracts.test_strategies import PAIRS, start, update
from tests.gpu.marks import GPU

pytestmark = GPU


def two_rounds(name: str, device: str) -> dict[str, np.ndarray]:
    """Return the adapter after two rounds of eleven clients."""
    strategy = strategy_named(name, RowAdam(learning_rate=0.01))
    adapter = start()
    state: dict[str, np.ndarray] = {}
    for round_number in range(2):
        updates = [update(strategy, 100 * round_number + seed, state=state) for seed in range(11)]
        adapter, state, clients = aggregate_arrays(strategy, adapter, state, updates, device)
        assert clients == 11
    return adapter


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_it_equals_that_on_a_processor(name: str) -> None:
    here, there = two_rounds(name, "cpu"), two_rounds(name, "cuda")
    for a_name, b_name in PAIRS:
        np.testing.assert_allclose(there[b_name] @ there[a_name], here[b_name] @ here[a_name], rtol=0, atol=1e-6)
