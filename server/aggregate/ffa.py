"""FFA-LoRA: A stays as it was drawn; clients train B alone.

B averages exactly (the mean of B_i A is mean(B_i) A) and noise enters linearly. What it gives up is A: how good the
drawn one is, is luck. (Sun et al., ICLR 2024, arXiv 2403.12313.) It needs the sum of the updates alone.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import SupportsFloat

import torch

from common.updates import AdapterUpdate
from server.aggregate.base import NO_STATE, Aggregate, Optimizer, RowAdam, mean_update, moved
from server.aggregate.layout import A


@dataclass(frozen=True, slots=True)
class FFA:
    """B-only training over an A that never changes.

    Parameters
    ----------
    optimizer
        What turns the mean update into a step.
    """

    optimizer: Optimizer = field(default_factory=RowAdam)
    name: str = "ffa"

    def trained(self, names: Iterable[str], state: Mapping[str, SupportsFloat] = NO_STATE) -> tuple[str, ...]:
        """Clients train everything but the A matrices."""
        return tuple(sorted(name for name in names if A not in name))

    def aggregate(
        self, adapter: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor], updates: Iterable[AdapterUpdate]
    ) -> Aggregate:
        """Average B exactly and step."""
        mean, clients = mean_update(updates, adapter, self.trained(adapter))
        changes, new_state = self.optimizer.step(state, mean)
        return Aggregate(moved(adapter, changes), new_state, clients)
