"""FedSVD: clients train B alone; the server re-factors B A by SVD so that A stays orthonormal.

B averages exactly (the mean of B_i A is mean(B_i) A), the noise enters linearly, and an orthonormal A keeps gradients
small, so less is clipped. The re-factoring is post-processing: it costs no privacy. (FedSVD, NeurIPS 2025.) It needs
the sum of the updates alone.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import SupportsFloat

import torch

from common.updates import AdapterUpdate
from server.aggregate.base import NO_STATE, Aggregate, Optimizer, RowAdam, Tensors, mean_update, moved, one_thread
from server.aggregate.layout import A, B


@dataclass(frozen=True, slots=True)
class FedSVD:
    """B-only training, exact mean, SVD re-factoring.

    Parameters
    ----------
    optimizer
        What turns the mean update into a step.
    """

    optimizer: Optimizer = field(default_factory=RowAdam)
    name: str = "fedsvd"

    def trained(self, names: Iterable[str], state: Mapping[str, SupportsFloat] = NO_STATE) -> tuple[str, ...]:
        """Clients train everything but the A matrices."""
        return tuple(sorted(name for name in names if A not in name))

    @one_thread()
    def aggregate(
        self, adapter: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor], updates: Iterable[AdapterUpdate]
    ) -> Aggregate:
        """Average B exactly, step, and re-factor each pair."""
        mean, clients = mean_update(updates, adapter, self.trained(adapter))
        return refactored_step(self.optimizer, adapter, state, mean, clients)


def refactored_step(
    optimizer: Optimizer,
    adapter: Mapping[str, torch.Tensor],
    state: Mapping[str, torch.Tensor],
    mean: Tensors,
    clients: int,
) -> Aggregate:
    """Step by the change of B that clients ask for, however it was agreed on, and re-factor each pair."""
    changes, new_state = optimizer.step(state, mean)
    new: Tensors = {}
    for b_name in [name for name in changes if B in name]:
        a_name = b_name.replace(B, A)
        b = adapter[b_name].to(torch.float64) + changes.pop(b_name)
        new[b_name], new[a_name], rotation = refactor(b, adapter[a_name].to(torch.float64))
        optimizer.rotate(new_state, b_name, rotation)
    rest = moved({name: tensor for name, tensor in adapter.items() if name not in new}, changes)
    return Aggregate({**{name: tensor.to(torch.float32) for name, tensor in new.items()}, **rest}, new_state, clients)


def refactor(b: torch.Tensor, a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (B', A', R) with ``B' A' == B A``, the rows of A' orthonormal, ``A' == R Q`` for A's rows Q.

    Rows of A' come in the order of the singular values of B A; signs are fixed (the largest entry of each row of R is
    positive), so equal inputs give equal bytes. With B = 0, A is only made orthonormal.

    Parameters
    ----------
    b
        float64 [out, r].
    a
        float64 [r, in].
    """
    q, triangle = torch.linalg.qr(a.T)
    signs = torch.where(torch.diagonal(triangle) < 0, -1.0, 1.0).to(a.dtype)
    rows, mixed = (q * signs).T, b @ (triangle.T * signs)
    if not bool(mixed.abs().max() > 0):
        return mixed, rows, torch.eye(len(rows), dtype=a.dtype, device=a.device)
    left, values, right = torch.linalg.svd(mixed, full_matrices=False)
    largest = right.gather(1, right.abs().argmax(dim=1, keepdim=True))
    flips = torch.where(largest < 0, -1.0, 1.0).to(a.dtype)
    right = right * flips
    # in rows, as it comes back from disk: products of another layout may round another way
    return (left * values * flips.T).contiguous(), right @ rows, right
