"""Any Flower Grid as a fleet: requests and replies as Flower Messages."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from common.array_record import size_of, to_record
from common.instructions import TrainRequest
from server.fleet.base import Answered, Errands, Failure, RawReply, Reply, in_order
from server.fleet.errands import GridErrands
from server.fleet.replies import decode_update, raw_reply_of, reply_of
from server.fleet.roll import Roll

__all__ = ["GridFleet", "decode_update"]

POLL_S = 0.02
STAGE_ACTION = "secret_sum"
"""The action of the query messages that carry the stages of a secret sum."""


class GridFleet:
    """Asks the nodes of a Flower Grid.

    Parameters
    ----------
    grid
        In-process, simulated by Ray, or of a SuperLink.
    roll
        The nodes by number; None where Flower's own ids are the numbers, as in process.
    poll_s
        Pause between two looks for replies.
    ahead
        Messages under way at once, which bounds what is in memory; None sends all, for nodes that work side by side.
    """

    def __init__(
        self, grid: Grid, roll: Roll | None = None, *, poll_s: float = POLL_S, ahead: int | None = None
    ) -> None:
        self._grid, self._roll, self._poll_s, self._ahead = grid, roll, poll_s, ahead

    def nodes(self) -> tuple[int, ...]:
        """Return the numbers of the nodes, sorted."""
        return tuple(sorted(self._grid.get_node_ids())) if self._roll is None else self._roll.numbers()

    def train(
        self,
        requests: Mapping[int, TrainRequest],
        adapter: Mapping[str, np.ndarray],
        *,
        timeout_s: float,
        answered: Answered,
    ) -> Iterator[Reply]:
        """Send one train message a node and yield the replies in the order of the node ids."""
        arrays = to_record(adapter)
        asked: dict[TrainRequest, ConfigRecord] = {}

        def content_of(node: int) -> RecordDict:
            # most nodes are asked the same, and a record is dear to make
            request = requests[node]
            if request not in asked:
                asked[request] = ConfigRecord(request.flat())  # type: ignore[arg-type]  # a union flwr widens
            return RecordDict({"adapter": arrays, "request": asked[request]})

        nodes = sorted(requests)
        group = str(requests[nodes[0]].round) if nodes else ""
        arriving = self._exchange(nodes, content_of, MessageType.TRAIN, group, timeout_s, answered)
        size = size_of(arrays)
        yield from in_order(nodes, (reply_of(node, message, size) for node, message in arriving))

    def ask(
        self,
        questions: Mapping[int, bytes],
        adapter: Mapping[str, np.ndarray] | None,
        *,
        group: str,
        timeout_s: float,
        answered: Answered,
    ) -> Iterator[RawReply]:
        """Send one query message a node and yield the replies in the order of the node ids."""
        arrays = {} if adapter is None else {"adapter": to_record(adapter)}
        size = sum(map(size_of, arrays.values()))

        def content_of(node: int) -> RecordDict:
            return RecordDict({"question": ConfigRecord({"body": questions[node], "node": node}), **arrays})

        nodes, action = sorted(questions), f"{MessageType.QUERY}.{STAGE_ACTION}"
        arriving = self._exchange(nodes, content_of, action, group, timeout_s, answered)
        replies = (raw_reply_of(node, message, size + len(questions[node])) for node, message in arriving)
        yield from in_order(nodes, replies)

    def errands(self) -> Errands:
        """Return a way to ask nodes one at a time and to take their replies as they come."""
        return GridErrands(self._grid, self._addresses, self._poll_s)

    def _exchange(
        self,
        nodes: Sequence[int],
        content_of: Callable[[int], RecordDict],
        message_type: str,
        group: str,
        timeout_s: float,
        answered: Answered,
    ) -> Iterator[tuple[int, Message | Failure]]:
        """Yield each node's reply as it arrives, and at the end a failure for each that is silent."""
        addresses = self._addresses(nodes)
        unsent = deque(node for node in nodes if node in addresses)
        ahead, replies = self._ahead or len(unsent), 0
        waiting: dict[str, int] = {}
        deadline = time.monotonic() + timeout_s
        while (unsent or waiting) and time.monotonic() < deadline:
            if unsent and len(waiting) <= ahead // 2:
                sent = [unsent.popleft() for _ in range(min(len(unsent), ahead - len(waiting)))]
                messages = [
                    Message(
                        content_of(node),
                        dst_node_id=addresses[node],
                        message_type=message_type,
                        group_id=group,
                        ttl=deadline - time.monotonic() + 60.0,
                    )
                    for node in sent
                ]
                waiting |= zip(self._grid.push_messages(messages), sent, strict=True)
            arrived = list(self._grid.pull_messages(list(waiting)))
            for message in arrived:
                node = waiting.pop(message.metadata.reply_to_message_id, None)
                if node is not None:
                    replies += 1
                    answered(replies)
                    yield node, message
            if not arrived:
                time.sleep(self._poll_s)
        for node in sorted(waiting.values()):
            yield node, Failure(node, f"no reply within {timeout_s:.0f} s")
        for node in sorted(unsent):
            yield node, Failure(node, f"no reply within {timeout_s:.0f} s", asked=False)
        for node in sorted(set(nodes) - addresses.keys()):
            yield node, Failure(node, "not connected", asked=False)

    def _addresses(self, nodes: Iterable[int]) -> dict[int, int]:
        """Return Flower's ids of those nodes that are connected."""
        if self._roll is None:
            return {node: node for node in nodes}
        self._roll.look_again()
        found = {node: self._roll.address(node) for node in nodes}
        return {node: address for node, address in found.items() if address is not None}
