"""Laws of every aggregation strategy."""

import weakref
from collections.abc import Iterator, Mapping
from typing import SupportsFloat

import numpy as np
import pytest
import torch

from common.encoder.adapter import initial_adapter
from common.errors import UnknownName
from common.ids import arrays_sha256, rng_for
from common.updates import AdapterUpdate, UpdateMeta
from server.aggregate import MEAN_SUFFICES, STRATEGIES, Strategy, strategy_named
from server.aggregate.base import NO_STATE, Aggregate, PlainStep, RowAdam, Tensors
from server.aggregate.fedex import exact_adapter
from server.aggregate.robust import RULES
from tests.oracles.averaging import mean_product_slowly

SHAPES = {
    "layer.0.lora_A.weight": (4, 20),
    "layer.0.lora_B.weight": (20, 4),
    "layer.1.lora_A.weight": (4, 20),
    "layer.1.lora_B.weight": (12, 4),
}
PAIRS = [("layer.0.lora_A.weight", "layer.0.lora_B.weight"), ("layer.1.lora_A.weight", "layer.1.lora_B.weight")]


@pytest.fixture(params=sorted(STRATEGIES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def strategy(name: str) -> Strategy:
    return strategy_named(name, RowAdam(learning_rate=0.01))


def start(b_scale: float = 0.3) -> dict[str, np.ndarray]:
    """Return an adapter with orthonormal A."""
    arrays = initial_adapter(SHAPES, 0)
    rng = rng_for("start")
    return {
        name: (rng.standard_normal(a.shape) * b_scale).astype(np.float32) if "lora_B" in name else a
        for name, a in arrays.items()
    }


def update(
    strategy: Strategy, seed: int, scale: float = 0.1, state: Mapping[str, SupportsFloat] = NO_STATE
) -> AdapterUpdate:
    rng = rng_for("update", seed)
    names = strategy.trained(SHAPES, state)
    arrays = {n: (rng.standard_normal(SHAPES[n]) * scale).astype(np.float32) for n in names}
    return AdapterUpdate(UpdateMeta(str(seed), "base", strategy.name, 1, 1.0), arrays)


def tensors(arrays: Mapping[str, np.ndarray]) -> Tensors:
    return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}


def product(adapter: Mapping[str, torch.Tensor], a_name: str, b_name: str) -> np.ndarray:
    found: np.ndarray = (adapter[b_name].double() @ adapter[a_name].double()).numpy()
    return found


def assert_same_adapter(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor], atol: float) -> None:
    assert left.keys() == right.keys()
    for a_name, b_name in PAIRS:
        np.testing.assert_allclose(product(left, a_name, b_name), product(right, a_name, b_name), rtol=0, atol=atol)


def test_it_is_found_by_its_own_name(name: str, strategy: Strategy) -> None:
    assert strategy.name == name


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(
        UnknownName, match="unknown strategy 'best'; expected one of fedex, fedit, fedsvd, ffa, krum, median"
    ):
        strategy_named("best", RowAdam())


def test_what_is_trained_is_sorted_and_of_the_adapter(strategy: Strategy) -> None:
    state: Mapping[str, torch.Tensor] = {}
    for _ in range(2):
        trained = strategy.trained(reversed(SHAPES), state)
        assert trained
        assert list(trained) == sorted(trained)
        assert set(trained) <= set(SHAPES)
        state = strategy.aggregate(tensors(start()), state, [update(strategy, 1, state=state)]).state


def test_the_result_has_the_adapters_names_shapes_and_dtype(strategy: Strategy) -> None:
    result = strategy.aggregate(tensors(start()), {}, [update(strategy, 1)])
    assert {name: tuple(tensor.shape) for name, tensor in result.adapter.items()} == SHAPES
    assert {tensor.dtype for tensor in result.adapter.values()} == {torch.float32}
    assert result.clients == 1


def test_nothing_given_is_changed(strategy: Strategy) -> None:
    adapter = tensors(start())
    state = strategy.aggregate(adapter, {}, [update(strategy, 2)]).state
    given = update(strategy, 1, state=state)
    before = [arrays_sha256((n, t.numpy()) for n, t in each.items()) for each in (adapter, state)]
    before_update = arrays_sha256(given.arrays.items())
    strategy.aggregate(adapter, state, [given])
    assert [arrays_sha256((n, t.numpy()) for n, t in each.items()) for each in (adapter, state)] == before
    assert arrays_sha256(given.arrays.items()) == before_update


def test_the_order_of_updates_does_not_matter(strategy: Strategy) -> None:
    updates = [update(strategy, seed) for seed in range(7)]
    forth = strategy.aggregate(tensors(start()), {}, updates)
    back = strategy.aggregate(tensors(start()), {}, updates[::-1])
    assert_same_adapter(forth.adapter, back.adapter, 1e-6)


def test_many_equal_updates_are_as_one(strategy: Strategy) -> None:
    one = strategy.aggregate(tensors(start()), {}, [update(strategy, 1)])
    many = strategy.aggregate(tensors(start()), {}, [update(strategy, 1)] * 9)
    assert_same_adapter(one.adapter, many.adapter, 1e-6)
    assert many.clients == 9


def test_the_same_inputs_give_the_same_bytes(strategy: Strategy) -> None:
    results = [strategy.aggregate(tensors(start()), {}, [update(strategy, seed) for seed in range(3)]) for _ in "ab"]
    hashes = {arrays_sha256((n, t.numpy()) for each in (r.adapter, r.state) for n, t in each.items()) for r in results}
    assert len(hashes) == 1


@pytest.fixture
def threads() -> Iterator[None]:
    """Give torch its number of threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_the_number_of_threads_changes_no_byte_and_is_left_as_it_was(strategy: Strategy) -> None:
    found = set()
    for number in (1, 2):
        torch.set_num_threads(number)
        result = strategy.aggregate(tensors(start()), {}, [update(strategy, seed) for seed in range(5)])
        assert torch.get_num_threads() == number
        found.add(arrays_sha256((n, t.numpy()) for n, t in [*result.adapter.items(), *result.state.items()]))
    assert len(found) == 1


def test_a_thousand_updates_are_never_held_together(strategy: Strategy) -> None:
    """Robust rules keep a row of each, as they say, but none of the updates either."""
    alive: list[weakref.ref[np.ndarray]] = []
    most = 0

    def one_by_one() -> Iterator[AdapterUpdate]:
        nonlocal alive, most
        for seed in range(1000):
            given = update(strategy, seed % 5)
            alive += [weakref.ref(array) for array in given.arrays.values()]
            yield given
            del given
            alive = [each for each in alive if each() is not None]
            most = max(most, len(alive))

    assert strategy.aggregate(tensors(start()), {}, one_by_one()).clients == 1000
    assert most <= 2 * len(strategy.trained(SHAPES))


@pytest.mark.parametrize("b_scale", [0.0, 0.3])
def test_a_zero_update_keeps_the_model(name: str, b_scale: float) -> None:
    strategy = strategy_named(name, PlainStep())
    result = strategy.aggregate(tensors(start(b_scale)), {}, [update(strategy, 1, scale=0.0)])
    assert_same_adapter(result.adapter, tensors(start(b_scale)), 1e-6)


def test_zero_updates_and_none_at_all_stay_finite(strategy: Strategy) -> None:
    for count in (0, 3):
        adapter, state = tensors(start(0.0)), dict[str, torch.Tensor]()
        for _ in range(3):
            updates = [update(strategy, 1, scale=0.0, state=state)] * count
            result = strategy.aggregate(adapter, state, updates)
            adapter, state = result.adapter, result.state
        assert all(bool(tensor.isfinite().all()) for tensor in [*adapter.values(), *state.values()])
        assert result.clients == count


def test_a_resumed_state_goes_on_as_if_never_stopped(strategy: Strategy) -> None:
    """State passes through numpy between rounds, as it does on disk."""
    adapter, state = tensors(start()), dict[str, torch.Tensor]()
    kept_adapter, kept_state = start(), dict[str, np.ndarray]()
    for number in range(4):
        updates = [update(strategy, 10 * number + seed, state=state) for seed in range(3)]
        straight = strategy.aggregate(adapter, state, updates)
        resumed = strategy.aggregate(tensors(kept_adapter), tensors(kept_state), updates)
        adapter, state = straight.adapter, straight.state
        kept_adapter = {n: t.numpy() for n, t in resumed.adapter.items()}
        kept_state = {n: t.numpy() for n, t in resumed.state.items()}
        assert arrays_sha256(kept_adapter.items()) == arrays_sha256((n, t.numpy()) for n, t in adapter.items())
        assert arrays_sha256(kept_state.items()) == arrays_sha256((n, t.numpy()) for n, t in state.items())


def test_tensors_that_are_neither_a_nor_b_are_averaged_too(name: str) -> None:
    """A classifier beside the adapter, with a bias."""
    strategy = strategy_named(name, PlainStep())
    head = {"head.weight": np.ones((3, 20), dtype=np.float32), "head.bias": np.zeros(3, dtype=np.float32)}
    base = start() | head
    names = strategy.trained(base)
    assert set(head) < set(names)
    rng = rng_for("head")
    one = {each: (rng.standard_normal(base[each].shape) * 0.1).astype(np.float32) for each in names}
    two = {each: (rng.standard_normal(base[each].shape) * 0.1).astype(np.float32) for each in names}
    meta = UpdateMeta("1", "base", name, 1, 1.0)
    result = strategy.aggregate(tensors(base), {}, [AdapterUpdate(meta, one), AdapterUpdate(meta, two)])
    assert result.adapter.keys() == base.keys()
    if name != "krum":  # which takes one of them
        for each in head:
            expected = base[each] + (one[each] + two[each]) / 2
            np.testing.assert_allclose(result.adapter[each].numpy(), expected, rtol=0, atol=1e-6)
    real = strategy_named(name, RowAdam(learning_rate=0.5)).aggregate(tensors(base), {}, [AdapterUpdate(meta, one)])
    np.testing.assert_allclose(real.adapter["head.bias"].numpy(), 0.5 * np.sign(one["head.bias"]), rtol=1e-5)


# -- what tells them apart -------------------------------------------------------------------------------------------


def twenty(name: str, drift: float, state: Mapping[str, torch.Tensor]) -> list[AdapterUpdate]:
    """Return the updates of twenty clients of whom each moved by so much from the base."""
    strategy = strategy_named(name, PlainStep())
    return [update(strategy, seed, drift, state) for seed in range(20)]


def relative_errors(name: str, drift: float, rounds: int = 2) -> list[float]:
    """Return after each round how far the exact result of a strategy is from the mean of B_i A_i of its clients."""
    strategy = strategy_named(name, PlainStep())
    adapter, state = tensors(start()), dict[str, torch.Tensor]()
    errors = []
    for _ in range(rounds):
        base = {each: tensor.numpy() for each, tensor in adapter.items()}
        before = published(Aggregate(adapter, state, 0))
        updates = twenty(name, drift, state)
        result = strategy.aggregate(adapter, state, updates)
        worst = 0.0
        for a_name, b_name in PAIRS:
            # what fedex carries beside the adapter stays, whatever clients do to the adapter
            carried = product(before, a_name, b_name) - product(adapter, a_name, b_name)
            exact = mean_product_slowly(base, updates, a_name, b_name) + carried
            found = product(published(result), a_name, b_name)
            worst = max(worst, float(np.linalg.norm(found - exact) / np.linalg.norm(exact)))
        errors.append(worst)
        adapter, state = result.adapter, result.state
    return errors


def published(result: Aggregate) -> Mapping[str, torch.Tensor]:
    """Return what a strategy calls its exact result."""
    return exact_adapter(result) if any(key.startswith("residual/") for key in result.state) else result.adapter


EXACT = ("fedsvd", "ffa", "rolora", "fedex")


@pytest.mark.parametrize("exact", EXACT)
def test_the_exact_ones_keep_the_mean_of_the_products(exact: str) -> None:
    assert max(relative_errors(exact, 0.3)) < 1e-6


def test_fedit_does_not_once_a_drifts_and_the_more_the_worse() -> None:
    errors = [relative_errors("fedit", drift, rounds=1)[0] for drift in (0.01, 0.1, 0.3)]
    assert 0 < errors[0] < errors[1] < errors[2]
    assert errors[2] > 0.05


@pytest.mark.parametrize("exact", [*EXACT, "fedit"])
def test_independent_changes_average_out(exact: str) -> None:
    """The mean moves; no strategy takes a median or a choice where it says mean."""
    updates = twenty(exact, 0.3, {})
    result = strategy_named(exact, PlainStep()).aggregate(tensors(start()), {}, updates)
    moved = product(published(result), *PAIRS[0]) - product(tensors(start()), *PAIRS[0])
    one = strategy_named(exact, PlainStep()).aggregate(tensors(start()), {}, updates[:1])
    alone = product(published(one), *PAIRS[0]) - product(tensors(start()), *PAIRS[0])
    assert 0 < np.linalg.norm(moved) < 0.5 * np.linalg.norm(alone)


def test_every_strategy_says_how_exact_it_is() -> None:
    assert set(STRATEGIES) == {*EXACT, "fedit", *RULES}, "a new strategy needs its product error tested here"


def test_where_the_mean_suffices_the_mean_alone_gives_the_same_result(name: str) -> None:
    """So these may run where the server sees a sum and no update."""
    strategy = strategy_named(name, PlainStep())
    updates = [update(strategy, seed, 0.3) for seed in range(9)]
    total = updates[0]
    for each in updates[1:]:
        total = total + each
    straight = strategy.aggregate(tensors(start()), {}, updates)
    by_mean = strategy.aggregate(tensors(start()), {}, [total.scale(1 / 9)])
    apart = max(
        float(np.abs(product(straight.adapter, *pair) - product(by_mean.adapter, *pair)).max()) for pair in PAIRS
    )
    assert (apart < 1e-5) == (name in MEAN_SUFFICES)


def test_from_an_orthonormal_a_ffa_and_fedsvd_learn_alike() -> None:
    """As docs/strategies.md says: re-factoring turns the basis of A and adds no direction to it."""
    wanted = {b: rng_for("wanted", b).standard_normal((SHAPES[b][0], SHAPES[a][1])) for a, b in PAIRS}
    adapters = {}
    for name in ("ffa", "fedsvd"):
        strategy = strategy_named(name, RowAdam(learning_rate=0.05))
        adapter, state = tensors(start()), dict[str, torch.Tensor]()
        for _ in range(5):
            # the gradient of half the squared distance to a product, as every client would send it
            arrays = {
                b: ((wanted[b] - product(adapter, a, b)) @ adapter[a].double().numpy().T).astype(np.float32)
                for a, b in PAIRS
            }
            result = strategy.aggregate(adapter, state, [AdapterUpdate(update(strategy, 0).meta, arrays)])
            adapter, state = result.adapter, result.state
        adapters[name] = adapter
    assert_same_adapter(adapters["ffa"], adapters["fedsvd"], 1e-5)


def test_fedex_publishes_the_nearest_adapter_of_its_rank_and_says_what_is_left_out() -> None:
    updates = twenty("fedex", 0.3, {})
    result = strategy_named("fedex", PlainStep()).aggregate(tensors(start()), {}, updates)
    exact = exact_adapter(result)
    for a_name, b_name in PAIRS:
        whole = product(exact, a_name, b_name)
        left, values, right = np.linalg.svd(whole)
        best = left[:, :4] * values[:4] @ right[:4]
        np.testing.assert_allclose(product(result.adapter, a_name, b_name), best, rtol=0, atol=1e-6)
        share = np.linalg.norm(whole - best) / np.linalg.norm(whole)
        assert 0.01 < share < 1
        assert abs(float(result.state[f"truncation/{b_name}"]) - share) < 1e-6


def test_the_exact_adapter_of_two_clients_has_at_most_three_times_the_rank() -> None:
    strategy = strategy_named("fedex", PlainStep())
    result = strategy.aggregate(tensors(start()), {}, [update(strategy, seed, 0.3) for seed in range(2)])
    exact = exact_adapter(result)
    ranks = {exact[b_name].shape[1] for _, b_name in PAIRS} | {exact[a_name].shape[0] for a_name, _ in PAIRS}
    assert len(ranks) == 1
    assert 4 < ranks.pop() <= 12


def test_what_fedex_leaves_out_is_added_again_until_it_fits() -> None:
    """Clients that ask for nothing more leave the exact result where it is, however many rounds pass."""
    strategy = strategy_named("fedex", PlainStep())
    result = strategy.aggregate(tensors(start()), {}, twenty("fedex", 0.3, {}))
    first = exact_adapter(result)
    for _ in range(3):
        result = strategy.aggregate(result.adapter, result.state, [update(strategy, 1, scale=0.0)])
    assert_same_adapter_of_any_rank(exact_adapter(result), first)


def assert_same_adapter_of_any_rank(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor]) -> None:
    for pair in PAIRS:
        np.testing.assert_allclose(product(left, *pair), product(right, *pair), rtol=0, atol=1e-6)


def test_fedex_is_fedit_with_the_residual_that_the_paper_adds() -> None:
    updates = twenty("fedex", 0.3, {})
    exact = exact_adapter(strategy_named("fedex", PlainStep()).aggregate(tensors(start()), {}, updates))
    averaged = strategy_named("fedit", PlainStep()).aggregate(tensors(start()), {}, updates)
    for a_name, b_name in PAIRS:
        a_changes = np.stack([each.arrays[a_name].astype(np.float64) for each in updates])
        b_changes = np.stack([each.arrays[b_name].astype(np.float64) for each in updates])
        residual = np.mean(b_changes @ a_changes, axis=0) - b_changes.mean(axis=0) @ a_changes.mean(axis=0)
        found = product(exact, a_name, b_name) - product(averaged.adapter, a_name, b_name)
        np.testing.assert_allclose(found, residual, rtol=0, atol=1e-5)
