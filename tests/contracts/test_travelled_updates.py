"""Laws of updates that travelled, for every strategy: in 8 bits, and from an older adapter."""

from dataclasses import replace

import numpy as np
import pytest

from common.quantise import STEP, dequantise, quantise
from common.updates import AdapterUpdate
from server.aggregate import STRATEGIES, aggregate_arrays, strategy_named
from server.aggregate.base import PlainStep
from server.aggregate.stale import CARRIED, carry
from tests.contracts.test_strategies import PAIRS, start, update

ONE_STEP = PlainStep()


def in_8_bits(given: AdapterUpdate, seed: int) -> tuple[AdapterUpdate, float]:
    """Return the update as the server reads it, and the widest step of its grids."""
    coded = quantise(given.arrays, seed)
    return replace(given, arrays=dequantise(coded)), max(float(coded[name]) for name in coded if name.endswith(STEP))


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_in_8_bits_the_adapter_is_off_by_no_more_than_the_steps_are_wide(name: str) -> None:
    strategy = strategy_named(name, ONE_STEP)
    exact = [update(strategy, seed) for seed in range(8)]
    rounded, steps = zip(*(in_8_bits(each, seed) for seed, each in enumerate(exact)), strict=True)
    wide, _, _ = aggregate_arrays(strategy, start(), {}, exact)
    narrow, _, _ = aggregate_arrays(strategy, start(), {}, rounded)
    for a_name, b_name in PAIRS:
        off = np.abs(narrow[b_name] @ narrow[a_name] - wide[b_name] @ wide[a_name]).max()
        # a step in each of the four numbers of a row of B, and where A is trained of a column of A; none is above 2
        assert 0 < off <= 2 * 4 * 2 * max(steps)


@pytest.mark.parametrize("name", sorted(CARRIED))
def test_carrying_is_linear_and_changes_nothing_where_nothing_moved(name: str) -> None:
    strategy = strategy_named(name, ONE_STEP)
    old = start()
    new, _, _ = aggregate_arrays(strategy, old, {}, [update(strategy, 9)])
    one, two = update(strategy, 1), update(strategy, 2)
    whole = carry((one + two).scale(0.5), name, old, new)
    parts = (carry(one, name, old, new) + carry(two, name, old, new)).scale(0.5)
    for tensor in whole.arrays:
        np.testing.assert_allclose(whole.arrays[tensor], parts.arrays[tensor], rtol=0, atol=1e-6)
        np.testing.assert_allclose(carry(one, name, new, new).arrays[tensor], one.arrays[tensor], rtol=0, atol=1e-6)
    assert carry(one.zero(), name, old, new).norm() == 0.0
