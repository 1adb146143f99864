"""What comes back in a round: usable updates, failures and quarantine, and the record of it."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from common.errors import BudgetExceeded, UpdateRejected
from common.instructions import TrainRequest
from common.privacy import PrivacySpend
from common.updates import AdapterUpdate, UpdateMeta
from server.fleet.base import Failure, Fleet
from server.validate import validate, validate_meta


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A reply that was refused, and why."""

    client: str
    round: int
    reason: str


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """What happened in one round.

    Parameters
    ----------
    round
        From 1.
    planned, replied
        Nodes asked, and usable updates.
    failed
        Node id (as text) to reason.
    quarantined
        Refused replies.
    epsilon
        The largest that a client reported after this round, composed over its ledger; None without DP.
    reply_bytes
        Of all updates together.
    seconds
        ``train`` (waiting for nodes, with summing) and ``aggregate``.
    loss
        Mean training loss; None under DP, where nodes do not tell it.
    spend
        What the round cost every node whether it was asked or not, where cohorts are drawn by chance.
    """

    round: int
    planned: int
    replied: int
    failed: Mapping[str, str]
    quarantined: tuple[Quarantined, ...]
    epsilon: float | None
    reply_bytes: int
    seconds: Mapping[str, float]
    loss: float | None
    spend: PrivacySpend | None = None


class Intake:
    """Replies of one round, sorted into usable updates, failures and quarantine."""

    def __init__(
        self,
        number: int,
        requests: Mapping[int, TrainRequest],
        adapter: Mapping[str, np.ndarray],
        fleet: Fleet,
        timeout_s: float,
    ) -> None:
        self.number, self._requests, self._adapter = number, requests, adapter
        self._fleet, self._timeout_s = fleet, timeout_s
        self.failed: dict[str, str] = {}
        self.quarantined: list[Quarantined] = []
        self._heard: set[int] = set()
        self._epsilons: list[float] = []
        self._losses: list[float] = []
        self._bytes = 0
        self.waiting = 0.0
        self.examples = 0.0

    def updates(self, answered: Callable[[int], None]) -> Iterator[AdapterUpdate]:
        """Yield the usable updates in the order of the node ids."""
        replies = self._fleet.train(self._requests, self._adapter, timeout_s=self._timeout_s, answered=answered)
        while True:
            asked = time.monotonic()
            reply = next(replies, None)
            self.waiting += time.monotonic() - asked
            if reply is None:
                return
            if isinstance(reply.outcome, Failure):
                self.fail(reply.node, reply.outcome.reason)
            elif self._accept(reply.node, reply.outcome, reply.received_bytes):
                yield reply.outcome

    def fail(self, node: int, reason: str) -> None:
        """Keep why a node sent no usable update; the first reason counts."""
        self.failed.setdefault(str(node), reason)

    def _accept(self, node: int, update: AdapterUpdate, received: int) -> bool:
        def check() -> None:
            validate(update, self._requests[node], self._adapter, smaller_ranks=True)

        return self._keep(node, update.meta, received, check)

    def accept_masked(self, node: int, meta: UpdateMeta, received: int, expected: int) -> bool:
        """Tell whether a masked update is usable; of what it holds no more can be seen than how long it is."""

        def check() -> None:
            validate_meta(meta, self._requests[node])
            if received != expected:
                raise UpdateRejected(f"a masked update of {received} bytes", expected=f"{expected}")

        return self._keep(node, meta, received, check)

    def _keep(self, node: int, meta: UpdateMeta, received: int, check: Callable[[], None]) -> bool:
        """Tell whether an update is usable, and keep its public side; one that is not goes to quarantine."""
        try:
            check()
            # by node, which the transport vouches for; the client's name is its own word and could be another's
            if node in self._heard:
                raise UpdateRejected(f"a second update of node {node}", expected="one a round")
        except UpdateRejected as error:
            self.quarantined.append(Quarantined(meta.client, self.number, str(error)))
            return False
        self._heard.add(node)
        self._bytes += received
        self.examples += meta.examples
        if meta.epsilon is not None:
            self._epsilons.append(meta.epsilon)
        if "loss" in meta.metrics:
            self._losses.append(meta.metrics["loss"])
        return True

    @property
    def usable(self) -> int:
        """How many updates were usable."""
        return len(self._heard)

    def over_budget(self) -> list[str]:
        """Return the nodes that refused for their budget: whatever carries a reply, its reason names the error."""
        return [node for node, reason in self.failed.items() if BudgetExceeded.__name__ in reason]

    def first_reason(self) -> str:
        """Return why the first reply was no use, as the end of a sentence; empty when all were."""
        reasons = [*self.failed.values(), *(each.reason for each in self.quarantined)]
        return f"; the first reason: {reasons[0]}" if reasons else ""

    def record(self, seconds: float, spend: PrivacySpend | None, epsilon: float | None) -> RoundRecord:
        """Return what happened in the `seconds` that the round took.

        `spend` is what it cost all nodes alike, and `epsilon` what that comes to with all rounds before.
        """
        epsilons = self._epsilons if epsilon is None else [*self._epsilons, epsilon]
        return RoundRecord(
            round=self.number,
            planned=len(self._requests),
            replied=self.usable,
            failed=self.failed,
            quarantined=tuple(self.quarantined),
            epsilon=max(epsilons, default=None),
            reply_bytes=self._bytes,
            seconds={"train": self.waiting, "aggregate": seconds - self.waiting},
            loss=float(np.mean(self._losses)) if self._losses else None,
            spend=spend,
        )
