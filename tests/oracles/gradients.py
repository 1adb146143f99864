"""The obvious per-record gradient: one record at a time, no hooks, no cache, no grouping."""

from collections.abc import Sequence

import numpy as np
import torch

from client.dataset import Record
from client.objective import RECENCY
from common.encoder.adapter import TextEncoder
from common.encoder.texts import pad_tokens


def record_loss_slowly(vectors: torch.Tensor, clicks: int, temperature: float) -> torch.Tensor:
    """Return the loss of one record: the first `clicks` rows are its window, the rest its negatives."""
    window, negatives = vectors[:clicks], vectors[clicks:]
    losses = []
    for position in range(1, clicks):
        interest = torch.zeros_like(window[0])
        for age in range(position):
            interest = interest + float(np.exp(-age / RECENCY)) * window[position - 1 - age]
        interest = interest / interest.norm()
        scores = [interest @ window[position]] + [interest @ wrong for wrong in negatives]
        losses.append(-torch.log_softmax(torch.stack(scores) / temperature, dim=0)[0])
    return torch.stack(losses).mean()


def gradients_one_by_one(
    encoder: TextEncoder,
    parameters: Sequence[torch.nn.Parameter],
    texts: Sequence[str],
    records: Sequence[Record],
    temperature: float,
) -> list[list[torch.Tensor]]:
    """Return for each record the gradient of each parameter."""
    gradients = []
    for record in records:
        rows = [*record.window, *record.negatives]
        ids, mask = pad_tokens(encoder.tokenize([texts[row] for row in rows]), encoder.device)
        vectors = encoder.upper(encoder.lower(ids, mask), mask)
        loss = record_loss_slowly(vectors, len(record.window), temperature)
        gradients.append([g.detach() for g in torch.autograd.grad(loss, list(parameters))])
    return gradients
