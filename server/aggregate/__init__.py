"""From many adapter updates to one: one idea a file, pure functions on tensors."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from common.errors import UnknownName
from server.aggregate.base import RowAdam, Strategy
from server.aggregate.fedit import FedIT
from server.aggregate.fedsvd import FedSVD

STRATEGIES: Mapping[str, Callable[[RowAdam], Strategy]] = MappingProxyType({"fedsvd": FedSVD, "fedit": FedIT})


def strategy_named(name: str, optimizer: RowAdam) -> Strategy:
    """Return a strategy by name.

    Raises
    ------
    UnknownName
        When there is none, naming those there are.
    """
    if name not in STRATEGIES:
        raise UnknownName("strategy", name, list(STRATEGIES))
    return STRATEGIES[name](optimizer)


__all__ = ["STRATEGIES", "Strategy", "strategy_named"]
