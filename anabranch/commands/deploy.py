"""`anabranch deploy`: folders to run a real federation from, on Flower's SuperLink and SuperNodes."""

import inspect
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from anabranch.commands.simulate import settings_of, simulate
from anabranch.output import Output

app = typer.Typer(no_args_is_help=True, help="A real federation: certificates, keys, commands for SuperLink and nodes.")
PORT = 9091
"""Kafka has 9092 and Flower's SuperNodes 9094."""
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
FolderArgument = Annotated[Path, typer.Argument(help="Folder to write; it must hold no keys yet.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
DataOption = Annotated[str, typer.Option(help="Data set whose items are recommended; see `anabranch data list`.")]
NodesOption = Annotated[int, typer.Option(help="SuperNodes that the run waits for.")]
RoundsOption = Annotated[int, typer.Option(help="Federated rounds.")]
EncoderOption = Annotated[str, typer.Option(help="minilm, a Hugging Face BERT, or a folder; the same on every node.")]


@app.command()
def superlink(
    folder: FolderArgument,
    host: Annotated[list[str], typer.Option(help="Name or address that nodes reach it by; repeatable.")],
    port: Annotated[int, typer.Option(help="Port to listen on.")] = PORT,
    data: DataOption = "movielens-100k",
    nodes: NodesOption = 3,
    rounds: RoundsOption = 12,
    epsilon: Annotated[float, typer.Option(help="Budget of every node over the whole run.")] = 8.0,
    encoder: EncoderOption = "minilm",
    as_json: JsonFlag = False,
) -> None:
    """Write what the server needs: a test authority, a certificate, the items, settings of the run, scripts.

    \b
    Example:
      anabranch deploy superlink federation/superlink --host federation.example.org --nodes 3
    """
    from anabranch.deployment import Link, write_superlink
    from common.datasets.registry import load_dataset

    out = Output(as_json=as_json)
    dataset = load_dataset(data, notice=out.note)
    run = {"simulated": False, "clients": nodes, "rounds": rounds, "epsilon": epsilon}
    link = Link(host, port)
    write_superlink(folder, link, dataset.catalogue, {**run, "data": data, "encoder": encoder, "store": "store"})
    steps = [
        f"{folder}/start.sh",
        f"give {folder}/ca.pem and {folder}/catalogue.jsonl to each node",
        f"{folder}/flwr.sh supernode register NODE.pub, for each node",
        f"{folder}/flwr.sh run . --run-config {folder}/run.toml --stream, in the checkout, once the nodes are there",
    ]
    _tell(out, {"folder": str(folder), "address": link.address, "steps": steps})


@app.command()
def supernode(
    folder: FolderArgument,
    name: Annotated[str, typer.Option(help="The node's name; each one in a federation.")],
    link: Annotated[str, typer.Option("--superlink", help="HOST:PORT of the SuperLink.")],
    authority: Annotated[Path, typer.Option("--ca", help="The authority's certificate, from the server.")],
    catalogue: Annotated[Path, typer.Option(help="The items, from the server.")],
    max_epsilon: Annotated[float, typer.Option(help="Largest budget that this node agrees to.")] = 8.0,
    encoder: EncoderOption = "minilm",
    port: Annotated[int, typer.Option(help="For the node's own processes; one a node on a machine.")] = 9094,
    as_json: JsonFlag = False,
) -> None:
    """Write what a node needs, at the node: its key never leaves the folder. Its data is yours to put there.

    \b
    Example:
      anabranch deploy supernode node --name north --superlink federation.example.org:9091 \
        --ca ca.pem --catalogue catalogue.jsonl
    """
    import re

    from anabranch.deployment import CATALOGUE, write_supernode
    from common.datasets.files import read_catalogue, write_catalogue
    from common.errors import UsageError

    if not re.fullmatch(NAME, name):
        raise UsageError(f"--name {name!r}", expected="letters, digits, dots, dashes and underscores")
    for option, path in (("--ca", authority), ("--catalogue", catalogue)):
        if not path.is_file():
            raise UsageError(f"{option} {path} is no file", expected="the one that `anabranch deploy superlink` wrote")
    items = read_catalogue(catalogue)
    files = {"interactions": "interactions.jsonl", "catalogue": CATALOGUE, "ledger": "ledger.sqlite", "cache": "cache"}
    config = {"client": name, **{key: str(folder / file) for key, file in files.items()}, "encoder": encoder}
    terms = {
        "device": "auto",
        "max-epsilon": f"{max_epsilon:g}",
        "units": "user,example,client",
        "noise": "local,shared",
    }
    write_supernode(folder, link, {**config, **terms}, authority=authority.read_bytes(), port=port)
    write_catalogue(folder / CATALOGUE, items)
    steps = [
        f"put the node's clicks into {folder}/interactions.jsonl, one JSON object a line",
        f"look over {folder}/node.json: what it agrees to is the node's own say",
        f"send {folder}/node.pub to the server, to be registered",
        f"{folder}/start.sh",
    ]
    _tell(Output(as_json=as_json), {"folder": str(folder), "node": name, "steps": steps})


@app.command()
def rehearse(
    folder: FolderArgument,
    data: DataOption = "synthetic:users=100,items=200",
    nodes: NodesOption = 3,
    rounds: RoundsOption = 3,
    strategy: Annotated[str, typer.Option(help="As of simulate.")] = "fedsvd",
    privacy: Annotated[str, typer.Option(help="What is protected: user, example, client or off.")] = "user",
    epsilon: Annotated[float, typer.Option(help="Budget of every node over the whole run.")] = 8.0,
    encoder: EncoderOption = "minilm",
    seed: Annotated[int, typer.Option(help="The same seed gives the adapter of `anabranch simulate`.")] = 0,
    port: Annotated[int, typer.Option(help="Of the SuperLink, on loopback.")] = PORT,
    first_node_port: Annotated[
        int, typer.Option(help="Of the first node's own processes; the next ones follow.")
    ] = 9094,
    as_json: JsonFlag = False,
) -> None:
    """Write a whole federation on this machine, a data set dealt to its nodes: TLS, keys and all.

    \b
    Example:
      anabranch deploy rehearse rehearsal --nodes 3
    """
    from anabranch.deployment import write_rehearsal
    from common.datasets.registry import load_dataset

    out = Output(as_json=as_json)
    run = {
        "clients": nodes,
        "rounds": rounds,
        "strategy": strategy,
        "privacy": privacy,
        "epsilon": epsilon,
        "seed": seed,
    }
    run |= {"data": data, "encoder": encoder, "device": "cpu"}
    usual = {name: parameter.default for name, parameter in inspect.signature(simulate).parameters.items()}
    settings = settings_of(usual | run)
    dataset = load_dataset(data, seed=seed, notice=out.note)
    federation = {"simulated": False, **run, "store": "store"}
    node_ports = range(first_node_port, first_node_port + nodes)
    superlink_folder, homes = write_rehearsal(folder, dataset, settings, federation, port=port, node_ports=node_ports)
    steps = [f"{superlink_folder}/start.sh, in a terminal of its own"]
    for home in homes:
        steps += [
            f"{superlink_folder}/flwr.sh supernode register {home}/node.pub",
            f"{home}/start.sh, in a terminal of its own",
        ]
    steps.append(f"{superlink_folder}/flwr.sh run . --run-config {superlink_folder}/run.toml --stream, in the checkout")
    _tell(out, {"folder": str(folder), "nodes": [str(home) for home in homes], "steps": steps})


def _tell(out: Output, payload: dict[str, Any]) -> None:
    def draw(console: Console) -> None:
        console.print(f"{escape(payload['folder'])} is written; next:")
        for number, step in enumerate(payload["steps"], start=1):
            console.print(f"{number}. {escape(step)}", soft_wrap=True, highlight=False)

    out.result(payload, draw)
