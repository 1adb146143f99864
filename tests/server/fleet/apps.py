"""A small ClientApp whose node configuration says how each node behaves."""

import os
import signal
import struct
import sys
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from common.array_record import ENTRY, from_record, to_record

app = ClientApp()
not_an_app = "text"


@app.train()
def train(message: Message, context: Context) -> Message:
    """Behave as the node configuration says, then answer."""
    config = {key: str(value) for key, value in context.node_config.items()}
    if "mark" in config:
        with Path(config["mark"]).open("a", encoding="utf-8") as file:
            file.write(f"{os.getpid()}\n")
    if "diary" in config:
        with Path(config["diary"]).open("a", encoding="utf-8") as file:
            file.write(f"{config['client']}\n")
    _act(config.get("do", ""), config)
    return Message(_update(message, config), reply_to=message)


@app.query("roll_call")
def roll_call(message: Message, context: Context) -> Message:
    """Say the node's name, or what its configuration says instead."""
    _act(str(context.node_config.get("do-when-called", "")), {})
    return Message(
        RecordDict({"answer": ConfigRecord({"client": str(context.node_config["client"])})}), reply_to=message
    )


def _act(what: str, config: dict[str, str]) -> None:
    if what == "raise":
        raise ValueError("no data at this node")
    if what == "exit":
        sys.exit(3)
    if what == "die" or (what == "die-once" and len(Path(config["mark"]).read_text().splitlines()) == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "die-in-the-middle-of-an-answer":
        os.write(int(sys.argv[2]), struct.pack("!i", 10_000) + b"begun")
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "sleep":
        time.sleep(float(config["seconds"]))
    if what == "hang":
        signal.pause()


def _update(message: Message, config: dict[str, str]) -> RecordDict:
    """Return an update of the adapter sent: twice what came."""
    request = message.content.config_records["request"]
    base = message.content.array_records["adapter"]
    arrays = to_record({name: 2 * array for name, array in from_record(base).items()})
    meta = {
        "client": config.get("client", "?"),
        "base_version": str(request["base_version"]),
        "strategy": str(request["strategy"]),
        "round": int(str(request["round"])),
        "examples": 4.0,
    }
    records = RecordDict({"update": arrays, "meta": ConfigRecord(meta | _claim(config))})  # type: ignore[arg-type]  # a union
    records["metrics"] = MetricRecord({"loss": 0.5})
    _spoil(records, config.get("spoil", ""))
    return records


def _claim(config: dict[str, str]) -> dict[str, object]:
    if "epsilon" not in config:
        return {}
    steps = {"sigmas": [1.0, 2.0], "rates": [0.2, 0.2], "counts": [3, 1]}
    return {"epsilon": float(config["epsilon"]), "unit": "user", "delta": 1e-4, **steps}


def _spoil(records: RecordDict, how: str) -> None:
    meta, arrays = records.config_records["meta"], records.array_records["update"]
    if how == "no update":
        del records["update"]
    elif how == "no meta":
        del records["meta"]
    elif how == "no metrics":
        del records["metrics"]
    elif how == "round infinite":
        meta["round"] = float("inf")
    elif how == "round a word":
        meta["round"] = "three"
    elif how == "lists of two lengths":
        meta["counts"] = [1]
    elif how == "a number for a list":
        meta["sigmas"] = 1.0
    elif how == "a list for a metric":
        records.metric_records["metrics"]["loss"] = [1.0, 2.0]
    elif how == "cut array":
        arrays[ENTRY] = entry(arrays[ENTRY].data[:-4])
    elif how == "no bytes":
        arrays[ENTRY] = entry(b"")
    elif how == "pickle":
        arrays[ENTRY] = entry(b"\x80\x04N.")
    elif how == "zip":
        arrays[ENTRY] = entry(b"PK\x03\x04 and so on")
    elif how == "archive":
        arrays[ENTRY] = entry(_archive())
    elif how == "another serialisation":
        arrays[ENTRY] = entry(arrays[ENTRY].data, "numpy.ndarray")
    elif how == "two entries":
        arrays["more"] = entry(arrays[ENTRY].data)


def entry(raw: bytes, kind: str = ENTRY) -> Array:
    """Return bytes as an entry of an array record."""
    return Array(dtype="uint8", shape=(len(raw),), stype=kind, data=raw)


def _archive() -> bytes:
    from io import BytesIO

    buffer = BytesIO()
    np.savez(buffer, a=np.zeros(2))
    return buffer.getvalue()
