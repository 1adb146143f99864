"""What comes back in a round: usable updates, failures and quarantine, and the record of it."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from common.errors import BudgetExceeded, UpdateRejected
from common.instructions import TrainRequest
from common.privacy import PrivacySpend
from common.updates import AdapterUpdate, UpdateMeta
from server.fleet.base import Failure, Fleet, RawReply, Reply
from server.validate import opened, validate, validate_meta

Checked = TypeVar("Checked")


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
        Of all usable updates together.
    seconds
        ``train`` (waiting for nodes, with summing) and ``aggregate``.
    loss
        Mean training loss; None under DP, where nodes do not tell it.
    spend
        What the round cost every node whether it was asked or not, where cohorts are drawn by chance.
    up_bytes, down_bytes
        Of all that nodes sent and were sent: arrays, and the messages of a secret sum.
    staleness
        Without rounds: of each usable update, how many versions its base was behind.
    moment
        Without rounds, in a simulation: the simulated moment at which the version was there.
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
    up_bytes: int = 0
    down_bytes: int = 0
    staleness: tuple[int, ...] = ()
    moment: float | None = None


class Tally:
    """What came back for one version of the model: who failed, what is in quarantine, and the public side of the rest.

    Parameters
    ----------
    number
        Of the round.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.failed: dict[str, str] = {}
        self.quarantined: list[Quarantined] = []
        self.usable = 0
        self.examples = 0.0
        self._epsilons: list[float] = []
        self._losses: list[float] = []
        self._reply_bytes = self._up = self._down = 0

    def count(self, reply: Reply | RawReply) -> None:
        """Count what travelled to a node and back."""
        self._down += reply.sent_bytes
        self._up += reply.received_bytes

    def fail(self, node: int, reason: str) -> None:
        """Keep why a node sent no usable update; the first reason counts."""
        self.failed.setdefault(str(node), reason)

    def keep(self, meta: UpdateMeta, received: int, check: Callable[[], Checked]) -> Checked | None:
        """Return what `check` makes of an update, and keep its public side; None when it goes to quarantine."""
        try:
            checked = check()
        except UpdateRejected as error:
            self.quarantined.append(Quarantined(meta.client, self.number, str(error)))
            return None
        self.usable += 1
        self._reply_bytes += received
        self.examples += meta.examples
        self.spent(meta)
        if "loss" in meta.metrics:
            self._losses.append(meta.metrics["loss"])
        return checked

    def spent(self, meta: UpdateMeta) -> None:
        """Keep the epsilon that a node reports."""
        if meta.epsilon is not None:
            self._epsilons.append(meta.epsilon)

    def over_budget(self) -> list[str]:
        """Return the nodes that refused for their budget: whatever carries a reply, its reason names the error."""
        return [node for node, reason in self.failed.items() if BudgetExceeded.__name__ in reason]

    def first_reason(self) -> str:
        """Return why the first reply was no use, as the end of a sentence; empty when all were."""
        reasons = [*self.failed.values(), *(each.reason for each in self.quarantined)]
        return f"; the first reason: {reasons[0]}" if reasons else ""

    def record(
        self,
        planned: int,
        seconds: Mapping[str, float],
        spend: PrivacySpend | None = None,
        epsilon: float | None = None,
    ) -> RoundRecord:
        """Return what happened with the `planned` nodes that were asked, in the `seconds` that it took.

        `spend` is what the round cost all nodes alike, and `epsilon` what that comes to with all rounds before.
        """
        epsilons = self._epsilons if epsilon is None else [*self._epsilons, epsilon]
        return RoundRecord(
            round=self.number,
            planned=planned,
            replied=self.usable,
            failed=self.failed,
            quarantined=tuple(self.quarantined),
            epsilon=max(epsilons, default=None),
            reply_bytes=self._reply_bytes,
            seconds=seconds,
            loss=float(np.mean(self._losses)) if self._losses else None,
            spend=spend,
            up_bytes=self._up,
            down_bytes=self._down,
        )


class Intake(Tally):
    """Replies of one round, sorted into usable updates, failures and quarantine."""

    def __init__(
        self,
        number: int,
        requests: Mapping[int, TrainRequest],
        adapter: Mapping[str, np.ndarray],
        fleet: Fleet,
        timeout_s: float,
    ) -> None:
        super().__init__(number)
        self._requests, self._adapter = requests, adapter
        self._fleet, self._timeout_s = fleet, timeout_s
        self._heard: set[int] = set()
        self.waiting = 0.0

    def updates(self, answered: Callable[[int], None]) -> Iterator[AdapterUpdate]:
        """Yield the usable updates in the order of the node ids."""
        replies = self._fleet.train(self._requests, self._adapter, timeout_s=self._timeout_s, answered=answered)
        while True:
            asked = time.monotonic()
            reply = next(replies, None)
            self.waiting += time.monotonic() - asked
            if reply is None:
                return
            update = self._usable(reply)
            if update is not None:
                yield update

    def _usable(self, reply: Reply) -> AdapterUpdate | None:
        self.count(reply)
        update = reply.outcome
        if isinstance(update, Failure):
            self.fail(reply.node, update.reason)
            return None

        def check() -> AdapterUpdate:
            request = self._requests[reply.node]
            whole = opened(update, request)
            validate(whole, request, self._adapter, smaller_ranks=True)
            self._hear(reply.node)
            return whole

        return self.keep(update.meta, reply.received_bytes, check)

    def accept_masked(self, node: int, meta: UpdateMeta, received: int, expected: int) -> bool:
        """Tell whether a masked update is usable; of what it holds no more can be seen than how long it is."""

        def check() -> bool:
            validate_meta(meta, self._requests[node])
            if received != expected:
                raise UpdateRejected(f"a masked update of {received} bytes", expected=f"{expected}")
            self._hear(node)
            return True

        return self.keep(meta, received, check) is not None

    def _hear(self, node: int) -> None:
        """Refuse a second update; by node, which the transport vouches for, as a client's name is its own word."""
        if node in self._heard:
            raise UpdateRejected(f"a second update of node {node}", expected="one a round")
        self._heard.add(node)

    def in_round(self, seconds: float, spend: PrivacySpend | None, epsilon: float | None) -> RoundRecord:
        """Return what happened in the `seconds` that the round took; see `record`."""
        told = {"train": self.waiting, "aggregate": seconds - self.waiting}
        return self.record(len(self._requests), told, spend, epsilon)
