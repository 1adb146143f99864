"""RoLoRA: clients train B in one round and A in the next, so both learn and each round averages exactly.

With A fixed, the mean of B_i A is mean(B_i) A; with B fixed, the mean of B A_i is B mean(A_i). Noise enters linearly.
(Chen et al., 2024, arXiv 2409.02346.) It needs the sum of the updates alone.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import SupportsFloat

import torch

from common.updates import AdapterUpdate
from server.aggregate.base import NO_STATE, Aggregate, Optimizer, RowAdam, Tensors, mean_update, moved
from server.aggregate.layout import A, B


@dataclass(frozen=True, slots=True)
class RoLoRA:
    """A and B by turns, B first (with B = 0 no gradient reaches A).

    The state counts the rounds. A and B each have the optimiser's state of their own rounds, kept under ``a/`` and
    ``b/``; tensors other than A and B (a classifier) are trained in every round, under ``rest/``.

    Parameters
    ----------
    optimizer
        What turns the mean update into a step.
    """

    optimizer: Optimizer = field(default_factory=RowAdam)
    name: str = "rolora"

    def trained(self, names: Iterable[str], state: Mapping[str, SupportsFloat] = NO_STATE) -> tuple[str, ...]:
        """Clients train B after an even number of rounds and A after an odd one."""
        resting = B if int(float(state.get("round", 0.0))) % 2 else A
        return tuple(sorted(name for name in names if resting not in name))

    def aggregate(
        self, adapter: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor], updates: Iterable[AdapterUpdate]
    ) -> Aggregate:
        """Average what was trained and step; what rested stays."""
        mean, clients = mean_update(updates, adapter, self.trained(adapter, state))
        changes: Tensors = {}
        new_state = {**state, "round": state.get("round", torch.zeros((), dtype=torch.float64)) + 1}
        for group in ("a", "b", "rest"):
            asked = {name: tensor for name, tensor in mean.items() if _group(name) == group}
            if asked:
                stepped, own = self.optimizer.step(_part(state, f"{group}/"), asked)
                changes |= stepped
                new_state |= {f"{group}/{key}": value for key, value in own.items()}
        return Aggregate(moved(adapter, changes), new_state, clients)


def _group(name: str) -> str:
    return "a" if A in name else "b" if B in name else "rest"


def _part(state: Mapping[str, torch.Tensor], prefix: str) -> Tensors:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
