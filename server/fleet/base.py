"""The port to the clients: requests out, replies in, whatever carries them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from common.instructions import TrainRequest
from common.updates import AdapterUpdate


@dataclass(frozen=True, slots=True)
class Failure:
    """A node that did not answer with an update, and why; `asked` tells whether anything went to it."""

    node: int
    reason: str
    asked: bool = True


@dataclass(frozen=True, slots=True)
class Reply:
    """One node's answer.

    Parameters
    ----------
    node
        Which one.
    outcome
        The update as it came, in 8 bits perhaps, or why there is none.
    received_bytes, sent_bytes
        Of the arrays that came from the node and that went to it, as they travel.
    """

    node: int
    outcome: AdapterUpdate | Failure
    received_bytes: int = 0
    sent_bytes: int = 0


@dataclass(frozen=True, slots=True)
class RawReply:
    """One node's answer to a question of a secret sum, as the bytes it sent; `sent_bytes` went to it."""

    node: int
    outcome: bytes | Failure
    sent_bytes: int = 0

    @property
    def received_bytes(self) -> int:
        """How long the answer is."""
        return len(self.outcome) if isinstance(self.outcome, bytes) else 0


Arrival = TypeVar("Arrival", Reply, RawReply)
Answered = Callable[[int], None]
"""Called with the number of replies so far."""


class Errands(Protocol):
    """Nodes that are asked one at a time, each from the adapter of the moment; replies come in any order."""

    def reachable(self, nodes: Iterable[int]) -> frozenset[int]:
        """Return those of the nodes that are connected now."""

    def send(
        self, number: int, node: int, request: TrainRequest, adapter: Mapping[str, np.ndarray], *, timeout_s: float
    ) -> None:
        """Ask a node to train from `adapter`; its reply comes under the errand's number.

        A node that is silent past `timeout_s` gives a `Failure`.
        """

    def arrived(self) -> Sequence[tuple[int, Reply]]:
        """Return (errand, reply) of what has come since the last call; none after a short wait."""


class Fleet(Protocol):
    """Nodes that can be asked to train."""

    def nodes(self) -> tuple[int, ...]:
        """Return the ids of the nodes that are there, sorted."""

    def train(
        self,
        requests: Mapping[int, TrainRequest],
        adapter: Mapping[str, np.ndarray],
        *,
        timeout_s: float,
        answered: Answered,
    ) -> Iterator[Reply]:
        """Ask nodes to train from `adapter` and yield one reply a request, in the order of the node ids.

        A node that is silent past `timeout_s` gives a `Failure`. The order does not depend on who was first, so sums
        over the replies are the same in every run.
        """

    def errands(self) -> Errands:
        """Return a way to ask nodes one at a time."""

    def ask(
        self,
        questions: Mapping[int, bytes],
        adapter: Mapping[str, np.ndarray] | None,
        *,
        group: str,
        timeout_s: float,
        answered: Answered,
    ) -> Iterator[RawReply]:
        """Ask nodes one stage of a secret sum, with the adapter where they are to train from it.

        One reply a question, in the order of the node ids; silence past `timeout_s` gives a `Failure`.
        """


def in_order(nodes: Sequence[int], arriving: Iterator[Arrival]) -> Iterator[Arrival]:
    """Yield replies in the order of `nodes`, keeping back those that come early."""
    early: dict[int, Arrival] = {}
    waiting = iter(nodes)
    wanted = next(waiting, None)
    for reply in arriving:
        early[reply.node] = reply
        while wanted is not None and wanted in early:
            yield early.pop(wanted)
            wanted = next(waiting, None)
