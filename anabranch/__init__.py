"""Anabranch: a recommender that keeps learning from federated clients and from a live clickstream.

    >>> import anabranch
    >>> anabranch.SimulationSettings(clients=4, cohort=2, rounds=1).strategy
    'fedsvd'

What it offers: `simulate` runs federated rounds into a store, `Recommender` answers from a store, `load_dataset` reads
data. Everything else is reached through the packages ``common``, ``client``, ``server`` and ``stream``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anabranch.recommender import Recommender
    from anabranch.simulation import SimulationResult, SimulationSettings, simulate
    from common.datasets.registry import load_dataset

__all__ = ["Recommender", "SimulationResult", "SimulationSettings", "load_dataset", "simulate"]

_HOMES = {
    "Recommender": "anabranch.recommender",
    "SimulationResult": "anabranch.simulation",
    "SimulationSettings": "anabranch.simulation",
    "load_dataset": "common.datasets.registry",
    "simulate": "anabranch.simulation",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that ``import anabranch`` loads no torch."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'anabranch' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(__all__)
