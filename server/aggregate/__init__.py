"""From many adapter updates to one: one idea a file, pure functions on tensors."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import MappingProxyType

import numpy as np
import torch

from common.errors import InvalidSetting, UnknownName
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


def bears_ranks(name: str) -> bool:
    """Tell whether a strategy takes updates of a smaller rank: all that average do, the rules that compare do not."""
    return name not in RULES


def strategy_named(name: str, optimizer: Optimizer, *, bad_share: float | None = None) -> Strategy:
    """Return a strategy by name.

    Parameters
    ----------
    name
        One of `STRATEGIES`.
    optimizer
        What turns the mean update into a step.
    bad_share
        Share of a cohort that may be bad, for the robust rules alone; None leaves it at theirs.

    Raises
    ------
    UnknownName
        When there is none, naming those there are.
    InvalidSetting
        For a share with a strategy that bears no bad client, or one that no rule bears.
    """
    if name not in STRATEGIES:
        raise UnknownName("strategy", name, list(STRATEGIES))
    if bad_share is None:
        return STRATEGIES[name](optimizer)
    if name not in RULES:
        raise InvalidSetting(
            f"a share of {bad_share} bad clients with strategy {name!r}",
            expected=f"one of the rules that bear some: {', '.join(RULES)}",
            mend="leave out --bad-share, or choose one of them with --strategy",
        )
    return Robust(optimizer, name, bad_share)


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


__all__ = ["MEAN_SUFFICES", "STRATEGIES", "Strategy", "aggregate_arrays", "bears_ranks", "strategy_named"]
