"""What a node's process keeps between messages, and how it answers one with it: all that needs torch.

Apart from `client.app`, because it takes seconds to load: a SuperNode starts a Python for every message, and one that
only says its name needs none of this.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

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
    """The encoder and the cache, each kept under everything it was made from, and the answers that they make."""

    def __init__(self) -> None:
        self._catalogues: dict[tuple[str, int], Catalogue] = {}
        self._encoders: dict[tuple[str, str], TextEncoder] = {}
        self._caches: dict[tuple[str, str, str, tuple[str, int]], HiddenCache] = {}

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
        """Return the hidden states of a catalogue's texts, on the encoder's device where they fit there."""
        catalogue = self.catalogue(path)
        key = (folder, encoder.sha256, str(encoder.device), (path, os.stat(path).st_mtime_ns))
        if key not in self._caches:
            self._caches[key] = open_or_build(Path(folder), encoder, catalogue.texts)
        return self._caches[key]

    def update(
        self,
        config: Mapping[str, str],
        request: TrainRequest,
        base: Mapping[str, np.ndarray],
        hidden_in: SecretSum | None = None,
    ) -> AdapterUpdate:
        """Return the node's answer to a train request; `hidden_in` is the secret sum that it will be part of."""
        NodePolicy.from_config(config).check(request)
        catalogue = self.catalogue(config["catalogue"])
        encoder = self.encoder(config["encoder"], config.get("device", "auto"))
        seed = config.get("secret-seed")
        node = Node(
            client=config["client"],
            data=data_of(config, request, catalogue),
            ledger_path=Path(config["ledger"]),
            secret_seed=None if seed is None else int(seed),
            data_epoch=_epoch_of(config),
            rank=_whole(config, "rank", 1) if "rank" in config else None,
        )
        cache = self.cache(config["cache"], encoder, config["catalogue"])
        return node.answer(request, base, encoder, cache, hidden_in)

    def stage(self, config: Mapping[str, str], number: int, body: bytes, base: Mapping[str, np.ndarray]) -> bytes:
        """Return the node's answer to one stage of a secret sum, where it has this number."""
        participant = Participant(number, Path(config["ledger"]).with_name("secret-sums"))
        return participant.answer(body, lambda request, hidden_in: self.update(config, request, base, hidden_in))


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
