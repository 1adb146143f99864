"""Re-factoring: the same product, orthonormal A, fixed signs, and moments that follow the basis."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from server.aggregate.base import RowAdam, mean_update
from server.aggregate.fedsvd import FedSVD, refactor
from tests.contracts.test_strategies import PAIRS, SHAPES, start, tensors, update
from tests.oracles.averaging import mean_slowly

sizes = st.integers(1, 6).flatmap(lambda r: st.tuples(st.integers(r, 14), st.just(r), st.integers(r, 14)))


def matrices(size: tuple[int, int, int], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    out, rank, into = size
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.standard_normal((out, rank))), torch.from_numpy(rng.standard_normal((rank, into)))


def assert_orthonormal(a: torch.Tensor) -> None:
    torch.testing.assert_close(a @ a.T, torch.eye(len(a), dtype=a.dtype), rtol=0, atol=1e-10)


@given(sizes, st.integers(0, 2**32))
def test_the_product_stays_and_a_becomes_orthonormal(size: tuple[int, int, int], seed: int) -> None:
    b, a = matrices(size, seed)
    new_b, new_a, rotation = refactor(b, a)
    torch.testing.assert_close(new_b @ new_a, b @ a, rtol=0, atol=1e-9)
    assert_orthonormal(new_a)
    assert_orthonormal(rotation)


@given(sizes, st.integers(0, 2**32))
def test_rows_come_by_falling_singular_value(size: tuple[int, int, int], seed: int) -> None:
    new_b, _, _ = refactor(*matrices(size, seed))
    norms = new_b.norm(dim=0)
    assert bool((norms[:-1] >= norms[1:] - 1e-9).all())


@given(sizes, st.integers(0, 2**32))
def test_of_an_orthonormal_a_the_rotation_leads_to_the_new_one(size: tuple[int, int, int], seed: int) -> None:
    b, a = matrices(size, seed)
    _, a, _ = refactor(b, a)
    b = matrices(size, seed + 1)[0]
    new_b, new_a, rotation = refactor(b, a)
    torch.testing.assert_close(new_a, rotation @ a, rtol=0, atol=1e-9)
    torch.testing.assert_close(new_b, b @ rotation.T, rtol=0, atol=1e-9)


@given(sizes, st.integers(0, 2**32))
def test_signs_are_fixed(size: tuple[int, int, int], seed: int) -> None:
    b, a = matrices(size, seed)
    first = refactor(b, a)
    assert all(torch.equal(x, y) for x, y in zip(first, refactor(b.clone(), a.clone()), strict=True))
    again = refactor(first[0], first[1])  # already in form: nothing moves, no sign flips
    torch.testing.assert_close(again[0], first[0], rtol=0, atol=1e-8)
    torch.testing.assert_close(again[1], first[1], rtol=0, atol=1e-8)


def test_with_b_zero_a_is_made_orthonormal_and_the_basis_stays() -> None:
    b, a = matrices((5, 3, 7), 0)
    new_b, new_a, rotation = refactor(torch.zeros_like(b), a)
    assert not new_b.any()
    assert_orthonormal(new_a)
    torch.testing.assert_close(rotation, torch.eye(3, dtype=a.dtype))
    # the same row space, and an A that is orthonormal already is left alone
    torch.testing.assert_close(a @ new_a.T @ new_a, a, rtol=0, atol=1e-9)
    torch.testing.assert_close(refactor(torch.zeros_like(b), new_a)[1], new_a, rtol=0, atol=1e-12)


def test_a_b_of_lower_rank_keeps_its_product() -> None:
    b, a = matrices((9, 4, 9), 1)
    b[:, 2:] = 0
    new_b, new_a, _ = refactor(b, a)
    torch.testing.assert_close(new_b @ new_a, b @ a, rtol=0, atol=1e-9)
    assert_orthonormal(new_a)


# -- the server's optimiser ------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32), st.integers(1, 4))
def test_stepping_in_a_rotated_basis_is_rotating_the_step(seed: int, before: int) -> None:
    rng = np.random.default_rng(seed)
    rotation = torch.linalg.qr(torch.from_numpy(rng.standard_normal((3, 3))))[0]
    adam = RowAdam(learning_rate=0.1)
    state: dict[str, torch.Tensor] = {}
    for _ in range(before):
        _, state = adam.step(state, {"b": torch.from_numpy(rng.standard_normal((5, 3)))})
    rotated_state = dict(state)
    adam.rotate(rotated_state, "b", rotation)
    asked = torch.from_numpy(rng.standard_normal((5, 3)))
    straight, after = adam.step(state, {"b": asked})
    turned, after_turned = adam.step(rotated_state, {"b": asked @ rotation.T})
    torch.testing.assert_close(turned["b"], straight["b"] @ rotation.T, rtol=0, atol=1e-10)
    adam.rotate(after, "b", rotation)
    for name in after:
        torch.testing.assert_close(after_turned[name], after[name], rtol=0, atol=1e-10)


def test_the_first_step_is_the_learning_rate_in_the_asked_direction() -> None:
    asked = torch.full((2, 3), 0.04, dtype=torch.float64)
    changes, state = RowAdam(learning_rate=0.5).step({}, {"b": asked})
    torch.testing.assert_close(changes["b"], torch.full_like(asked, 0.5), rtol=1e-5, atol=0)
    assert float(state["step"]) == 1


def test_momentum_survives_the_change_of_basis_between_rounds() -> None:
    """The same run with and without re-factoring asks for the same products: only the basis differs."""
    strategy = FedSVD(RowAdam(learning_rate=0.05))
    rng = np.random.default_rng(0)
    wanted = {b: rng.standard_normal((SHAPES[b][0], SHAPES[a][1])) for a, b in PAIRS}
    adapter, state = tensors(start()), dict[str, torch.Tensor]()
    plain = {name: tensor.double() for name, tensor in adapter.items()}
    plain_state: dict[str, torch.Tensor] = {}
    for _ in range(5):
        # each client moves B toward one fixed product, whatever the basis of A
        asked = {b: wanted[b] @ adapter[a].double().numpy().T * 0.1 for a, b in PAIRS}
        given_update = update(strategy, 0)
        arrays = {name: array.astype(np.float32) for name, array in asked.items()}
        result = strategy.aggregate(adapter, state, [type(given_update)(given_update.meta, arrays)])
        adapter, state = result.adapter, result.state
        steady = {b: torch.from_numpy(wanted[b]) @ plain[a].T * 0.1 for a, b in PAIRS}
        changes, plain_state = strategy.optimizer.step(plain_state, steady)
        for _, b in PAIRS:
            plain[b] = plain[b] + changes[b]
        for a, b in PAIRS:
            np.testing.assert_allclose(
                (adapter[b].double() @ adapter[a].double()).numpy(), (plain[b] @ plain[a]).numpy(), rtol=0, atol=1e-5
            )


# -- the mean --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 17])
def test_the_mean_is_the_plain_one(count: int) -> None:
    strategy = FedSVD()
    updates = [update(strategy, seed) for seed in range(count)]
    mean, clients = mean_update(updates, tensors(start()), strategy.trained(SHAPES))
    assert clients == count
    for name, tensor in mean.items():
        np.testing.assert_allclose(tensor.numpy(), mean_slowly(updates, name), rtol=1e-12, atol=1e-15)


def test_examples_do_not_weigh() -> None:
    from dataclasses import replace

    strategy = FedSVD()
    light, heavy = update(strategy, 1), update(strategy, 2)
    heavy = replace(heavy, meta=replace(heavy.meta, examples=1e6))
    mean, _ = mean_update([light, heavy], tensors(start()), strategy.trained(SHAPES))
    name = strategy.trained(SHAPES)[0]
    np.testing.assert_allclose(mean[name].numpy(), mean_slowly([light, heavy], name), rtol=1e-12, atol=1e-15)


def test_the_mean_of_none_is_zero() -> None:
    mean, clients = mean_update([], tensors(start()), FedSVD().trained(SHAPES))
    assert clients == 0
    assert not any(tensor.any() for tensor in mean.values())


def test_an_update_that_may_not_be_written_to_is_summed() -> None:
    given_update = update(FedSVD(), 1)
    for array in given_update.arrays.values():
        array.flags.writeable = False
    _, clients = mean_update([given_update], tensors(start()), FedSVD().trained(SHAPES))
    assert clients == 1
