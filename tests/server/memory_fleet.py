"""A fleet in memory: the real port, nodes that are plain functions of what they are asked."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from client.node import SecretSum
from client.secagg import Participant
from common.errors import AnabranchError
from common.ids import rng_for
from common.instructions import TrainRequest
from common.privacy import PrivacySpend
from common.secret_sum import decode_question
from common.updates import AdapterUpdate, UpdateMeta
from server.fleet.base import Answered, Failure, RawReply, Reply

Behaviour = Callable[[Reply], list[Reply]]
"""What a bad node makes of the honest reply it could have given."""
Spoiler = Callable[[RawReply], RawReply]
"""The same for a stage of a secret sum."""
Update = Callable[[int, TrainRequest, Mapping[str, np.ndarray], SecretSum | None], AdapterUpdate]


def honest(
    node: int, request: TrainRequest, adapter: Mapping[str, np.ndarray], hidden_in: SecretSum | None = None
) -> AdapterUpdate:
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
    folder
        Where nodes keep what lasts between the stages of a secret sum.
    spoiled
        (stage, node) to what it makes of its answer to that stage.
    update
        What a node trains.
    seen
        All that the server got in secret sums: (stage, node, answer).
    """

    count: int
    bad: Mapping[tuple[int, int], Behaviour] = field(default_factory=dict)
    asked: list[TrainRequest] = field(default_factory=list)
    folder: Path = Path()
    spoiled: Mapping[tuple[str, int], Spoiler] = field(default_factory=dict)
    update: Update = honest
    seen: list[tuple[str, int, bytes]] = field(default_factory=list)

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
            update = self.update(node, request, adapter, None)
            reply = Reply(node, update, sum(array.nbytes for array in update.arrays.values()))
            answered(number)
            yield from self.bad[request.round, node](reply) if (request.round, node) in self.bad else [reply]

    def errands(self) -> "MemoryErrands":
        return MemoryErrands(self)

    def ask(
        self,
        questions: Mapping[int, bytes],
        adapter: Mapping[str, np.ndarray] | None,
        *,
        group: str,
        timeout_s: float,
        answered: Answered,
    ) -> Iterator[RawReply]:
        for number, node in enumerate(sorted(questions), start=1):
            stage = type(decode_question(questions[node])).__name__
            try:
                reply = RawReply(node, self._participant(node).answer(questions[node], self._train(node, adapter)))
            except AnabranchError as error:
                reply = RawReply(node, Failure(node, str(error)))
            spoil = self.spoiled.get((stage, node))
            reply = reply if spoil is None else spoil(reply)
            if isinstance(reply.outcome, bytes):
                self.seen.append((stage, node, reply.outcome))
            answered(number)
            yield reply

    def _participant(self, node: int) -> Participant:
        return Participant(node, self.folder / f"node-{node}")

    def _train(
        self, node: int, adapter: Mapping[str, np.ndarray] | None
    ) -> Callable[[TrainRequest, SecretSum], AdapterUpdate]:
        def train(request: TrainRequest, hidden_in: SecretSum) -> AdapterUpdate:
            assert adapter is not None
            self.asked.append(request)
            return self.update(node, request, adapter, hidden_in)

        return train


@dataclass
class MemoryErrands:
    """The fleet's nodes one at a time; every look for replies is a turn, and an answer takes one.

    Parameters
    ----------
    fleet
        Whose nodes they are.
    slow
        Node to the turns that it takes.
    away
        Nodes that are not connected.
    turn
        How often was looked for replies.
    sent
        (errand, node) of all that was asked, in order.
    """

    fleet: MemoryFleet
    slow: Mapping[int, int] = field(default_factory=dict)
    away: frozenset[int] = frozenset()
    turn: int = 0
    sent: list[tuple[int, int]] = field(default_factory=list)
    waiting: list[tuple[int, int, list[Reply]]] = field(default_factory=list)

    def reachable(self, nodes: Iterable[int]) -> frozenset[int]:
        return frozenset(nodes) - self.away

    def send(
        self, number: int, node: int, request: TrainRequest, adapter: Mapping[str, np.ndarray], *, timeout_s: float
    ) -> None:
        self.sent.append((number, node))
        replies = list(self.fleet.train({node: request}, adapter, timeout_s=timeout_s, answered=lambda count: None))
        self.waiting.append((self.turn + self.slow.get(node, 1), number, replies))

    def arrived(self) -> list[tuple[int, Reply]]:
        self.turn += 1
        here = sorted((each for each in self.waiting if each[0] <= self.turn), key=lambda each: each[:2])
        self.waiting = [each for each in self.waiting if each[0] > self.turn]
        return [(number, reply) for _, number, replies in here for reply in replies]


def gone(reply: RawReply) -> RawReply:
    return RawReply(reply.node, Failure(reply.node, "no reply within 600 s"))


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
