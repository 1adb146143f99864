"""One sum over all updates, the noise that a trusted server adds to it, and the mean that a strategy then gets.

The denominator is public and chosen before anybody answers (expected records, or the expected cohort), never a private
count: the noise is calibrated to the sum, and what divides it must not depend on the data.
"""

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from common.ids import arrays_sha256, rng_for
from common.privacy import Accountant
from common.updates import AdapterUpdate, UpdateMeta

LEAST_DENOMINATOR = 1.0


@dataclass(frozen=True, slots=True)
class Pool:
    """The sum of the updates of a round.

    Parameters
    ----------
    sums
        Tensor name to float64 array.
    clients
        How many updates are in it.
    examples
        Expected records a step of all of them together.
    """

    sums: Mapping[str, np.ndarray]
    clients: int
    examples: float


def pool_updates(
    updates: Iterable[AdapterUpdate], like: Mapping[str, np.ndarray], names: Iterable[str], clip: float | None
) -> Pool:
    """Add the updates up in their order, in float64; none at all gives zeros.

    Parameters
    ----------
    updates
        Checked ones.
    like
        The base adapter: shapes.
    names
        The trained tensors.
    clip
        Bound the norm of each update once more, where the noise is sized for it and the node only says that it did.
    """
    sums = {name: np.zeros(like[name].shape, dtype=np.float64) for name in sorted(names)}
    clients, examples = 0, 0.0
    for update in updates:
        norm = update.norm()
        factor = 1.0 if clip is None or norm <= clip else clip / norm
        for name, total in sums.items():
            np.add(total, factor * update.arrays[name].astype(np.float64), out=total)
        clients, examples = clients + 1, examples + update.meta.examples
    return Pool(sums, clients, examples)


@dataclass(frozen=True, slots=True)
class ServerNoise:
    """What a server needs for one noise over all nodes: to size it, to add it, and to account for it.

    Parameters
    ----------
    accountant
        Lent by the composition root.
    secret
        Source of the noise, in a simulation alone. None, on a real server, takes the operating system's, since who
        knows the secret can subtract the noise.
    """

    accountant: Accountant
    secret: int | None = None

    def add(self, pool: Pool, deviation: float, *release: str | int) -> Pool:
        """Return the pool with Gaussian noise of a standard deviation added to its sums, once.

        With a secret the noise is derived from it and from all that the release is computed from, so the same release
        has the same noise and another one has other noise.
        """
        if self.secret is None:
            source = np.random.Generator(np.random.PCG64(secrets.randbits(128)))
        else:
            source = rng_for("server noise", self.secret, arrays_sha256(pool.sums.items()), repr(deviation), *release)
        sums = {
            name: total + deviation * source.standard_normal(total.shape) for name, total in sorted(pool.sums.items())
        }
        return replace(pool, sums=sums)


def mean_of(pool: Pool, denominator: float, meta: UpdateMeta) -> AdapterUpdate:
    """Return the sums over a public denominator as one update, which stands for all."""
    divisor = max(denominator, LEAST_DENOMINATOR)
    arrays = {name: (total / divisor).astype(np.float32) for name, total in pool.sums.items()}
    return AdapterUpdate(replace(meta, examples=pool.examples), arrays)
