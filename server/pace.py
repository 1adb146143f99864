"""How long simulated nodes take, so that a simulation without rounds has an order and repeats itself.

Time is counted in the usual duration of one piece of work and has nothing to do with the machine's own: which answer
comes next follows from the seed alone, whatever worker process is quick.
"""

from collections.abc import Collection
from dataclasses import dataclass

from common.ids import rng_for

SLOW = 20.0
"""How many times longer a straggler takes."""


@dataclass(frozen=True, slots=True)
class SimulatedPace:
    """Durations that are drawn from a seed.

    Parameters
    ----------
    seed
        Of the draws.
    slow
        The nodes that are stragglers.
    """

    seed: int
    slow: frozenset[int] = frozenset()

    @classmethod
    def of(cls, seed: int, nodes: Collection[int], stragglers: float) -> "SimulatedPace":
        """Return the pace of nodes of which a share are stragglers, drawn from the seed; at least one of a share."""
        count = 0 if stragglers == 0 else max(1, round(stragglers * len(nodes)))
        chosen = rng_for("stragglers", seed).choice(sorted(nodes), size=count, replace=False)
        return cls(seed, frozenset(int(node) for node in chosen))

    def duration(self, errand: int, node: int) -> float:
        """Return how long a node takes for an errand: 0.5 to 1.5, a straggler twenty times that."""
        usual = float(rng_for("duration", self.seed, errand, node).uniform(0.5, 1.5))
        return usual * (SLOW if node in self.slow else 1.0)
