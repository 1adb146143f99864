"""Clients of several ranks: what they get, what the server accepts, and who counts where."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InvalidSetting, UpdateRejected
from common.instructions import Objective, PrivacyTerms, TrainRequest
from common.updates import AdapterUpdate, UpdateMeta
from server.aggregate import strategy_named
from server.aggregate.base import PlainStep, mean_update
from server.aggregate.fedsvd import FedSVD
from server.aggregate.layout import Layout, cut, rank_axis, widen
from server.validate import validate
from tests.contracts.test_strategies import PAIRS, SHAPES, product, start, tensors, update
from tests.oracles.averaging import mean_over_holders_slowly, mean_product_slowly, mean_slowly

META = UpdateMeta("1", "base", "fedsvd", 1, 1.0)
NAMES = FedSVD().trained(SHAPES)


def narrow(seed: int, rank: int, names: tuple[str, ...] = NAMES) -> AdapterUpdate:
    rng = np.random.default_rng(seed)
    whole = {name: rng.standard_normal(SHAPES[name]).astype(np.float32) for name in names}
    return AdapterUpdate(META, cut(whole, rank))


@given(st.lists(st.integers(1, 4), min_size=1, max_size=9), st.booleans())
def test_each_column_is_averaged_over_the_clients_that_hold_it(ranks: list[int], both: bool) -> None:
    names = tuple(sorted(SHAPES)) if both else NAMES
    updates = [narrow(seed, rank, names) for seed, rank in enumerate(ranks)]
    mean, clients = mean_update(updates, tensors(start()), names)
    assert clients == len(ranks)
    for name in names:
        expected = mean_over_holders_slowly(updates, name, SHAPES[name])
        np.testing.assert_allclose(mean[name].numpy(), expected, rtol=1e-12, atol=1e-15)


def test_of_full_ranks_it_is_the_plain_mean() -> None:
    updates = [narrow(seed, 4) for seed in range(5)]
    mean, _ = mean_update(updates, tensors(start()), NAMES)
    for name in NAMES:
        np.testing.assert_allclose(mean[name].numpy(), mean_slowly(updates, name), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", ["fedsvd", "ffa", "rolora", "fedit", "fedex"])
def test_a_round_of_several_ranks_gives_the_whole_adapter(name: str) -> None:
    strategy = strategy_named(name, PlainStep())
    adapter, state = tensors(start()), dict[str, torch.Tensor]()
    for _ in range(3):
        names = strategy.trained(SHAPES, state)
        result = strategy.aggregate(adapter, state, [narrow(seed, rank, names) for seed, rank in enumerate([1, 2, 4])])
        adapter, state = result.adapter, result.state
        assert {each: tuple(tensor.shape) for each, tensor in adapter.items()} == SHAPES
        assert all(bool(tensor.isfinite().all()) for tensor in adapter.values())


def test_a_column_that_nobody_holds_stays() -> None:
    strategy = strategy_named("ffa", PlainStep())
    result = strategy.aggregate(tensors(start()), {}, [narrow(seed, 2) for seed in range(3)])
    for _, b_name in PAIRS:
        np.testing.assert_array_equal(result.adapter[b_name][:, 2:].numpy(), start()[b_name][:, 2:])
        assert (result.adapter[b_name][:, :2].numpy() != start()[b_name][:, :2]).all()


def test_after_fedsvd_the_cut_adapter_is_the_best_of_its_rank() -> None:
    result = FedSVD(PlainStep()).aggregate(tensors(start()), {}, [update(FedSVD(), seed) for seed in range(4)])
    for a_name, b_name in PAIRS:
        whole = product(result.adapter, a_name, b_name)
        left, values, right = np.linalg.svd(whole)
        for rank in (1, 2, 3):
            held = cut({name: tensor.numpy() for name, tensor in result.adapter.items()}, rank)
            best = left[:, :rank] * values[:rank] @ right[:rank]
            np.testing.assert_allclose(held[b_name] @ held[a_name], best, rtol=0, atol=1e-5)


def test_fedex_takes_a_narrow_client_as_one_that_left_the_rest_unchanged() -> None:
    names = tuple(sorted(SHAPES))
    updates = [narrow(0, 2, names), narrow(1, 4, names)]
    whole = [
        AdapterUpdate(META, {name: widen(name, each.arrays[name], SHAPES[name]) for name in names}) for each in updates
    ]
    strategy = strategy_named("fedex", PlainStep())
    found = strategy.aggregate(tensors(start()), {}, updates)
    for a_name, b_name in PAIRS:
        exact = product(found.adapter, a_name, b_name) + found.state[f"residual/{b_name}"].numpy()
        np.testing.assert_allclose(exact, mean_product_slowly(start(), whole, a_name, b_name), rtol=0, atol=1e-9)


# -- cutting and widening --------------------------------------------------------------------------------------------


def test_cutting_and_widening() -> None:
    head = {"head.bias": np.ones(3, dtype=np.float32)}
    held = cut(start() | head, 3)
    for name, array in held.items():
        axis = rank_axis(name)
        if axis is None:
            np.testing.assert_array_equal(array, head[name])
            continue
        back = widen(name, array, SHAPES[name])
        np.testing.assert_array_equal(np.take(back, range(3), axis), np.take(start()[name], range(3), axis))
        assert not np.take(back, range(3, 4), axis).any()
        assert array.flags.c_contiguous
        assert widen(name, back, SHAPES[name]) is back


@pytest.mark.parametrize("rank", [0, 5, -1])
def test_a_rank_that_the_adapter_lacks_is_refused(rank: int) -> None:
    with pytest.raises(InvalidSetting, match=f"rank {rank} of tensor"):
        cut(start(), rank)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("layer.0.lora_B.weight", (20, 5)),  # more than the rank
        ("layer.0.lora_B.weight", (19, 2)),  # another width
        ("layer.0.lora_B.weight", (20,)),
        ("layer.0.lora_A.weight", (2, 19)),
        ("head.bias", (3,)),
    ],
)
def test_more_than_a_smaller_rank_is_refused(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(UpdateRejected, match="or that with a smaller rank"):
        widen(name, np.ones(shape, dtype=np.float32), SHAPES.get(name, (4,)))


def test_a_flat_row_and_back() -> None:
    layout = Layout.of(tensors(start()), SHAPES)
    row = np.empty(layout.size, dtype=np.float32)
    assert layout.fill(row, start()) == {}
    for name, tensor in layout.split(torch.from_numpy(row)).items():
        np.testing.assert_array_equal(tensor.numpy(), start()[name])


# -- what the server accepts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("planned", "sent"), [(2, 2), (4, 4), (2, 4), (4, 2), (2, 1)])
def test_an_update_passes_at_the_rank_that_was_planned_for_its_node_and_at_no_other(planned: int, sent: int) -> None:
    request = TrainRequest(
        "run", 1, "base", "fedsvd", NAMES, "sha", 1, Objective(), PrivacyTerms("off", float("inf"), 1e-4, 0.2)
    )
    like = cut(start(), planned)
    if planned == sent:
        validate(narrow(0, sent), request, like)
    else:
        with pytest.raises(UpdateRejected, match=r"layer\.0\.lora_B"):
            validate(narrow(0, sent), request, like)
