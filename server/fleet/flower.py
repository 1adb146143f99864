"""Any Flower Grid as a fleet: requests and replies as Flower Messages."""

import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from zipfile import BadZipFile

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from common.errors import UpdateRejected
from common.instructions import TrainRequest
from common.privacy import PrivacySpend
from common.updates import AdapterUpdate, UpdateMeta
from server.fleet.base import Answered, Failure, RawReply, Reply, in_order

POLL_S = 0.02
STAGE_ACTION = "secret_sum"
"""The action of the query messages that carry the stages of a secret sum."""


class GridFleet:
    """Asks the nodes of a Flower Grid.

    Parameters
    ----------
    grid
        In-process, simulated by Ray, or of a SuperLink.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def nodes(self) -> tuple[int, ...]:
        """Return the ids of the nodes that are connected, sorted."""
        return tuple(sorted(self._grid.get_node_ids()))

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
        nodes = sorted(requests)
        messages = [
            Message(
                RecordDict({"adapter": arrays, "request": ConfigRecord(requests[node].flat())}),  # type: ignore[arg-type]  # a union flwr widens
                dst_node_id=node,
                message_type=MessageType.TRAIN,
                group_id=str(requests[node].round),
                ttl=timeout_s + 60.0,
            )
            for node in nodes
        ]
        arriving = self._exchange(nodes, messages, timeout_s, answered)
        yield from in_order(nodes, (_reply(node, message, timeout_s) for node, message in arriving))

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
        nodes = sorted(questions)
        messages = [
            Message(
                RecordDict({"question": ConfigRecord({"body": questions[node]}), **arrays}),
                dst_node_id=node,
                message_type=f"{MessageType.QUERY}.{STAGE_ACTION}",
                group_id=group,
                ttl=timeout_s + 60.0,
            )
            for node in nodes
        ]
        arriving = self._exchange(nodes, messages, timeout_s, answered)
        yield from in_order(nodes, (_raw_reply(node, message, timeout_s) for node, message in arriving))

    def _exchange(
        self, nodes: list[int], messages: list[Message], timeout_s: float, answered: Answered
    ) -> Iterator[tuple[int, Message | None]]:
        """Yield each node's reply as it arrives, and at the end None for each that is silent."""
        waiting = dict(zip(self._grid.push_messages(messages), nodes, strict=True))
        deadline = time.monotonic() + timeout_s
        while waiting and time.monotonic() < deadline:
            arrived = list(self._grid.pull_messages(list(waiting)))
            for message in arrived:
                node = waiting.pop(message.metadata.reply_to_message_id, None)
                if node is not None:
                    answered(len(nodes) - len(waiting))
                    yield node, message
            if not arrived:
                time.sleep(POLL_S)
        for node in sorted(waiting.values()):
            yield node, None


def _record(adapter: Mapping[str, np.ndarray]) -> ArrayRecord:
    return ArrayRecord(OrderedDict((name, Array(array)) for name, array in sorted(adapter.items())))


def _failure(node: int, message: Message | None, timeout_s: float) -> Failure | None:
    """Return why there is nothing to decode, if so."""
    if message is None:
        return Failure(node, f"no reply within {timeout_s:.0f} s")
    if message.has_error():
        return Failure(node, message.error.reason or f"error code {message.error.code}")
    return None


def _raw_reply(node: int, message: Message | None, timeout_s: float) -> RawReply:
    failure = _failure(node, message, timeout_s)
    if message is None or failure is not None:
        return RawReply(node, failure or Failure(node, "no reply"))
    answer = message.content.config_records.get("answer")
    body = None if answer is None else answer.get("body")
    if not isinstance(body, bytes):
        return RawReply(node, Failure(node, "a reply without an answer; expected record answer with its body"))
    return RawReply(node, body)


def _reply(node: int, message: Message | None, timeout_s: float) -> Reply:
    failure = _failure(node, message, timeout_s)
    if message is None or failure is not None:
        return Reply(node, failure or Failure(node, "no reply"))
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
