"""The port of aggregation, and what strategies share.

A strategy is a pair of pure functions over named tensors: which tensors clients train, and (global adapter, state,
updates) to (new global adapter, new state). Updates come one at a time and are summed, so memory does not grow with the
cohort. Weights are uniform: under DP the number of examples is private.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from common.updates import AdapterUpdate

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Aggregate:
    """What one round of aggregation gives: the new adapter, the strategy's state, and how many updates went in."""

    adapter: Tensors
    state: Tensors
    clients: int


class Strategy(Protocol):
    """A way to make one adapter of many updates."""

    @property
    def name(self) -> str:
        """Its name on the command line."""

    def trained(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return which of the adapter's tensors clients train."""

    def aggregate(
        self, adapter: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor], updates: Iterable[AdapterUpdate]
    ) -> Aggregate:
        """Fold the updates into the adapter; `state` is empty in the first round."""


def mean_update(
    updates: Iterable[AdapterUpdate], like: Mapping[str, torch.Tensor], names: Iterable[str]
) -> tuple[Tensors, int]:
    """Return the uniform mean of the updates, summed in float64 in their order, and their number (0: all zeros)."""
    sums = {
        name: torch.zeros(like[name].shape, dtype=torch.float64, device=like[name].device) for name in sorted(names)
    }
    count = 0
    for update in updates:
        count += 1
        for name, total in sums.items():
            # a copy in float64 that torch may own: what came over the wire may be read-only
            total.add_(torch.from_numpy(update.arrays[name].astype(np.float64)).to(total.device))
    return {name: total / max(count, 1) for name, total in sums.items()}, count


@dataclass(frozen=True, slots=True)
class RowAdam:
    """Adam on the server (Reddi et al., 2021, arXiv 2003.00295), with one second moment a row.

    A second moment per row of B is the mean square over the rank, which a rotation of the rank does not change, so the
    state stays right when a strategy re-factors B A (see `rotate`).

    Parameters
    ----------
    learning_rate, beta1, beta2, epsilon
        As in Adam.
    """

    learning_rate: float = 5e-3
    beta1: float = 0.9
    beta2: float = 0.99
    epsilon: float = 1e-8

    def step(self, state: Mapping[str, torch.Tensor], mean: Tensors) -> tuple[Tensors, Tensors]:
        """Return (change to add to each tensor, new state), float64, for the mean change that clients ask for."""
        count = state.get("step", torch.zeros((), dtype=torch.float64)) + 1
        changes: Tensors = {}
        new: Tensors = {"step": count}
        for name, asked in mean.items():
            first = self.beta1 * state.get(f"first/{name}", torch.zeros_like(asked)) + (1 - self.beta1) * asked
            square = asked.square().mean(dim=1, keepdim=True)
            second = self.beta2 * state.get(f"second/{name}", torch.zeros_like(square)) + (1 - self.beta2) * square
            unbiased = first / (1 - self.beta1 ** float(count))
            spread = (second / (1 - self.beta2 ** float(count))).sqrt()
            changes[name] = self.learning_rate * unbiased / (spread + self.epsilon)
            new[f"first/{name}"], new[f"second/{name}"] = first, second
        return changes, new

    @staticmethod
    def rotate(state: Tensors, name: str, rotation: torch.Tensor) -> None:
        """Carry the first moment of B [out, r] into a new basis: ``B_new = B_old R^T`` for ``A_new = R A_old``."""
        state[f"first/{name}"] = state[f"first/{name}"] @ rotation.T
