"""Any Flower Grid as a fleet: requests and replies as Flower Messages."""

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from zipfile import BadZipFile

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from common.errors import UpdateRejected
from common.instructions import TrainRequest
from common.privacy import PrivacySpend
from common.updates import AdapterUpdate, UpdateMeta
from server.fleet.base import Answered, Failure, RawReply, Reply, in_order
from server.fleet.roll import Roll

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
        arrays = _record(adapter)
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
        yield from in_order(nodes, (_reply(node, message) for node, message in arriving))

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
        arrays = {} if adapter is None else {"adapter": _record(adapter)}

        def content_of(node: int) -> RecordDict:
            return RecordDict({"question": ConfigRecord({"body": questions[node], "node": node}), **arrays})

        nodes, action = sorted(questions), f"{MessageType.QUERY}.{STAGE_ACTION}"
        arriving = self._exchange(nodes, content_of, action, group, timeout_s, answered)
        yield from in_order(nodes, (_raw_reply(node, message) for node, message in arriving))

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
                    yield node, _without_error(node, message)
            if not arrived:
                time.sleep(self._poll_s)
        for node in sorted([*waiting.values(), *unsent]):
            yield node, Failure(node, f"no reply within {timeout_s:.0f} s")
        for node in sorted(set(nodes) - addresses.keys()):
            yield node, Failure(node, "not connected")

    def _addresses(self, nodes: Iterable[int]) -> dict[int, int]:
        """Return Flower's ids of those nodes that are connected."""
        if self._roll is None:
            return {node: node for node in nodes}
        self._roll.look_again()
        found = {node: self._roll.address(node) for node in nodes}
        return {node: address for node, address in found.items() if address is not None}


def _record(adapter: Mapping[str, np.ndarray]) -> ArrayRecord:
    return ArrayRecord(OrderedDict((name, Array(array)) for name, array in sorted(adapter.items())))


def _without_error(node: int, message: Message) -> Message | Failure:
    """Return the message, or why there is nothing to decode."""
    if message.has_error():
        return Failure(node, message.error.reason or f"error code {message.error.code}")
    return message


def _raw_reply(node: int, message: Message | Failure) -> RawReply:
    if isinstance(message, Failure):
        return RawReply(node, message)
    answer = message.content.config_records.get("answer")
    body = None if answer is None else answer.get("body")
    if not isinstance(body, bytes):
        return RawReply(node, Failure(node, "a reply without an answer; expected record answer with its body"))
    return RawReply(node, body)


def _reply(node: int, message: Message | Failure) -> Reply:
    if isinstance(message, Failure):
        return Reply(node, message)
    try:
        update = decode_update(message.content)
    except UpdateRejected as error:
        return Reply(node, Failure(node, str(error)))
    return Reply(node, update, sum(array.nbytes for array in update.arrays.values()))


def _array(array: Array) -> np.ndarray:
    loaded = array.numpy()
    if not isinstance(loaded, np.ndarray):
        raise TypeError(f"a {type(loaded).__name__} for an array")
    return loaded


def decode_update(content: RecordDict) -> AdapterUpdate:
    """Read an update out of a reply.

    Raises
    ------
    UpdateRejected
        When a record or field is missing or of the wrong type; nothing of the reply is used.
    """
    try:
        public = dict(content.config_records["meta"])
        arrays = {name: _array(array) for name, array in content.array_records["update"].items()}
        privacy = None
        if "sigmas" in public:
            columns = (public["sigmas"], public["rates"], public["counts"])
            steps = tuple(zip(*columns, strict=True))  # type: ignore[arg-type]  # checked by the values below
            privacy = PrivacySpend(public["unit"], float(public["delta"]), steps)  # type: ignore[arg-type]
        metrics = {key: float(value) for key, value in content.metric_records["metrics"].items()}  # type: ignore[arg-type]
        meta = UpdateMeta(
            client=str(public["client"]),
            base_version=str(public["base_version"]),
            strategy=str(public["strategy"]),
            round=int(public["round"]),  # type: ignore[arg-type]
            examples=float(public["examples"]),  # type: ignore[arg-type]
            privacy=privacy,
            epsilon=float(public["epsilon"]) if privacy else None,  # type: ignore[arg-type]
            metrics=metrics,
        )
    except (KeyError, TypeError, ValueError, OverflowError, OSError, EOFError, BadZipFile) as error:
        raise UpdateRejected(
            f"a reply that is no update ({type(error).__name__}: {error})", expected="records update, meta and metrics"
        ) from error
    return AdapterUpdate(meta, arrays)
