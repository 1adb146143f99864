"""The port of aggregation, and what strategies share.

A strategy is a pair of pure functions over named tensors: which tensors clients train, and (global adapter, state,
updates) to (new global adapter, new state). Updates come one at a time; what a strategy needs of them (their sum, one
at a time, or all together) is in its docstring. Weights are uniform: under DP the number of examples is private.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol, SupportsFloat

import numpy as np
import torch

from common.updates import AdapterUpdate
from server.aggregate.layout import Layout, rank_axis

Tensors = dict[str, torch.Tensor]

NO_STATE: Mapping[str, SupportsFloat] = MappingProxyType({})
"""The state before the first round."""
WHOLE_ROWS: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Aggregate:
    """What one round of aggregation gives: the new adapter, the strategy's state, and how many updates went in."""

    adapter: Tensors
    state: Tensors
    clients: int


class Optimizer(Protocol):
    """What turns the mean change that clients ask for into a step."""

    def step(
        self, state: Mapping[str, torch.Tensor], mean: Tensors, widths: Mapping[str, int] = WHOLE_ROWS
    ) -> tuple[Tensors, Tensors]:
        """Return (change to add to each tensor, new state), float64; `widths` as in `RowAdam.step`."""

    def rotate(self, state: Tensors, name: str, rotation: torch.Tensor) -> None:
        """Carry the state of B [out, r] into a new basis: ``B_new = B_old R^T`` for ``A_new = R A_old``."""


class Strategy(Protocol):
    """A way to make one adapter of many updates."""

    @property
    def name(self) -> str:
        """Its name on the command line."""

    def trained(self, names: Iterable[str], state: Mapping[str, SupportsFloat] = NO_STATE) -> tuple[str, ...]:
        """Return which of the adapter's tensors clients train in the round that begins with this state."""

    def aggregate(
        self, adapter: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor], updates: Iterable[AdapterUpdate]
    ) -> Aggregate:
        """Fold the updates into the adapter; `state` is empty in the first round."""


def mean_update(
    updates: Iterable[AdapterUpdate], like: Mapping[str, torch.Tensor], names: Iterable[str]
) -> tuple[Tensors, int]:
    """Return the uniform mean of the updates, summed in float64 in their order, and their number (0: all zeros).

    An update of a smaller rank counts where it has elements: each column of B, and each row of A, is averaged over the
    clients that hold it. Memory does not grow with the number of updates.
    """
    layout = Layout.of(like, names)
    device = next((tensor.device for tensor in like.values()), torch.device("cpu"))
    # here, where the updates arrive: of all that a GPU would be sent, it needs the sum alone
    total, row = np.zeros(layout.size), np.empty(layout.size)
    absent: dict[str, np.ndarray] = {}
    count = 0
    for update in updates:
        count += 1
        for name, held in layout.fill(row, update.arrays).items():
            full = layout.shapes[name][rank_axis(name) or 0]
            absent.setdefault(name, np.zeros(full))[held:] += 1
        total += row
    means = layout.split(torch.from_numpy(total / max(count, 1)).to(device))
    for name, missing in absent.items():
        share = torch.from_numpy(count / np.maximum(count - missing, 1)).to(device)
        means[name] = means[name] * (share if rank_axis(name) == 1 else share[:, None])
    return means, count


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

    def step(
        self, state: Mapping[str, torch.Tensor], mean: Tensors, widths: Mapping[str, int] = WHOLE_ROWS
    ) -> tuple[Tensors, Tensors]:
        """Return (change to add to each tensor, new state), float64, for the mean change that clients ask for.

        Parameters
        ----------
        state
            As returned last time; empty the first time.
        mean
            The mean changes; of a vector, each element is a row.
        widths
            Over how many numbers the square of a row is averaged, where that is not its length: a row of B A has the
            freedom of the rank, however long it is.
        """
        count = state.get("step", torch.zeros((), dtype=torch.float64)) + 1
        changes: Tensors = {}
        new: Tensors = {"step": count}
        for name, asked in mean.items():
            first = self.beta1 * state.get(f"first/{name}", torch.zeros_like(asked)) + (1 - self.beta1) * asked
            square = _row_squares(asked, widths.get(name))
            second = self.beta2 * state.get(f"second/{name}", torch.zeros_like(square)) + (1 - self.beta2) * square
            unbiased = first / (1 - self.beta1 ** float(count))
            spread = (second / (1 - self.beta2 ** float(count))).sqrt()
            changes[name] = self.learning_rate * unbiased / (spread + self.epsilon)
            new[f"first/{name}"], new[f"second/{name}"] = first, second
        return changes, new

    def rotate(self, state: Tensors, name: str, rotation: torch.Tensor) -> None:
        """Carry the first moment of B [out, r] into a new basis: ``B_new = B_old R^T`` for ``A_new = R A_old``."""
        state[f"first/{name}"] = state[f"first/{name}"] @ rotation.T


@dataclass(frozen=True, slots=True)
class PlainStep:
    """The mean change times a number; with 1, federated averaging (McMahan et al., 2017, arXiv 1602.05629).

    Parameters
    ----------
    learning_rate
        The number.
    """

    learning_rate: float = 1.0

    def step(
        self, state: Mapping[str, torch.Tensor], mean: Tensors, widths: Mapping[str, int] = WHOLE_ROWS
    ) -> tuple[Tensors, Tensors]:
        """Return (the scaled mean, no state)."""
        return {name: self.learning_rate * asked for name, asked in mean.items()}, {}

    def rotate(self, state: Tensors, name: str, rotation: torch.Tensor) -> None:
        """Do nothing: there is no state."""


def _row_squares(asked: torch.Tensor, width: int | None) -> torch.Tensor:
    """Return the mean square of each row, with the row's axes kept at length 1."""
    square = asked.square()
    if asked.ndim < 2:
        return square
    axes = tuple(range(1, asked.ndim))
    return square.mean(dim=axes, keepdim=True) if width is None else square.sum(dim=axes, keepdim=True) / width


def moved(adapter: Mapping[str, torch.Tensor], changes: Mapping[str, torch.Tensor]) -> Tensors:
    """Return the whole adapter in float32 with the changes added in float64; what is not changed stays as it is."""
    return {
        name: (tensor.to(torch.float64) + changes[name]).to(torch.float32) if name in changes else tensor.clone()
        for name, tensor in adapter.items()
    }


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one of torch's threads, and with as many as before afterwards.

    The matrices are small: on a busy machine waiting for a second thread took a hundred times what the work takes. And
    sums come out the same on any number of cores.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
