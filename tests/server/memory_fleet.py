"""A fleet in memory: the real port, nodes that are plain functions of what they are asked."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from common.ids import rng_for
from common.instructions import TrainRequest
from common.privacy import PrivacySpend
from common.updates import AdapterUpdate, UpdateMeta
from server.fleet.base import Answered, Failure, Reply

Behaviour = Callable[[Reply], list[Reply]]
"""What a bad node makes of the honest reply it could have given."""


def honest(node: int, request: TrainRequest, adapter: Mapping[str, np.ndarray]) -> AdapterUpdate:
    """Return an update that depends on node, round and adapter alone, with an epsilon that grows by rounds."""
    rng = rng_for("honest", node, request.round)
    arrays = {
        name: (0.1 * rng.standard_normal(adapter[name].shape) - 0.05 * adapter[name]).astype(np.float32)
        for name in request.trained
    }
    private = request.privacy.unit != "off"
    steps = ((1.0, request.privacy.sample_rate, request.objective.local_steps),)
    meta = UpdateMeta(
        client=f"client-{node}",
        base_version=request.base_version,
        strategy=request.strategy,
        round=request.round,
        examples=1.0,
        privacy=PrivacySpend(request.privacy.unit, request.privacy.delta, steps) if private else None,
        epsilon=0.1 * request.round + 0.001 * node if private else None,
        metrics={} if private else {"loss": 1.0 / request.round},
    )
    return AdapterUpdate(meta, arrays)


@dataclass
class MemoryFleet:
    """Nodes 1 to `count`.

    Parameters
    ----------
    count
        How many.
    bad
        (round, node) to what it does instead of answering well.
    asked
        Every request that came, in order.
    """

    count: int
    bad: Mapping[tuple[int, int], Behaviour] = field(default_factory=dict)
    asked: list[TrainRequest] = field(default_factory=list)

    def nodes(self) -> tuple[int, ...]:
        return tuple(range(1, self.count + 1))

    def train(
        self,
        requests: Mapping[int, TrainRequest],
        adapter: Mapping[str, np.ndarray],
        *,
        timeout_s: float,
        answered: Answered,
    ) -> Iterator[Reply]:
        for number, node in enumerate(sorted(requests), start=1):
            request = requests[node]
            self.asked.append(request)
            update = honest(node, request, adapter)
            reply = Reply(node, update, sum(array.nbytes for array in update.arrays.values()))
            answered(number)
            yield from self.bad[request.round, node](reply) if (request.round, node) in self.bad else [reply]


def silent(reply: Reply) -> list[Reply]:
    return [Reply(reply.node, Failure(reply.node, "no reply within 600 s"))]


def twice(reply: Reply) -> list[Reply]:
    return [reply, reply]


def changed(**changes: object) -> Behaviour:
    """Return a node that lies about its meta data."""

    def lie(reply: Reply) -> list[Reply]:
        assert isinstance(reply.outcome, AdapterUpdate)
        meta = replace(reply.outcome.meta, **changes)  # type: ignore[arg-type]  # by name
        return [replace(reply, outcome=replace(reply.outcome, meta=meta))]

    return lie


def filled(value: float) -> Behaviour:
    """Return a node that sends one number everywhere."""

    def spoil(reply: Reply) -> list[Reply]:
        assert isinstance(reply.outcome, AdapterUpdate)
        arrays = {name: np.full_like(array, value) for name, array in reply.outcome.arrays.items()}
        return [replace(reply, outcome=replace(reply.outcome, arrays=arrays))]

    return spoil
