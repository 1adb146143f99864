"""Rules that bear a share of hostile or broken updates: median, trimmed mean, Krum, Multi-Krum.

Clients train B alone and the result is re-factored as in FedSVD; only how many changes of B become one differs. These
rules compare the updates with each other, so they need **all of them at once**: memory grows with the cohort, and they
cannot run where the server sees only a sum.

- `median`, `trimmed_mean`: each coordinate by itself (Yin et al., ICML 2018, arXiv 1803.01498). With fewer bad updates
  than half (median), or than are cut at each end (trimmed mean), each coordinate of the result lies within the range of
  the honest ones.
- `krum`, `multi_krum`: the update nearest to its n - f - 2 nearest others, or the mean of the n - f such (Blanchard et
  al., NeurIPS 2017). Proven for n >= 2 f + 3; with a smaller cohort f is lowered to what it can bear.

None of them is free: they throw honest information away, so without attackers the mean learns faster, and where honest
clients differ much they favour the majority. Noise of DP is bounded by none of this; it passes like any update.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import SupportsFloat

import numpy as np
import torch

from common.errors import InvalidSetting, UpdateRejected
from common.updates import AdapterUpdate
from server.aggregate.base import NO_STATE, Aggregate, Optimizer, RowAdam, one_thread
from server.aggregate.fedsvd import refactored_step
from server.aggregate.layout import A, Layout

ROUNDING = 1e-9
"""So that three tenths of ten are three clients, not four."""

Rule = Callable[[torch.Tensor, int], torch.Tensor]
"""From updates [n, d] and the number of bad ones to bear, to one update, float64 [d]; n >= 1."""


def median(updates: torch.Tensor, bad: int) -> torch.Tensor:
    """Return the middle of each coordinate (of an even number, the mean of the two middle ones), whatever `bad` is."""
    count = len(updates)
    return _ordered(updates)[:, (count - 1) // 2 : count // 2 + 1].mean(dim=1, dtype=torch.float64)


def trimmed_mean(updates: torch.Tensor, bad: int) -> torch.Tensor:
    """Return the mean of each coordinate without its `bad` least and `bad` greatest (fewer where too few remain)."""
    count = len(updates)
    cut = min(bad, (count - 1) // 2)
    return _ordered(updates)[:, cut : count - cut].mean(dim=1, dtype=torch.float64)


def _ordered(updates: torch.Tensor) -> torch.Tensor:
    """Return each coordinate's values from least to greatest, NaN last: [d, n]."""
    columns = updates.T.contiguous()
    if columns.device.type != "cpu":
        return columns.sort(dim=1).values
    return torch.from_numpy(np.sort(columns.numpy(), axis=1))  # a quarter of the time of torch's on a processor


def krum(updates: torch.Tensor, bad: int) -> torch.Tensor:
    """Return the update that is nearest to its neighbours."""
    return updates[_by_closeness(updates, bad)[0]].to(torch.float64)


def multi_krum(updates: torch.Tensor, bad: int) -> torch.Tensor:
    """Return the mean of the n - f updates that are nearest to their neighbours."""
    chosen = _by_closeness(updates, bad)[: len(updates) - _bearable(len(updates), bad)]
    return updates[chosen.sort().values].mean(dim=0, dtype=torch.float64)


def _bearable(count: int, bad: int) -> int:
    """Return f: `bad`, or as many as Krum can bear among `count`."""
    return max(0, min(bad, (count - 3) // 2))


def _by_closeness(updates: torch.Tensor, bad: int) -> torch.Tensor:
    """Return the positions by rising sum of squared distances to the n - f - 2 nearest others, ties in their order."""
    count = len(updates)
    neighbours = max(1, count - _bearable(count, bad) - 2)
    rows = updates.to(torch.float64)
    squares = rows.square().sum(dim=1)
    # not centred: the centre would be where a huge update drags it, and honest distances would drown in its rounding
    distances = (squares[:, None] + squares[None, :] - 2 * rows @ rows.T).clamp_min(0)
    distances.fill_diagonal_(0.0)
    # its distance to itself comes first and adds nothing
    scores = distances.sort(dim=1).values[:, : neighbours + 1].sum(dim=1)
    return scores.sort(stable=True).indices


RULES: Mapping[str, Rule] = MappingProxyType(
    {"median": median, "trimmed-mean": trimmed_mean, "krum": krum, "multi-krum": multi_krum}
)


@dataclass(frozen=True, slots=True)
class Robust:
    """B-only training, one of `RULES`, SVD re-factoring.

    Parameters
    ----------
    optimizer
        What turns the agreed update into a step.
    name
        Of the rule.
    bad_share
        Share of a cohort that may be bad, below one half; rounded up to whole clients.
    """

    optimizer: Optimizer = field(default_factory=RowAdam)
    name: str = "median"
    bad_share: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.bad_share < 0.5:
            raise InvalidSetting(
                f"a share of {self.bad_share} bad clients", expected="from 0 to less than one half: no rule bears more"
            )

    def trained(self, names: Iterable[str], state: Mapping[str, SupportsFloat] = NO_STATE) -> tuple[str, ...]:
        """Clients train everything but the A matrices."""
        return tuple(sorted(name for name in names if A not in name))

    @one_thread()
    def aggregate(
        self, adapter: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor], updates: Iterable[AdapterUpdate]
    ) -> Aggregate:
        """Hold all updates, let the rule make one of them, step, and re-factor each pair.

        Raises
        ------
        UpdateRejected
            For an update of a smaller rank: the rules compare like with like.
        """
        layout = Layout.of(adapter, self.trained(adapter))
        rows = [_row(layout, update, self.name) for update in updates]
        device = next((tensor.device for tensor in adapter.values()), torch.device("cpu"))
        if rows:
            stacked = torch.from_numpy(np.stack(rows)).to(device)
            agreed = RULES[self.name](stacked, math.ceil(self.bad_share * len(rows) - ROUNDING))
        else:
            agreed = torch.zeros(layout.size, dtype=torch.float64, device=device)
        return refactored_step(self.optimizer, adapter, state, layout.split(agreed), len(rows))


def _row(layout: Layout, update: AdapterUpdate, rule: str) -> np.ndarray:
    row = np.empty(layout.size, dtype=np.float32)
    if narrow := layout.fill(row, update.arrays):
        raise UpdateRejected(
            f"an update of rank {min(narrow.values())} under {rule!r}",
            expected="the full rank",
            mend="use fedsvd, ffa, rolora or fedit for clients of several ranks",
        )
    return row
