"""An update of an older adapter, said in terms of the newest one.

Where A never changes (ffa), or A and B are plain parameters to average (fedit), a change is the same from wherever it
began. FedSVD writes ``B A`` in other factors after every step, but the rows of every A span the same space, since
nobody trains A and the server only rotates it. With orthonormal rows of the newest A, an older one is ``A_old = T A``
with ``T = A_old A^T``, so a change of B travels exactly: ``dB A_old == (dB T) A``. Between two adapters that the server
made, T is a rotation: it leaves norms, and noise, as they are.

The others are refused. RoLoRA asks for A and B in turn, so an older update is of tensors whose turn is over; FedEx puts
what the mean leaves out into a residual that belongs to one base; the robust rules compare updates with each other,
which says nothing where they began at different adapters.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from common.ranks import A, B
from common.updates import AdapterUpdate

Arrays = Mapping[str, np.ndarray]


def as_it_is(changes: Arrays, base: Arrays, adapter: Arrays) -> Arrays:
    """Return the changes: they mean the same at any adapter."""
    return changes


def refactored(changes: Arrays, base: Arrays, adapter: Arrays) -> Arrays:
    """Return the changes of each B in the factors of `adapter`, float32; the same product with A as at `base`."""
    carried = dict(changes)
    for name in changes:
        if B in name:
            old, new = (each[name.replace(B, A)].astype(np.float64) for each in (base, adapter))
            carried[name] = (changes[name].astype(np.float64) @ (old @ new.T)).astype(np.float32)
    return carried


CARRIED: Mapping[str, Callable[[Arrays, Arrays, Arrays], Arrays]] = MappingProxyType(
    {"fedsvd": refactored, "ffa": as_it_is, "fedit": as_it_is}
)
"""Strategy to how its updates are carried to a newer adapter; those that are missing cannot be."""


def carry(update: AdapterUpdate, strategy: str, base: Arrays, adapter: Arrays) -> AdapterUpdate:
    """Return an update that began at `base` as one of `adapter`, a later one of the same run."""
    return AdapterUpdate(update.meta, CARRIED[strategy](update.arrays, base, adapter))
