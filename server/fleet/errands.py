"""Nodes of a Flower Grid asked one at a time, over its push and pull: nobody waits for anybody else's reply."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from common.array_record import size_of, to_record
from common.instructions import TrainRequest
from server.fleet.base import Failure, Reply
from server.fleet.replies import reply_of


@dataclass(frozen=True, slots=True)
class _Sent:
    """A message on its way: whose errand, to whom, from which adapter, and until when an answer counts."""

    number: int
    node: int
    base: str
    size: int
    deadline: float
    patience_s: float

    def overdue(self) -> Reply:
        return Reply(self.node, Failure(self.node, f"no reply within {self.patience_s:.0f} s"), sent_bytes=self.size)


class GridErrands:
    """Errands over a grid.

    Parameters
    ----------
    grid
        Where messages are pushed and pulled.
    addresses
        Returns Flower's ids of those of some nodes that are connected.
    poll_s
        Pause when nothing has come.
    """

    def __init__(self, grid: Grid, addresses: Callable[[Iterable[int]], Mapping[int, int]], poll_s: float) -> None:
        self._grid, self._addresses, self._poll_s = grid, addresses, poll_s
        self._sent: dict[str, _Sent] = {}
        self._records: dict[str, ArrayRecord] = {}
        self._unsent: list[tuple[int, Reply]] = []

    def reachable(self, nodes: Iterable[int]) -> frozenset[int]:
        """Return those of the nodes that are connected now."""
        return frozenset(self._addresses(nodes))

    def send(
        self, number: int, node: int, request: TrainRequest, adapter: Mapping[str, np.ndarray], *, timeout_s: float
    ) -> None:
        """Ask a node to train from an adapter; its reply comes under the errand's number."""
        address = self._addresses([node]).get(node)
        if address is None:
            self._unsent.append((number, Reply(node, Failure(node, "not connected", asked=False))))
            return
        record = self._record(request.base_version, adapter)
        message = Message(
            RecordDict({"adapter": record, "request": ConfigRecord(request.flat())}),  # type: ignore[arg-type]  # a union flwr widens
            dst_node_id=address,
            message_type=MessageType.TRAIN,
            group_id=str(request.round),
            ttl=timeout_s + 60.0,
        )
        (message_id,) = self._grid.push_messages([message])
        deadline = time.monotonic() + timeout_s
        self._sent[message_id] = _Sent(number, node, request.base_version, size_of(record), deadline, timeout_s)

    def arrived(self) -> list[tuple[int, Reply]]:
        """Return (errand, reply) of what has come or is overdue since the last call; none after a short wait."""
        replies, self._unsent = self._unsent, []
        for message in self._grid.pull_messages(list(self._sent)) if self._sent else ():
            sent = self._sent.pop(message.metadata.reply_to_message_id, None)
            if sent is not None:
                replies.append((sent.number, reply_of(sent.node, message, sent.size)))
        now = time.monotonic()
        for key in [key for key, sent in self._sent.items() if sent.deadline <= now]:
            late = self._sent.pop(key)
            replies.append((late.number, late.overdue()))
        if not replies:
            time.sleep(self._poll_s)
        return replies

    def _record(self, base: str, adapter: Mapping[str, np.ndarray]) -> ArrayRecord:
        """Return the record of an adapter, made once for all that are asked to start from it."""
        if base not in self._records:
            used = {sent.base for sent in self._sent.values()}
            self._records = {key: record for key, record in self._records.items() if key in used}
            self._records[base] = to_record(adapter)
        return self._records[base]
