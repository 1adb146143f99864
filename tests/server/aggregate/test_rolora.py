"""RoLoRA: whose turn it is, and moments that wait for it."""

import numpy as np
import torch

from common.updates import AdapterUpdate, UpdateMeta
from server.aggregate.base import PlainStep, RowAdam
from server.aggregate.rolora import RoLoRA
from tests.contracts.test_strategies import SHAPES, start, tensors, update

B_NAMES = tuple(sorted(name for name in SHAPES if "lora_B" in name))
A_NAMES = tuple(sorted(name for name in SHAPES if "lora_A" in name))


def test_b_goes_first_and_then_they_take_turns() -> None:
    """With B = 0 no gradient reaches A, so a first round of A would teach nothing."""
    strategy, state = RoLoRA(PlainStep()), dict[str, torch.Tensor]()
    turns = []
    for _ in range(4):
        turns.append(strategy.trained(SHAPES, state))
        state = strategy.aggregate(tensors(start()), state, [update(strategy, 1, state=state)]).state
    assert turns == [B_NAMES, A_NAMES, B_NAMES, A_NAMES]


def test_the_turn_is_read_from_arrays_as_well() -> None:
    assert RoLoRA().trained(SHAPES, {"round": np.array(1.0)}) == A_NAMES
    assert RoLoRA().trained(SHAPES, {"round": torch.tensor(2.0)}) == B_NAMES


def test_a_round_without_updates_is_still_a_turn() -> None:
    strategy = RoLoRA(PlainStep())
    state = strategy.aggregate(tensors(start()), {}, []).state
    assert strategy.trained(SHAPES, state) == A_NAMES


def test_what_rests_keeps_its_bytes() -> None:
    strategy = RoLoRA()
    first = strategy.aggregate(tensors(start()), {}, [update(strategy, 1)])
    for name in A_NAMES:
        assert torch.equal(first.adapter[name], tensors(start())[name])
    second = strategy.aggregate(first.adapter, first.state, [update(strategy, 1, state=first.state)])
    for name in B_NAMES:
        assert torch.equal(second.adapter[name], first.adapter[name])
        assert not torch.equal(first.adapter[name], tensors(start())[name])


def test_each_half_steps_as_if_it_were_alone() -> None:
    """The moments of B are those of its own rounds, the pauses left out."""
    adam = RowAdam(learning_rate=0.1)
    strategy = RoLoRA(adam)
    adapter, state = tensors(start()), dict[str, torch.Tensor]()
    alone = {name: tensor.double() for name, tensor in tensors(start()).items()}
    own: dict[str, dict[str, torch.Tensor]] = {"lora_A": {}, "lora_B": {}}
    rng = np.random.default_rng(0)
    for _ in range(6):
        names = strategy.trained(SHAPES, state)
        arrays = {name: rng.standard_normal(SHAPES[name]).astype(np.float32) for name in names}
        given = AdapterUpdate(UpdateMeta("1", "base", "rolora", 1, 1.0), arrays)
        result = strategy.aggregate(adapter, state, [given])
        adapter, state = result.adapter, result.state
        half = "lora_A" if "lora_A" in names[0] else "lora_B"
        changes, own[half] = adam.step(own[half], {name: torch.from_numpy(arrays[name]).double() for name in names})
        for name in names:
            alone[name] = alone[name] + changes[name]
    for name, tensor in alone.items():
        torch.testing.assert_close(adapter[name].double(), tensor, rtol=0, atol=1e-5)
