"""FedEx: clients train A and B, and the server keeps mean(B_i A_i) itself, not mean(B_i) mean(A_i).

The paper adds the residual mean(B_i A_i) - mean(B_i) mean(A_i) to the frozen base weights of every client (Singhal et
al., ACL 2025, arXiv 2410.09432). Here base weights are shared and named by their hash, and what is served is an adapter
of a fixed rank, so the residual lives elsewhere:

- The **exact result** is ``B A + residual``: the adapter, plus a dense residual for each pair in the strategy's state.
  `exact_adapter` returns it as one adapter of a larger rank, without loss.
- The **adapter**, which clients get and which is served, is the best one of its rank (Eckart and Young); what was left
  out is the residual, added again in the next round. Its share of the exact result is in the state as ``truncation/``:
  clients do not see that part, so they learn from a model that is off by it.

With an optimiser, the step is taken on the mean change of the product. Under DP both A and B carry noise, which enters
squared, so this is a strategy for training without it. It needs each update by itself, one at a time; memory does not
grow with the cohort, but holds out x in numbers for each pair.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import SupportsFloat

import numpy as np
import torch

from common.updates import AdapterUpdate
from server.aggregate.base import NO_STATE, Aggregate, Optimizer, RowAdam, Tensors, mean_update, moved, one_thread
from server.aggregate.layout import A, B, widen

LOSSLESS = 1e-12
"""Singular values below this share of the largest are rounding errors of float64."""


@dataclass(frozen=True, slots=True)
class FedEx:
    """The exact mean of the products, served at a fixed rank, with the rest carried on.

    Parameters
    ----------
    optimizer
        What turns the mean change of B A into a step.
    """

    optimizer: Optimizer = field(default_factory=RowAdam)
    name: str = "fedex"

    def trained(self, names: Iterable[str], state: Mapping[str, SupportsFloat] = NO_STATE) -> tuple[str, ...]:
        """Clients train every adapter tensor."""
        return tuple(sorted(names))

    @one_thread()
    def aggregate(
        self, adapter: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor], updates: Iterable[AdapterUpdate]
    ) -> Aggregate:
        """Average the products exactly, step, and fold each into the adapter's rank."""
        products = _Products(adapter)
        mean, clients = mean_update(products.watch(updates), adapter, products.rest)
        asked = {**mean, **products.mean_changes(clients)}
        ranks = {b_name: adapter[b_name].shape[1] for b_name in products.sums}
        changes, stepped = self.optimizer.step(_optimizer_state(state), asked, ranks)
        new_state: Tensors = dict(stepped)
        new: Tensors = {}
        for b_name in products.sums:
            a_name = b_name.replace(B, A)
            exact = _product(adapter, state, b_name) + changes.pop(b_name)
            new[b_name], new[a_name] = best_of_rank(exact, adapter[a_name].to(torch.float64))
            residual = exact - new[b_name].to(torch.float64) @ new[a_name].to(torch.float64)
            new_state[f"residual/{b_name}"] = residual
            new_state[f"truncation/{b_name}"] = residual.norm() / exact.norm().clamp_min(torch.finfo(exact.dtype).tiny)
        rest = moved({name: tensor for name, tensor in adapter.items() if name not in new}, changes)
        return Aggregate({**new, **rest}, new_state, clients)


class _Products:
    """The sum over clients of the change of each B A."""

    def __init__(self, adapter: Mapping[str, torch.Tensor]) -> None:
        self._pairs = {name: name.replace(B, A) for name in sorted(adapter) if B in name}
        self._base = {name: adapter[name].to(torch.float64) for pair in self._pairs.items() for name in pair}
        self._a_sums = {a_name: torch.zeros_like(self._base[a_name]) for a_name in self._pairs.values()}
        self.rest = [name for name in adapter if name not in self._base]
        self.sums = {
            b_name: torch.zeros(
                (len(self._base[b_name]), self._base[a_name].shape[1]),
                dtype=torch.float64,
                device=self._base[b_name].device,
            )
            for b_name, a_name in self._pairs.items()
        }

    def watch(self, updates: Iterable[AdapterUpdate]) -> Iterable[AdapterUpdate]:
        """Add up the updates while they pass."""
        for update in updates:
            for b_name, a_name in self._pairs.items():
                a_change = self._change(a_name, update)
                self._a_sums[a_name] += a_change
                self.sums[b_name].addmm_(self._change(b_name, update), self._base[a_name] + a_change)
            yield update

    def _change(self, name: str, update: AdapterUpdate) -> torch.Tensor:
        base = self._base[name]
        # zeros where the client's rank is smaller: it left that part as it was
        return torch.from_numpy(widen(name, update.arrays[name], tuple(base.shape)).astype(np.float64)).to(base.device)

    def mean_changes(self, clients: int) -> Tensors:
        """Return the mean of (B + dB_i)(A + dA_i) - B A = dB_i (A + dA_i) + B dA_i, float64 [out, in] by name of B."""
        return {
            b_name: torch.addmm(total, self._base[b_name], self._a_sums[self._pairs[b_name]]) / max(clients, 1)
            for b_name, total in self.sums.items()
        }


def best_of_rank(product: torch.Tensor, fallback: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (B, A) of rank r, float32, whose product is nearest to `product`; the rows of A are orthonormal.

    Parameters
    ----------
    product
        float64 [out, in].
    fallback
        float64 [r, in]. Where the product has a smaller rank than r, A goes on with directions of these rows, and B has
        zeros, so that clients can still learn there.
    """
    rank = len(fallback)
    left, values, right = torch.linalg.svd(product, full_matrices=False)
    kept = min(rank, _numerical_rank(values))
    signs = _signs(right[:kept])
    rows = right[:kept] * signs
    b = torch.zeros((len(product), rank), dtype=product.dtype, device=product.device)
    b[:, :kept] = left[:, :kept] * values[:kept] * signs.T
    if kept < rank:
        # the directions of the fallback that are not there yet, the strongest first
        free = torch.linalg.svd(fallback - fallback @ rows.T @ rows, full_matrices=False)[2][: rank - kept]
        rows = torch.cat([rows, free * _signs(free)])
    # in rows, as it comes back from disk: products of another layout may round another way
    return b.to(torch.float32), rows.to(torch.float32).contiguous()


def exact_adapter(result: Aggregate) -> Tensors:
    """Return the exact result of FedEx as one adapter, float32, of the smallest rank that loses nothing.

    All pairs get the same rank k, at most the size of the weight; singular values are split evenly. PEFT multiplies B A
    by alpha / rank, so an adapter of rank k needs alpha times k / r to mean the same.
    """
    factors = {}
    for name in sorted(result.adapter):
        if B in name:
            left, values, right = torch.linalg.svd(_product(result.adapter, result.state, name), full_matrices=False)
            factors[name] = left * values.sqrt(), values.sqrt()[:, None] * right, _numerical_rank(values)
    rank = max((needed for _, _, needed in factors.values()), default=0) or 1
    exact = dict(result.adapter)
    for name, (b, a, _) in factors.items():
        exact[name], exact[name.replace(B, A)] = b[:, :rank].to(torch.float32).contiguous(), a[:rank].to(torch.float32)
    return exact


def _product(adapter: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor], b_name: str) -> torch.Tensor:
    """Return B A with the residual that is carried, float64 [out, in]."""
    product = adapter[b_name].to(torch.float64) @ adapter[b_name.replace(B, A)].to(torch.float64)
    residual = state.get(f"residual/{b_name}")
    return product if residual is None else product + residual


def _numerical_rank(values: torch.Tensor) -> int:
    """Return how many singular values are more than rounding errors."""
    return int((values > LOSSLESS * values.max()).sum())


def _signs(rows: torch.Tensor) -> torch.Tensor:
    """Return what makes the largest entry of each row positive, [k, 1]."""
    largest = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True))
    return torch.where(largest < 0, -1.0, 1.0).to(rows.dtype)


def _optimizer_state(state: Mapping[str, torch.Tensor]) -> Tensors:
    return {key: value for key, value in state.items() if not key.startswith(("residual/", "truncation/"))}
