"""The nodes of a simulation on disk: each with its own users' interactions and a configuration of its own."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from anabranch.simulation_settings import SimulationSettings
from client.configuration import PATHS, node_folder, write_config
from common.datasets.files import write_interactions
from common.events import Interaction
from common.ids import stable_hash

NODES = "clients"
"""Folder of the nodes in a store."""
REPLAY_WINDOWS = 16
"""Old windows a user that a simulated node keeps, where replay is asked for."""


def write_nodes(
    folder: Path,
    dealt: Sequence[Mapping[str, Sequence[Interaction]]],
    settings: SimulationSettings,
    *,
    catalogue: Path,
    cache: Path,
) -> list[dict[str, str]]:
    """Write each node's interactions and return the nodes' configurations.

    Parameters
    ----------
    folder
        Of the nodes.
    dealt
        Interactions by user, one mapping a node.
    settings
        What the nodes are to agree to.
    catalogue, cache
        Shared by all: the items, and the hidden states of their texts.
    """
    configs, ranks = [], settings.ranks
    for number, users in enumerate(dealt):
        home = node_folder(folder, number)
        write_interactions(home / "interactions.jsonl", (event for events in users.values() for event in events))
        configs.append(
            {
                "client": home.name,
                "interactions": str(home / "interactions.jsonl"),
                "ledger": str(home / "ledger.sqlite"),
                "catalogue": str(catalogue),
                "cache": str(cache),
                "encoder": settings.encoder,
                "device": settings.device,
                # a simulated node agrees to what is simulated
                "max-epsilon": str(settings.privacy.epsilon),
                "units": settings.privacy.unit,
                "noise": settings.privacy.noise,
                "secret-seed": str(stable_hash("secret", settings.seed, number) % 2**63),
                "replay-windows": str(REPLAY_WINDOWS),
                **({"rank": str(ranks[number % len(ranks)])} if ranks else {}),
            }
        )
    return configs


def write_configs(folder: Path, configs: Sequence[Mapping[str, str]]) -> None:
    """Write the configurations as files, for nodes that Flower starts in whatever folder it is in."""
    for number, config in enumerate(configs):
        paths = {key: str(Path(config[key]).resolve()) for key in PATHS}
        write_config(node_folder(folder.resolve(), number), {**config, **paths})
