"""A worker process of the in-process fleet: Flower Messages in, Flower Messages out, over one socket.

Started as ``python -m server.fleet.worker APP FD [MODULE...]``: APP names the ClientApp ("client.app:app"), FD is the
inherited end of a socket pair, and modules are loaded before the first message. It ends when the other end closes, so
it never outlives its parent.
"""

import gc
import importlib
import os
import select
import sys
import threading
from functools import lru_cache
from multiprocessing.connection import Connection

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import message_from_proto, message_to_proto, recorddict_from_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict

from server.fleet.wire import Task, decode_task

CLIENT_APP_RAISED = 2
"""Flower's own error code for an exception inside the ClientApp."""


def load_app(reference: str) -> ClientApp:
    """Return the ClientApp that "module:name" refers to, as Flower itself resolves it."""
    module, _, name = reference.partition(":")
    app = getattr(importlib.import_module(module), name)
    if not isinstance(app, ClientApp):
        raise TypeError(f"{reference} is a {type(app).__name__}, not a ClientApp")
    return app


@lru_cache(maxsize=8)
def records_of(raw: bytes) -> RecordDict:
    """Read a RecordDict; most nodes of a round are asked in the same words, and those are read once."""
    return recorddict_from_proto(ProtoRecordDict.FromString(raw))


def message_of(task: Task, arrays: RecordDict) -> Message:
    """Return the message of a task, its content put together of what it brings and the arrays."""
    proto = ProtoMessage.FromString(task.message)
    records = records_of(proto.content.SerializeToString(deterministic=True))
    proto.content.Clear()
    message = message_from_proto(proto)
    message.content.update({**records, **arrays})
    return message


def arrays_of(task: Task, held: RecordDict) -> RecordDict:
    """Return the array records of a task: its own, or those that are held since the task before."""
    return held if task.arrays is None else recorddict_from_proto(ProtoRecordDict.FromString(task.arrays))


def answer(app: ClientApp, task: Task, arrays: RecordDict) -> bytes:
    """Run one message through the app; an exception becomes an error reply with its reason."""
    message = message_of(task, arrays)
    context = Context(
        run_id=message.metadata.run_id,
        node_id=message.metadata.dst_node_id,
        node_config=dict(task.node_config),
        state=RecordDict(),
        run_config={},
    )
    try:
        reply = app(message, context)
    except Exception as error:  # whatever a client raises costs its own reply, not the round
        reply = Message(Error(CLIENT_APP_RAISED, f"{type(error).__name__}: {error}"), reply_to=message)
    raw: bytes = message_to_proto(reply).SerializeToString()
    return raw


def end_with(handle: int) -> None:
    """Leave at once when the other end of the socket closes; all that a client keeps survives a kill."""
    watch = select.poll()
    watch.register(handle, select.POLLHUP)
    while not any(event & (select.POLLHUP | select.POLLERR | select.POLLNVAL) for _, event in watch.poll()):
        pass
    os._exit(0)


def main() -> None:
    """Answer tasks until the parent hangs up."""
    threading.Thread(target=end_with, args=(int(sys.argv[2]),), daemon=True).start()
    app, arrays = load_app(sys.argv[1]), RecordDict()
    for module in sys.argv[3:]:
        importlib.import_module(module)
    gc.freeze()  # what is loaded stays: there is no need to look through it for garbage again and again
    with Connection(int(sys.argv[2])) as parent:
        while True:
            try:
                raw = parent.recv_bytes()
            except (EOFError, ConnectionResetError):
                return
            task = decode_task(raw)
            arrays = arrays_of(task, arrays)
            parent.send_bytes(answer(app, task, arrays))


if __name__ == "__main__":
    main()
