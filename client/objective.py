"""The loss of next-click prediction, one number a record, each from its own record alone.

At each position t >= 1 of a window, the interest from the clicks before it, ``sum_d exp(-d / tau) v_{t-1-d}`` brought
to unit length, must score click t above the record's own negatives: softmax cross-entropy over the click and the
negatives, at a temperature. One encoding of the window serves all its positions.
"""

from dataclasses import dataclass

import numpy as np
import torch

from client.dataset import Record

RECENCY = 10.0
"""Decay of the interest, in clicks; serving and evaluation use the same."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Records as one flat list of texts, each knowing its record.

    Parameters
    ----------
    rows
        Item row of each text, int64 [t].
    record
        Which record each text belongs to, int64 [t].
    window_slots
        Position of each record's clicks in `rows`, int64 [r, w], 0 where padded.
    window_mask
        bool [r, w].
    negative_slots
        int64 [r, n].
    """

    rows: np.ndarray
    record: np.ndarray
    window_slots: torch.Tensor
    window_mask: torch.Tensor
    negative_slots: torch.Tensor

    def __len__(self) -> int:
        return len(self.window_mask)


def flatten(records: list[Record]) -> Batch:
    """Lay records out as one batch of texts; all records have the same number of negatives."""
    widest = max(len(record.window) for record in records)
    slots = torch.zeros((len(records), widest), dtype=torch.int64)
    mask = torch.zeros((len(records), widest), dtype=torch.bool)
    negatives = torch.zeros((len(records), len(records[0].negatives)), dtype=torch.int64)
    rows, owner, begin = [], [], 0
    for number, record in enumerate(records):
        clicks, wrong = len(record.window), len(record.negatives)
        slots[number, :clicks] = torch.arange(begin, begin + clicks)
        mask[number, :clicks] = True
        negatives[number] = torch.arange(begin + clicks, begin + clicks + wrong)
        rows += [record.window, record.negatives]
        owner.append(np.full(clicks + wrong, number, dtype=np.int64))
        begin += clicks + wrong
    return Batch(np.concatenate(rows), np.concatenate(owner), slots, mask, negatives)


def record_losses(vectors: torch.Tensor, batch: Batch, temperature: float) -> torch.Tensor:
    """Return the loss of each record, float32 [r].

    Parameters
    ----------
    vectors
        Unit rows of the batch's texts, float32 [t, h].
    batch
        As made by `flatten`.
    temperature
        Divides the cosine similarities.
    """
    # what is sent to a GPU need not wait there for the vectors
    mask, slots, others = (
        part.to(vectors.device, non_blocking=True)
        for part in (batch.window_mask, batch.window_slots, batch.negative_slots)
    )
    window, negatives = vectors[slots], vectors[others]
    interest = torch.nn.functional.normalize(_decay(window.shape[1], window.device) @ window, dim=-1)[:, :-1]
    positive = (interest * window[:, 1:]).sum(-1, keepdim=True)
    scores = torch.cat([positive, interest @ negatives.transpose(1, 2)], dim=-1) / temperature
    losses = torch.logsumexp(scores, dim=-1) - scores[..., 0]
    predicted = mask[:, 1:].to(losses.dtype)
    return (losses * predicted).sum(1) / predicted.sum(1)


def _decay(width: int, device: torch.device) -> torch.Tensor:
    """Return [w, w] weights: row t mixes clicks 0..t, newest weighing most."""
    steps = torch.arange(width, dtype=torch.float32, device=device)
    age = steps[:, None] - steps[None, :]
    return torch.exp(-age.clamp_min(0) / RECENCY).tril()
