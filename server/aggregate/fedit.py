"""FedIT: clients train A and B; the server averages each by itself.

The control that most frameworks ship: mean(B_i) mean(A_i) is not mean(B_i A_i), and noise on both enters squared.
(Zhang et al., 2023, arXiv 2305.05644.) It needs the sum of the updates alone.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import SupportsFloat

import torch

from common.updates import AdapterUpdate
from server.aggregate.base import NO_STATE, Aggregate, Optimizer, RowAdam, mean_update, moved


@dataclass(frozen=True, slots=True)
class FedIT:
    """Averaging of A and of B apart.

    Parameters
    ----------
    optimizer
        What turns the mean update into a step.
    """

    optimizer: Optimizer = field(default_factory=RowAdam)
    name: str = "fedit"

    def trained(self, names: Iterable[str], state: Mapping[str, SupportsFloat] = NO_STATE) -> tuple[str, ...]:
        """Clients train every adapter tensor."""
        return tuple(sorted(names))

    def aggregate(
        self, adapter: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor], updates: Iterable[AdapterUpdate]
    ) -> Aggregate:
        """Average each tensor and step."""
        mean, clients = mean_update(updates, adapter, self.trained(adapter))
        changes, new_state = self.optimizer.step(state, mean)
        return Aggregate(moved(adapter, changes), new_state, clients)
