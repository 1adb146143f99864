"""From many adapter updates to one: one idea a file, pure functions on tensors."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import MappingProxyType

import numpy as np
import torch

from common.errors import UnknownName
from common.updates import AdapterUpdate
from server.aggregate.base import Optimizer, Strategy
from server.aggregate.fedex import FedEx
from server.aggregate.fedit import FedIT
from server.aggregate.fedsvd import FedSVD
from server.aggregate.ffa import FFA
from server.aggregate.robust import RULES, Robust
from server.aggregate.rolora import RoLoRA

STRATEGIES: Mapping[str, Callable[[Optimizer], Strategy]] = MappingProxyType(
    {
        "fedsvd": FedSVD,
        "ffa": FFA,
        "rolora": RoLoRA,
        "fedit": FedIT,
        "fedex": FedEx,
        **{rule: partial(Robust, name=rule) for rule in RULES},
    }
)

MEAN_SUFFICES = frozenset({"fedsvd", "fedit", "ffa", "rolora"})
"""Strategies that need no more than the mean of the updates, so they also run where only their sum is known."""

Arrays = dict[str, np.ndarray]


def strategy_named(name: str, optimizer: Optimizer) -> Strategy:
    """Return a strategy by name.

    Raises
    ------
    UnknownName
        When there is none, naming those there are.
    """
    if name not in STRATEGIES:
        raise UnknownName("strategy", name, list(STRATEGIES))
    return STRATEGIES[name](optimizer)


def aggregate_arrays(
    strategy: Strategy,
    adapter: Mapping[str, np.ndarray],
    state: Mapping[str, np.ndarray],
    updates: Iterable[AdapterUpdate],
    device: str = "cpu",
) -> tuple[Arrays, Arrays, int]:
    """Run a strategy on a device for a caller without torch; return (new adapter, new state, number of updates)."""
    result = strategy.aggregate(_tensors(adapter, device), _tensors(state, device), updates)
    return _arrays(result.adapter), _arrays(result.state), result.clients


def _tensors(arrays: Mapping[str, np.ndarray], device: str) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.array(array)).to(device) for name, array in arrays.items()}


def _arrays(tensors: Mapping[str, torch.Tensor]) -> Arrays:
    return {name: tensor.cpu().numpy() for name, tensor in tensors.items()}


__all__ = ["MEAN_SUFFICES", "STRATEGIES", "Strategy", "aggregate_arrays", "strategy_named"]
