"""The Flower ClientApp: decode a message, call the node, encode the reply; nothing else.

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

import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from client.configuration import node_settings
from client.continual import MEMORY_NAME, ReplayMemory
from client.dataset import NodeData
from client.ledger import DEFAULT_EPOCH
from client.node import Node, SecretSum
from client.policy import NodePolicy
from client.secagg import Participant
from common.datasets.files import read_catalogue, read_interactions
from common.encoder.adapter import TextEncoder
from common.encoder.cache import HiddenCache, open_or_build
from common.encoder.spec import EncoderSpec
from common.errors import InvalidSetting
from common.instructions import TrainRequest
from common.items import Catalogue
from common.updates import AdapterUpdate


class Workbench:
    """What one process keeps between messages: the encoder and the cache, each under everything it was made from."""

    def __init__(self) -> None:
        self._catalogues: dict[tuple[str, int], Catalogue] = {}
        self._encoders: dict[tuple[str, str], TextEncoder] = {}
        self._caches: dict[tuple[str, str, tuple[str, int]], HiddenCache] = {}

    def catalogue(self, path: str) -> Catalogue:
        """Return the catalogue of a file, read again when the file changes."""
        key = (path, os.stat(path).st_mtime_ns)
        if key not in self._catalogues:
            self._catalogues[key] = read_catalogue(Path(path))
        return self._catalogues[key]

    def encoder(self, name: str, device: str) -> TextEncoder:
        """Return the encoder on a device, built once."""
        if (name, device) not in self._encoders:
            self._encoders[name, device] = TextEncoder.load(EncoderSpec.from_name(name), device)
        return self._encoders[name, device]

    def cache(self, folder: str, encoder: TextEncoder, path: str) -> HiddenCache:
        """Return the hidden states of a catalogue's texts."""
        catalogue = self.catalogue(path)
        key = (folder, encoder.sha256, (path, os.stat(path).st_mtime_ns))
        if key not in self._caches:
            self._caches[key] = open_or_build(Path(folder), encoder, catalogue.texts)
        return self._caches[key]


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
    bench = Workbench()

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
        return Message(encode(update_of(settings_of(context), request, base, None)), reply_to=message)

    @app.query("secret_sum")
    def secret_sum(message: Message, context: Context) -> Message:
        """Answer one stage of a secret sum; the update itself leaves under masks alone."""
        config = settings_of(context)
        body, number, base = decode_stage(message)
        participant = Participant(number, Path(config["ledger"]).with_name("secret-sums"))
        answer = participant.answer(body, lambda request, hidden_in: update_of(config, request, base, hidden_in))
        return Message(RecordDict({"answer": ConfigRecord({"body": answer})}), reply_to=message)

    def update_of(
        config: Mapping[str, str],
        request: TrainRequest,
        base: Mapping[str, np.ndarray],
        hidden_in: SecretSum | None,
    ) -> AdapterUpdate:
        NodePolicy.from_config(config).check(request)
        catalogue = bench.catalogue(config["catalogue"])
        encoder = bench.encoder(config["encoder"], config.get("device", "auto"))
        seed = config.get("secret-seed")
        node = Node(
            client=config["client"],
            data=data_of(config, request, catalogue),
            ledger_path=Path(config["ledger"]),
            secret_seed=None if seed is None else int(seed),
            data_epoch=_epoch_of(config),
            rank=_whole(config, "rank", 1) if "rank" in config else None,
        )
        cache = bench.cache(config["cache"], encoder, config["catalogue"])
        return node.answer(request, base, encoder, cache, hidden_in)

    return app


def data_of(config: Mapping[str, str], request: TrainRequest, catalogue: Catalogue) -> NodeData:
    """Return the node's clicks, with those that it remembers when replay is asked for and the node keeps some."""
    data = NodeData.from_interactions(read_interactions(Path(config["interactions"])), catalogue)
    windows = _whole(config, "replay-windows", 0)
    if not windows or not request.objective.replay:
        return data
    memory = ReplayMemory(Path(config["ledger"]).with_name(MEMORY_NAME), _epoch_of(config), windows)
    return memory.recall(data, catalogue, request.objective.window)


def _whole(config: Mapping[str, str], name: str, least: int) -> int:
    """Return a whole number of the node's configuration; the least where it is left out."""
    given = config.get(name, str(least))
    if not given.isdecimal() or int(given) < least:
        raise InvalidSetting(
            f"{name} {given!r} in the node's configuration", expected=f"a whole number, at least {least}"
        )
    return int(given)


def _epoch_of(config: Mapping[str, str]) -> str:
    return config.get("data-epoch", DEFAULT_EPOCH)


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
    return body, number, {name: array.numpy() for name, array in adapter.items()} if adapter else {}


def decode(message: Message) -> tuple[TrainRequest, dict[str, np.ndarray]]:
    """Read the request and the base adapter out of a train message."""
    adapter = message.content.array_records["adapter"]
    request = TrainRequest.from_flat(dict(message.content.config_records["request"]))
    return request, {name: array.numpy() for name, array in adapter.items()}


def encode(update: AdapterUpdate) -> RecordDict:
    """Return the update as Flower records: private arrays, public metadata."""
    arrays = ArrayRecord(OrderedDict((name, Array(array)) for name, array in sorted(update.arrays.items())))
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
    records = RecordDict({"update": arrays, "meta": ConfigRecord(public)})  # type: ignore[arg-type]  # a union flwr widens
    records["metrics"] = MetricRecord(dict(meta.metrics))
    return records


app = app_of(None)
