"""The Flower ClientApp: decode a message, call the node, encode the reply; nothing else.

A node's configuration (Flower's node config, or the in-process fleet's) names its files:

``interactions``
    JSON lines of schema version 1: the node's own data, which never leaves it.
``catalogue``
    JSON lines of items, public.
``encoder``, ``cache``, ``device``
    The shared BERT, the folder of cached hidden states, and where to run.
``ledger``
    The node's privacy ledger.
``secret-seed``
    Only in a simulation; a real node leaves it out, and its ledger keeps one from the operating system.
"""

import os
from collections import OrderedDict
from dataclasses import asdict
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from client.dataset import NodeData
from client.node import Node
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


def make_app() -> ClientApp:
    """Return a ClientApp with a workbench of its own."""
    app = ClientApp()
    bench = Workbench()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        """Answer one train request."""
        config = {key: str(value) for key, value in context.node_config.items()}
        for name in ("interactions", "catalogue", "encoder", "cache", "ledger"):
            if name not in config:
                raise InvalidSetting(
                    f"a node without {name!r} in its configuration", expected="every path of client.app"
                )
        request, base = decode(message)
        catalogue = bench.catalogue(config["catalogue"])
        encoder = bench.encoder(config["encoder"], config.get("device", "auto"))
        seed = config.get("secret-seed")
        node = Node(
            client=config.get("client", str(context.node_id)),
            data=NodeData.from_interactions(read_interactions(Path(config["interactions"])), catalogue),
            ledger_path=Path(config["ledger"]),
            secret_seed=None if seed is None else int(seed),
        )
        update = node.answer(request, base, encoder, bench.cache(config["cache"], encoder, config["catalogue"]))
        return Message(encode(update), reply_to=message)

    return app


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


app = make_app()
