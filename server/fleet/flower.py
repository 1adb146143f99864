"""Any Flower Grid as a fleet: requests and replies as Flower Messages."""

import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
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
    """

    def __init__(self, grid: Grid, roll: Roll | None = None, *, poll_s: float = POLL_S) -> None:
        self._grid, self._roll, self._poll_s = grid, roll, poll_s

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
        contents = {
            node: RecordDict({"adapter": arrays, "request": ConfigRecord(request.flat())})  # type: ignore[arg-type]  # a union flwr widens
            for node, request in sorted(requests.items())
        }
        groups = {node: str(request.round) for node, request in requests.items()}
        arriving = self._exchange(contents, MessageType.TRAIN, groups, timeout_s, answered)
        yield from in_order(sorted(requests), (_reply(node, message) for node, message in arriving))

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
        contents = {
            node: RecordDict({"question": ConfigRecord({"body": body, "node": node}), **arrays})
            for node, body in sorted(questions.items())
        }
        action = f"{MessageType.QUERY}.{STAGE_ACTION}"
        arriving = self._exchange(contents, action, dict.fromkeys(questions, group), timeout_s, answered)
        yield from in_order(sorted(questions), (_raw_reply(node, message) for node, message in arriving))

    def _exchange(
        self,
        contents: Mapping[int, RecordDict],
        message_type: str,
        groups: Mapping[int, str],
        timeout_s: float,
        answered: Answered,
    ) -> Iterator[tuple[int, Message | Failure]]:
        """Yield each node's reply as it arrives, and at the end a failure for each that is silent."""
        addresses = self._addresses(contents)
        sent = [node for node in contents if node in addresses]
        messages = [
            Message(
                contents[node],
                dst_node_id=addresses[node],
                message_type=message_type,
                group_id=groups[node],
                ttl=timeout_s + 60.0,
            )
            for node in sent
        ]
        waiting = dict(zip(self._grid.push_messages(messages), sent, strict=True))
        deadline = time.monotonic() + timeout_s
        while waiting and time.monotonic() < deadline:
            arrived = list(self._grid.pull_messages(list(waiting)))
            for message in arrived:
                node = waiting.pop(message.metadata.reply_to_message_id, None)
                if node is not None:
                    answered(len(sent) - len(waiting))
                    yield node, _without_error(node, message)
            if not arrived:
                time.sleep(self._poll_s)
        for node in sorted(waiting.values()):
            yield node, Failure(node, f"no reply within {timeout_s:.0f} s")
        for node in sorted(contents.keys() - addresses.keys()):
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
