"""Folders to run a federation from: what the SuperLink and each SuperNode need, and the commands that start them.

A folder is whole: certificates, keys, configuration and scripts lie in it, and paths in it are relative, so it can be
moved or mounted. The scripts are plain shell around Flower's own programs; read them before you run them.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from anabranch.certificates import Authority, node_key, write_secret
from anabranch.nodes import write_nodes
from anabranch.parts import Parts
from anabranch.simulation_settings import SimulationSettings
from client.configuration import CONFIG_NAME, node_folder, write_config
from common.clock import Clock, wall_clock
from common.datasets.base import Dataset
from common.datasets.files import write_catalogue
from common.errors import InvalidSetting
from common.items import Catalogue
from common.store import write_atomic

CA = "ca.pem"
CATALOGUE = "catalogue.jsonl"
CONNECTION = "federation"
FLOWER_HOME = "flower"
KEY, PUBLIC_KEY = "node.key", "node.pub"
NODE_PORT = 9094
ADDRESS_VARIABLE = "SUPERLINK"
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}
"""No telemetry, no look for updates, nothing installed at run time."""


@dataclass(frozen=True, slots=True)
class Link:
    """Where a SuperLink listens.

    Parameters
    ----------
    hosts
        Names and addresses that SuperNodes reach it by; the first one is written into their commands.
    port
        One for all: nodes, commands and the SuperLink's own processes.
    bind
        The address it listens on.
    """

    hosts: Sequence[str]
    port: int
    bind: str = "0.0.0.0"  # noqa: S104  nodes are elsewhere; TLS and keys decide who is let in

    def __post_init__(self) -> None:
        if not self.hosts or not all(self.hosts):
            raise InvalidSetting("a SuperLink without a host", expected="the name that nodes reach it by")
        if not 1 <= self.port <= 65535:
            raise InvalidSetting(f"port {self.port}", expected="1 to 65535")

    @property
    def address(self) -> str:
        """What a SuperNode connects to."""
        host = self.hosts[0]
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"


def write_superlink(
    folder: Path, link: Link, catalogue: Catalogue, run: Mapping[str, object], *, clock: Clock = wall_clock
) -> None:
    """Write what a SuperLink needs: an authority with a certificate, the items, the run's settings, and scripts.

    Parameters
    ----------
    folder
        Made where it is missing.
    link
        Where it listens.
    catalogue
        The items, to be given to the nodes.
    run
        Run configuration of `anabranch.federation`.

    Raises
    ------
    InvalidSetting
        When there are keys in the folder already.
    """
    authority = Authority.new(clock)
    certificate, key = authority.server(link.hosts, clock)
    write_secret(folder / "server.key", key)
    write_atomic(folder / "server.pem", certificate)
    write_atomic(folder / CA, authority.pem)
    write_catalogue(folder / CATALOGUE, catalogue)
    write_atomic(folder / "run.toml", _toml(run).encode())
    start = ["flower-superlink", "--host", link.bind, "--port", str(link.port)]
    start += ["--ssl-ca-certfile", CA, "--ssl-certfile", "server.pem", "--ssl-keyfile", "server.key"]
    start += ["--enable-supernode-auth", "--database", "state.db", "--disable-runtime-dependency-installation"]
    _script(folder / "start.sh", "Start the SuperLink; it keeps its state in state.db.", shlex.join(start))
    config = (
        rf'[superlink]\ndefault = "{CONNECTION}"\n[superlink.{CONNECTION}]\naddress = "%s"\nroot-certificates = "%s"\n'
    )
    _script(
        folder / "flwr.sh",
        f"Flower's command line for this SuperLink, at ${ADDRESS_VARIABLE} where that is set: flwr.sh list",
        'flwr "$@"',
        # Flower wants an absolute path, and the folder may move: so each call writes where it is now
        before=f'printf \'{config}\' "${{{ADDRESS_VARIABLE}:-{link.address}}}" "$here/{CA}" > "$FLWR_HOME/config.toml"',
        inside=False,
    )


def write_supernode(
    folder: Path,
    link_address: str,
    config: Mapping[str, str],
    *,
    authority: bytes,
    port: int = NODE_PORT,
    threads: int | None = None,
) -> None:
    """Write what a SuperNode needs: a key pair of its own, its configuration, and the script that starts it.

    Parameters
    ----------
    folder
        Made where it is missing; the node's data belongs in it too.
    link_address
        Host and port of the SuperLink.
    config
        The node's configuration, see `client.app`.
    authority
        The certificate that the SuperLink's is to be signed by, in PEM.
    port
        Where the node's own processes meet, on loopback; another one for each node on a machine.
    threads
        That training may use; None leaves it to torch.

    Raises
    ------
    InvalidSetting
        When there is a key in the folder already.
    """
    private, public = node_key()
    write_secret(folder / KEY, private)
    write_atomic(folder / PUBLIC_KEY, public)
    write_atomic(folder / CA, authority)
    write_config(folder, config)
    start = ["flower-supernode", "--superlink", link_address, "--root-certificates", CA]
    start += ["--auth-supernode-private-key", KEY, "--port", str(port)]
    _script(
        folder / "start.sh",
        "Start the SuperNode; it reads its data and writes its ledger in this folder.",
        f'{shlex.join(start)} --node-config "config=\\"$here/{CONFIG_NAME}\\""',
        more={"OMP_NUM_THREADS": str(threads)} if threads else {},
    )


def write_rehearsal(
    folder: Path,
    dataset: Dataset,
    settings: SimulationSettings,
    run: Mapping[str, object],
    *,
    port: int,
    node_ports: Sequence[int],
    clock: Clock = wall_clock,
) -> tuple[Path, list[Path]]:
    """Write a whole federation on loopback whose nodes hold the parts of a data set that a simulation deals them.

    With the settings and seed of a simulation it comes to the same adapter. Each node computes with one thread, as a
    simulated one does.

    Returns the SuperLink's folder and the nodes'.

    Raises
    ------
    EmptyData
        When no user has enough clicks.
    InvalidSetting
        When there are keys in the folder already.
    """
    link = Link(["127.0.0.1"], port, bind="127.0.0.1")
    superlink = folder / "superlink"
    dealt = Parts.of(dataset, settings.hide_cold, settings.seed).deal(settings.clients, settings.seed)
    write_superlink(superlink, link, dataset.catalogue, run, clock=clock)
    shared = {"catalogue": superlink / CATALOGUE, "cache": superlink / "cache"}
    homes = []
    configs = write_nodes(folder, dealt, settings, **shared)
    for number, (config, node_port) in enumerate(zip(configs, node_ports, strict=True)):
        home = node_folder(folder, number)
        write_catalogue(home / CATALOGUE, dataset.catalogue)
        own = {**config, "catalogue": str(home / CATALOGUE), "cache": str(home / "cache")}
        authority = (superlink / CA).read_bytes()
        write_supernode(home, link.address, own, authority=authority, port=node_port, threads=1)
        homes.append(home)
    return superlink, homes


def _toml(values: Mapping[str, object]) -> str:
    """Return one line a key; texts, numbers and truth values are written alike in JSON and TOML."""
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())


def _script(
    path: Path,
    purpose: str,
    command: str,
    *,
    before: str = "",
    more: Mapping[str, str] | None = None,
    inside: bool = True,
) -> None:
    """Write a shell script that runs a command of Flower; `inside` the script's own folder, or where it is called."""
    environment = {**QUIET, **(more or {})}
    lines = [
        "#!/bin/sh",
        f"# {purpose}",
        "set -eu",
        'here=$(cd "$(dirname "$0")" && pwd)',
        f'export FLWR_HOME="$here/{FLOWER_HOME}"',
        *(f"export {name}={value}" for name, value in environment.items()),
        'mkdir -p "$FLWR_HOME"',
        *([before] if before else []),
        *(['cd "$here"'] if inside else []),
        f"exec {command}",
    ]
    write_atomic(path, ("\n".join(lines) + "\n").encode())
    path.chmod(0o755)
