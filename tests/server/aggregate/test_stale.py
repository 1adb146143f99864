"""Updates of older adapters: under FedSVD the same product in other factors, elsewhere the same numbers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.ids import rng_for
from common.updates import AdapterUpdate, UpdateMeta
from server.aggregate import aggregate_arrays, strategy_named
from server.aggregate.base import RowAdam
from server.aggregate.stale import CARRIED, carry

A, B = "x.lora_A.weight", "x.lora_B.weight"
Arrays = dict[str, np.ndarray]


def adapters(strategy: str, seed: int, steps: int, rank: int) -> list[Arrays]:
    """Return the adapters of so many steps, the first one drawn as it comes."""
    rng = rng_for("stale", seed)
    made: list[Arrays] = [
        {A: rng.standard_normal((rank, 9)).astype(np.float32), B: np.zeros((7, rank), dtype=np.float32)}
    ]
    state: Arrays = {}
    how = strategy_named(strategy, RowAdam(learning_rate=0.1))
    for _ in range(steps):
        adapter, state, _ = aggregate_arrays(how, made[-1], state, [update_of(strategy, made[-1], rng)])
        made.append(adapter)
    return made


def update_of(strategy: str, adapter: Arrays, rng: np.random.Generator) -> AdapterUpdate:
    names = strategy_named(strategy, RowAdam()).trained(adapter)
    arrays = {name: rng.standard_normal(adapter[name].shape).astype(np.float32) for name in names}
    return AdapterUpdate(UpdateMeta("c", "b", strategy, 1, 1.0), arrays)


@given(st.integers(0, 50), st.integers(1, 4), st.integers(1, 4))
def test_under_fedsvd_the_product_with_a_is_the_same(seed: int, steps: int, rank: int) -> None:
    made = adapters("fedsvd", seed, steps, rank)
    for base in made[:-1]:
        update = update_of("fedsvd", base, rng_for("update", seed))
        carried = carry(update, "fedsvd", base, made[-1])
        before, after = update.arrays[B] @ base[A], carried.arrays[B] @ made[-1][A]
        np.testing.assert_allclose(after, before, rtol=0, atol=2e-5 * np.abs(before).max())
        assert carried.arrays[B].dtype == np.float32


def test_between_two_adapters_of_the_server_no_norm_changes() -> None:
    made = adapters("fedsvd", 0, 4, 3)
    update = update_of("fedsvd", made[1], rng_for("update"))
    carried = carry(update, "fedsvd", made[1], made[4])
    assert carried.norm() == pytest.approx(update.norm(), rel=1e-5)
    assert not np.allclose(carried.arrays[B], update.arrays[B], atol=0.1)


@pytest.mark.parametrize("strategy", sorted(CARRIED.keys() - {"fedsvd"}))
def test_elsewhere_an_update_stays_as_it_is(strategy: str) -> None:
    made = adapters(strategy, 0, 3, 2)
    update = update_of(strategy, made[0], rng_for("update"))
    carried = carry(update, strategy, made[0], made[3])
    assert all(np.array_equal(carried.arrays[name], array) for name, array in update.arrays.items())


def test_under_ffa_a_never_moves_so_that_is_exact() -> None:
    made = adapters("ffa", 0, 3, 2)
    assert all(np.array_equal(each[A], made[0][A]) for each in made)
