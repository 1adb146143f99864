"""The Flower ClientApp: decode a message, have the workbench answer it, encode the reply; nothing else.

A node's configuration (where it comes from: `client.configuration`) names its files:

``client``
    The name that it goes by; Flower's id of the node when it is left out.

``interactions``
    JSON lines of schema version 1: the node's own data, which never leaves it.
``catalogue``
    JSON lines of items, public.
``encoder``, ``cache``, ``device``
    The shared BERT, the folder of cached hidden states, and where to run.
``ledger``
    The node's privacy ledger; beside it the node keeps what lasts between the stages of a secret sum.
``rank``
    The largest rank that the node trains; any when it is left out.
``replay-windows``
    How many old windows a user the node keeps for replay, in a file beside the ledger; see `client.continual`. 0 when
    it is left out: it then keeps nothing, and whoever asks for replay gets new clicks alone.
``data-epoch``
    Name of the data epoch to charge, when the node's people are new ones; see `client.ledger`.
``max-epsilon``, ``units``, ``noise``
    What the node agrees to, whatever a server asks; see `client.policy`.
``secret-seed``
    Only in a simulation; a real node leaves it out, and its ledger keeps one from the operating system.
"""

from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from client.configuration import node_settings
from common.array_record import from_record, to_record
from common.errors import InvalidSetting
from common.ids import arrays_sha256
from common.instructions import TrainRequest, Uplink
from common.quantise import quantise
from common.updates import AdapterUpdate

if TYPE_CHECKING:
    from client.workbench import Workbench


class CarriedApp(ClientApp):
    """A ClientApp that travels to another process as what it was made from; there it is made once, and keeps its bench.

    Ray sends the app with every message: carried by value, each message would load the encoder again.
    """

    def __init__(self, simulated: Path | None) -> None:
        super().__init__()
        self._simulated = simulated

    def __reduce__(self) -> tuple[Callable[[Path | None], ClientApp], tuple[Path | None]]:
        return app_of, (self._simulated,)


@cache
def app_of(simulated: Path | None) -> ClientApp:
    """Return this process's app for the nodes of a folder."""
    return make_app(simulated)


def make_app(simulated: Path | None = None) -> ClientApp:
    """Return a ClientApp with a workbench of its own; `simulated` is the folder of the nodes that Flower simulates."""
    app = CarriedApp(simulated)

    @cache
    def bench() -> "Workbench":
        # torch and Opacus take seconds to load, and a node that says its name needs neither
        from client.workbench import Workbench

        return Workbench()

    def settings_of(context: Context) -> dict[str, str]:
        nodes = simulated or Path(str(context.run_config.get("store", "."))) / "clients"
        return {"client": str(context.node_id), **node_settings(context.node_config, nodes)}

    @app.query("roll_call")
    def roll_call(message: Message, context: Context) -> Message:
        """Say which node this is."""
        name = settings_of(context)["client"]
        return Message(RecordDict({"answer": ConfigRecord({"client": name})}), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        """Answer one train request."""
        request, base = decode(message)
        update = bench().update(settings_of(context), request, base)
        return Message(encode(update, request.uplink), reply_to=message)

    @app.query("secret_sum")
    def secret_sum(message: Message, context: Context) -> Message:
        """Answer one stage of a secret sum; the update itself leaves under masks alone."""
        config = settings_of(context)
        body, number, base = decode_stage(message)
        answer = bench().stage(config, number, body, base)
        return Message(RecordDict({"answer": ConfigRecord({"body": answer})}), reply_to=message)

    return app


def decode_stage(message: Message) -> tuple[bytes, int, dict[str, np.ndarray]]:
    """Read a stage of a secret sum out of a query message.

    Returns the question, the number by which this node takes part, and the base adapter where one comes with it.
    """
    question = message.content.config_records["question"]
    body, number = question["body"], question["node"]
    if not isinstance(body, bytes) or not isinstance(number, int):
        raise InvalidSetting(
            f"a question that is a {type(body).__name__} to a {type(number).__name__}",
            expected="bytes to a whole number",
        )
    adapter = message.content.array_records.get("adapter")
    return body, number, from_record(adapter) if adapter else {}


def decode(message: Message) -> tuple[TrainRequest, dict[str, np.ndarray]]:
    """Read the request and the base adapter out of a train message."""
    request = TrainRequest.from_flat(dict(message.content.config_records["request"]))
    return request, from_record(message.content.array_records["adapter"])


def encode(update: AdapterUpdate, uplink: Uplink = "float32") -> RecordDict:
    """Return the update as Flower records: private arrays, public metadata.

    With `uplink` "int8" the arrays are rounded here, after all that clips and noises them. The draws follow from the
    arrays alone, so the same release gives the same bytes and the rounding tells nothing that the arrays would not.

    Raises
    ------
    UpdateRejected
        When an array that is to be rounded has NaN or infinite elements.
    """
    arrays = update.arrays if uplink == "float32" else quantise(update.arrays, arrays_sha256(update.arrays.items()))
    meta = update.meta
    public: dict[str, str | int | float | list[float] | list[int]] = {
        key: value
        for key, value in asdict(meta).items()
        if key not in ("privacy", "metrics", "epsilon") and value is not None
    }
    if meta.privacy is not None and meta.epsilon is not None:
        public |= {
            "epsilon": meta.epsilon,
            "unit": meta.privacy.unit,
            "delta": meta.privacy.delta,
            "sigmas": [sigma for sigma, _, _ in meta.privacy.steps],
            "rates": [rate for _, rate, _ in meta.privacy.steps],
            "counts": [count for _, _, count in meta.privacy.steps],
        }
    records = RecordDict({"update": to_record(arrays), "meta": ConfigRecord(public)})  # type: ignore[arg-type]  # a union flwr widens
    records["metrics"] = MetricRecord(dict(meta.metrics))
    return records


app = app_of(None)
