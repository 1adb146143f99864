"""Local training: from a base adapter and a node's data to a change of the adapter."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from client.continual import Anchor
from client.dataset import NodeData, Record
from client.dp import PrivateStep, RecordHooks
from client.objective import flatten, record_losses
from common.encoder.adapter import TextEncoder
from common.encoder.cache import HiddenCache
from common.encoder.device import Batches, repeatable
from common.ids import rng_for, stable_hash
from common.privacy import PrivacyUnit

HALF_PRECISION_DEVICES = ("cuda",)
RECORDS_A_PASS, GPU_RECORDS_A_PASS = 16, 64
TEXTS_A_FORWARD, GPU_TEXTS_A_FORWARD = 96, 2048
"""Texts sorted by length go through in groups this big: wide enough for the cores, narrow enough to pad little. A GPU
needs more of both, or it waits for the next."""


@dataclass(frozen=True, slots=True)
class TrainPlan:
    """What one node is to do in one round.

    Parameters
    ----------
    trained
        Names of the adapter tensors to train (B alone, or A and B).
    unit
        The privacy unit.
    sample_rate
        q: each record takes part in a step with this probability.
    local_steps
        Steps a round.
    noise_multiplier
        Sigma; 0 with unit "off".
    clip
        C. Applied with unit "off" too, so that only the noise differs.
    window, negatives, temperature
        Of the objective.
    learning_rate
        Of the local gradient steps.
    seed
        Seed of windows, negatives, sampling and noise, already specific to node and round.
    undivided
        Answer with the sum over the records of the one step, not with the mean: it is then one step over all nodes.
    anchor
        Strength of the pull towards the base adapter after each step.
    replay
        Share of older windows; see `NodeData.population`.
    """

    trained: tuple[str, ...]
    unit: PrivacyUnit
    sample_rate: float
    local_steps: int
    noise_multiplier: float
    clip: float
    window: int
    negatives: int
    temperature: float
    learning_rate: float
    seed: int
    undivided: bool = False
    anchor: float = 0.0
    replay: float = 0.0


@dataclass(frozen=True, slots=True)
class Trained:
    """What came out: the change of each trained tensor, the mean loss seen, and the expected records a step.

    An undivided change is as many times larger as there are expected records.
    """

    arrays: Mapping[str, np.ndarray]
    loss: float
    expected_records: float


def train(
    plan: TrainPlan, base: Mapping[str, np.ndarray], data: NodeData, encoder: TextEncoder, cache: HiddenCache
) -> Trained:
    """Train from `base` and return the change.

    Parameters
    ----------
    plan
        What to do.
    base
        The whole global adapter, float32, named as in PEFT's file, or what a node of a smaller rank holds of it.
    data
        The node's own clicks.
    encoder
        Built once a process; the adapter is written into it.
    cache
        Hidden states of the catalogue's texts.

    Raises
    ------
    OutOfMemory
        When half of the records that should go through at once do not fit the device either.
    """
    with repeatable(encoder.device):
        return _train(plan, base, data, encoder, cache)


def _train(
    plan: TrainPlan, base: Mapping[str, np.ndarray], data: NodeData, encoder: TextEncoder, cache: HiddenCache
) -> Trained:
    encoder.hold(base)
    parameters = encoder.trainable(plan.trained)
    population = data.population(plan.unit, plan.window, plan.replay)
    expected = population.expected(plan.sample_rate)
    anchor = Anchor(list(parameters.values()), plan.anchor, plan.learning_rate) if plan.anchor else None
    hooks = RecordHooks(encoder.peft)
    try:
        step = PrivateStep(
            list(parameters.values()),
            hooks,
            learning_rate=plan.learning_rate,
            noise_multiplier=plan.noise_multiplier,
            clip=plan.clip,
            expected_records=1.0 if plan.undivided else expected,
            generator=torch.Generator(device=encoder.device).manual_seed(stable_hash("noise", plan.seed) % 2**63),
        )
        rng = rng_for("records", plan.seed)
        batches = _passes(encoder.device)
        losses: list[torch.Tensor] = []
        sums: list[torch.Tensor] = []
        for _ in range(plan.local_steps):
            records = population.draw(plan.sample_rate, plan.negatives, rng)

            def gradients(batch: slice, records: list[Record] = records) -> torch.Tensor:
                return _backward(records[batch], plan, encoder, cache, hooks)

            for found in batches.over(len(records), gradients):
                losses.append(found)
                step.accumulate()  # not in what may be done again: a record must not be added twice
            if plan.undivided:
                sums = step.noised_sum()
            else:
                step.finish()
            if anchor is not None:
                anchor.pull()
    finally:
        hooks.remove_hooks()
        encoder.set_rank(encoder.spec.rank)
    if plan.undivided:
        arrays = {name: _array(-plan.learning_rate * total) for name, total in zip(parameters, sums, strict=True)}
    else:
        arrays = {name: _array(parameter) - base[name] for name, parameter in parameters.items()}
    return Trained(arrays, float(torch.cat(losses).double().mean()) if losses else 0.0, expected)


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy().astype(np.float32)


def losses_of(
    records: list[Record],
    temperature: float,
    encoder: TextEncoder,
    cache: HiddenCache,
    hooks: RecordHooks | None = None,
) -> torch.Tensor:
    """Run the forward pass of some records and return their losses, float32 [records].

    Parameters
    ----------
    records
        At least one.
    temperature
        Of the objective.
    encoder, cache
        The adapter is the encoder's.
    hooks
        Given to tell the records' gradients apart; without them a backward pass gives their sum, as anywhere else.
    """
    batch = flatten(records)
    if hooks is not None:
        hooks.begin(len(records))
    order = np.argsort(cache.lengths[batch.rows], kind="stable")
    rows = batch.rows[order]
    owner, back = (
        torch.from_numpy(each).to(encoder.device, non_blocking=True)
        for each in (batch.record[order], np.argsort(order))
    )
    width = GPU_TEXTS_A_FORWARD if encoder.device.type == "cuda" else TEXTS_A_FORWARD
    pieces = []
    for start in range(0, len(order), width):
        if hooks is not None:
            hooks.owner = owner[start : start + width]
        with _half_precision(encoder.device):
            pieces.append(encoder.upper(*cache.batch(rows[start : start + width], encoder.device)))
    return record_losses(torch.cat(pieces)[back], batch, temperature)


def _passes(device: torch.device) -> Batches:
    """Return what cuts a step's records into passes; how they are cut changes a sum in its last digits alone."""
    return Batches(GPU_RECORDS_A_PASS if device.type == "cuda" else RECORDS_A_PASS, "records to train on")


def _half_precision(device: torch.device) -> AbstractContextManager[object]:
    """Let matrix products run in bfloat16 where that is quicker; weights, sums and gradients stay in float32."""
    if device.type not in HALF_PRECISION_DEVICES:
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def _backward(
    records: list[Record], plan: TrainPlan, encoder: TextEncoder, cache: HiddenCache, hooks: RecordHooks
) -> torch.Tensor:
    """Leave each record's gradient in the parameters' ``grad_sample`` and return the losses, float32 [records]."""
    losses = losses_of(records, plan.temperature, encoder, cache, hooks)
    hooks.backward(losses)
    return losses.detach()


def record_gradients(
    plan: TrainPlan, base: Mapping[str, np.ndarray], records: list[Record], encoder: TextEncoder, cache: HiddenCache
) -> np.ndarray:
    """Return what each record adds to a step's sum at `base`: minus its clipped gradient, float32 [records, d].

    No noise is in it, so it must not leave the node: it is for audits. The d numbers are the trained tensors, in the
    order of their names, each flat.
    """
    encoder.set_adapter(base)
    parameters: list[Any] = list(encoder.trainable(plan.trained).values())  # Opacus adds attributes
    hooks = RecordHooks(encoder.peft)
    rows = []
    try:
        for start in range(0, len(records), RECORDS_A_PASS):
            _backward(records[start : start + RECORDS_A_PASS], plan, encoder, cache, hooks)
            rows.append(torch.cat([each.grad_sample.flatten(1) for each in parameters], dim=1).cpu())
            for parameter in parameters:
                parameter.grad, parameter.grad_sample = None, None
    finally:
        hooks.remove_hooks()
    gradients = torch.cat(rows)
    factors = (plan.clip / gradients.norm(dim=1, keepdim=True).clamp_min(1e-12)).clamp_max(1.0)
    return np.asarray((-plan.learning_rate * factors * gradients).numpy(), dtype=np.float32)
