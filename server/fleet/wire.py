"""What travels between the in-process fleet and its workers: a Flower Message and the node's configuration."""

from collections.abc import Mapping

import msgspec


class Task(msgspec.Struct, frozen=True):
    """One message for one node.

    Parameters
    ----------
    message
        A Flower Message in protocol buffers, without its array records.
    node_config
        The node's own configuration, as a SuperNode would have it.
    arrays
        The array records, as a RecordDict in protocol buffers; None where they are those of the worker's last task:
        all nodes of a round start from the same adapter.
    """

    message: bytes
    node_config: Mapping[str, str]
    arrays: bytes | None


def encode_task(task: Task) -> bytes:
    """Return the task as MessagePack."""
    return msgspec.msgpack.encode(task)


def decode_task(raw: bytes) -> Task:
    """Read a task back."""
    return msgspec.msgpack.decode(raw, type=Task)
