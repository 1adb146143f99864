"""What a client sends back: an algebra, private arrays apart from public metadata."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from common.errors import UpdateRejected
from common.privacy import PrivacySpend


@dataclass(frozen=True, slots=True)
class UpdateMeta:
    """The public side of an update; safe to log.

    Parameters
    ----------
    client
        Node id, as text.
    base_version
        The global version that the client started from.
    strategy
        The aggregation strategy it trained for.
    round
        The round it answers.
    examples
        Expected records a step (sample rate times records): public under DP, unlike the sampled count.
    privacy
        What this update spent; None without DP.
    epsilon
        The client's epsilon composed over its whole ledger, this update included; None without DP.
    metrics
        Scalars by name.
    """

    client: str
    base_version: str
    strategy: str
    round: int
    examples: float
    privacy: PrivacySpend | None = None
    epsilon: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AdapterUpdate:
    """A change of the trained adapter tensors.

    The laws (tested): ``+`` is associative and commutative up to rounding, `zero` is its unit, and
    ``(a + b).scale(w) == a.scale(w) + b.scale(w)``.

    Parameters
    ----------
    meta
        Public.
    arrays
        Tensor name to float32 array: new value minus the base version's. Private until aggregated.
    """

    meta: UpdateMeta
    arrays: Mapping[str, np.ndarray]

    def __add__(self, other: "AdapterUpdate") -> "AdapterUpdate":
        if self.arrays.keys() != other.arrays.keys():
            missing = sorted(self.arrays.keys() ^ other.arrays.keys())
            raise UpdateRejected(f"updates that differ in tensors {missing}", expected="the same tensors")
        meta = replace(
            self.meta,
            client=f"{self.meta.client}+{other.meta.client}",
            examples=self.meta.examples + other.meta.examples,
        )
        return AdapterUpdate(meta, {name: self.arrays[name] + other.arrays[name] for name in self.arrays})

    def scale(self, weight: float) -> "AdapterUpdate":
        """Return the update with every array multiplied by `weight`."""
        return AdapterUpdate(self.meta, {name: array * np.float32(weight) for name, array in self.arrays.items()})

    def zero(self) -> "AdapterUpdate":
        """Return the unit of ``+`` for this update's shapes."""
        return AdapterUpdate(
            replace(self.meta, examples=0.0), {name: np.zeros_like(array) for name, array in self.arrays.items()}
        )

    def norm(self) -> float:
        """Return the Euclidean norm over all arrays, in float64; NaN or infinite if any element is."""
        with np.errstate(over="ignore", invalid="ignore"):
            return float(np.sqrt(sum(np.square(array, dtype=np.float64).sum() for array in self.arrays.values())))
