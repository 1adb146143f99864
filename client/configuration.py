"""Where a node's configuration comes from.

A SuperNode names one file of its own, ``--node-config 'config="/data/node.json"'``: a JSON object of text; paths in it
are taken from the file's folder. The in-process fleet hands the same keys over directly. Nodes that Flower simulates
have nothing but a partition id, and find the file that the simulation wrote for it. What a server sends with a run is
never read for it: a node with a configuration of its own takes no path and no term from others.
"""

from collections.abc import Mapping
from pathlib import Path

import msgspec

from common.errors import InvalidSetting
from common.store import write_atomic

CONFIG_NAME = "node.json"
SIMULATED_KEYS = frozenset({"partition-id", "num-partitions"})
"""All that Flower's simulation tells a node."""
PATHS = ("interactions", "catalogue", "cache", "ledger")
REQUIRED = (*PATHS, "encoder")


def node_folder(nodes: Path, number: int) -> Path:
    """Return the folder of a simulated node, counted from 0."""
    return nodes / f"node-{number:05d}"


def write_config(folder: Path, config: Mapping[str, str]) -> None:
    """Write a node's configuration into its folder; paths inside the folder are written relative to it."""
    relative = {
        key: str(Path(value).relative_to(folder)) if key in PATHS and Path(value).is_relative_to(folder) else value
        for key, value in config.items()
    }
    write_atomic(folder / CONFIG_NAME, msgspec.json.format(msgspec.json.encode(relative), indent=2) + b"\n")


def node_settings(given: Mapping[str, object], nodes: Path) -> dict[str, str]:
    """Return the node's configuration as text.

    Parameters
    ----------
    given
        What the node was started with.
    nodes
        Folder of the simulated nodes.

    Raises
    ------
    InvalidSetting
        When a path is missing, naming it, or the file cannot be read.
    """
    config = {key: str(value) for key, value in given.items()}
    if "config" in config:
        config = {**_read(Path(config.pop("config"))), **config}
    elif config.keys() == SIMULATED_KEYS:
        config = _read(node_folder(nodes, int(config["partition-id"])) / CONFIG_NAME)
    for name in REQUIRED:
        if name not in config:
            raise InvalidSetting(f"a node without {name!r} in its configuration", expected="every path of client.app")
    return config


def _read(path: Path) -> dict[str, str]:
    """Return the keys of a file, with paths made absolute."""
    try:
        config = msgspec.json.decode(path.read_bytes(), type=dict[str, str])
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidSetting(
            f"the node's configuration {path} cannot be read ({error})", expected="a JSON object of text values"
        ) from error
    return {key: str(path.parent / value) if key in PATHS else value for key, value in config.items()}
