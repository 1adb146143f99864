"""What was spent of a privacy budget: pure values that compose."""

from collections import Counter
from dataclasses import dataclass
from typing import Literal, Protocol

from common.errors import PrivacyError

PrivacyUnit = Literal["user", "example", "client", "off"]
Noise = Literal["local", "server", "shared"]
"""Who adds the noise: every node a whole one, a trusted server one for all, or every node a share of one."""


@dataclass(frozen=True, slots=True)
class PrivacySpend:
    """Steps of the Poisson-subsampled Gaussian mechanism on one client's data.

    ``a + b`` composes two spends of the same unit and delta; the order does not matter. The epsilon of a spend
    is computed by an accountant from its steps (`client.dp.epsilon_of`), never added up.

    Parameters
    ----------
    unit
        What is protected: one user, one example (window), one client, or nothing.
    delta
        The delta at which epsilon is stated.
    steps
        ``(noise_multiplier, sample_rate, count)`` triples, merged and sorted.
    """

    unit: PrivacyUnit
    delta: float
    steps: tuple[tuple[float, float, int], ...] = ()

    def __add__(self, other: "PrivacySpend") -> "PrivacySpend":
        if (self.unit, self.delta) != (other.unit, other.delta):
            raise PrivacyError(
                f"a spend of unit {other.unit!r} at delta {other.delta}",
                expected=f"unit {self.unit!r} at delta {self.delta}",
                consequence="the two cannot be composed",
            )
        counts: Counter[tuple[float, float]] = Counter()
        for sigma, rate, count in self.steps + other.steps:
            counts[sigma, rate] += count
        return PrivacySpend(self.unit, self.delta, tuple(sorted((s, q, n) for (s, q), n in counts.items())))


@dataclass(frozen=True, slots=True)
class PrivacyClaim:
    """The guarantee that a model version carries, over everything that went into it.

    Parameters
    ----------
    unit
        What is protected.
    epsilon
        Composed over all rounds so far; the largest over the clients. None when nothing is claimed (unit "off").
    delta
        The delta of the claim.
    budget
        The epsilon that no client may exceed. None when nothing is claimed.
    accountant
        Which accountant computed epsilon ("prv", "rdp").
    """

    unit: PrivacyUnit
    epsilon: float | None
    delta: float | None
    budget: float | None
    accountant: str


class Accountant(Protocol):
    """What a server that adds noise itself must be lent: the accounting is the nodes' (`client.dp`)."""

    def sigma(self, epsilon: float, delta: float, sample_rate: float, steps: int) -> float:
        """Return the noise multiplier that spends `epsilon` over all `steps`."""

    def epsilon(self, spend: PrivacySpend) -> float:
        """Return the epsilon of everything in the spend, composed."""
