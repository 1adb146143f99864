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
from server.fleet.base import Answered, Failure, Reply, in_order

POLL_S = 0.02


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
        arrays = ArrayRecord(OrderedDict((name, Array(array)) for name, array in sorted(adapter.items())))
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
        yield from in_order(nodes, self._exchange(nodes, messages, timeout_s, answered))

    def _exchange(
        self, nodes: list[int], messages: list[Message], timeout_s: float, answered: Answered
    ) -> Iterator[Reply]:
        waiting = dict(zip(self._grid.push_messages(messages), nodes, strict=True))
        deadline = time.monotonic() + timeout_s
        while waiting and time.monotonic() < deadline:
            arrived = list(self._grid.pull_messages(list(waiting)))
            for message in arrived:
                node = waiting.pop(message.metadata.reply_to_message_id, None)
                if node is not None:
                    answered(len(nodes) - len(waiting))
                    yield _reply(node, message)
            if not arrived:
                time.sleep(POLL_S)
        for node in sorted(waiting.values()):
            yield Reply(node, Failure(node, f"no reply within {timeout_s:.0f} s"))


def _reply(node: int, message: Message) -> Reply:
    if message.has_error():
        return Reply(node, Failure(node, message.error.reason or f"error code {message.error.code}"))
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
