"""The ServerApp that Flower runs: `flwr run` on a SuperLink, with SuperNodes or simulated ones.

Its run configuration (``[tool.flwr.app.config]`` in pyproject.toml, and ``--run-config``) has the options of
`anabranch simulate`, named alike; an empty text leaves an option at its default. Two more belong to a federation:

``simulated``
    Whether Flower simulates the nodes. The server then deals the data set to files of theirs; SuperNodes have files of
    their own, and the data set only tells the server its items and what to test on.
``wait``
    Seconds to wait for all nodes before the first round.
"""

import inspect
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from anabranch.commands.simulate import settings_of, simulate
from anabranch.engines import NODES_WAIT_S, OnGrid
from anabranch.simulation import Simulation, SimulationResult
from common.datasets.registry import load_dataset
from common.errors import InvalidSetting, UnknownName

log = logging.getLogger("flwr")
"""Flower's own: what it says is what `flwr log` shows."""
OWN = {"simulated": True, "wait": NODES_WAIT_S}
ELSEWHERE = frozenset({"engine", "ray_address", "workers", "as_json"})
"""Options that make no sense where Flower carries the messages."""

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds that the run configuration asks for and publish into its store."""
    result = run(grid, context)
    log.info("model %s, adapter %s", result.manifest.version, result.state.adapter_sha256)


def run(grid: Grid, context: Context) -> SimulationResult:
    """Run the rounds over the nodes of a grid.

    Raises
    ------
    UnknownName, InvalidSetting
        When the run configuration has a name or a value that means nothing.
    AnabranchError
        As `Simulation.run`; and when the nodes do not come.
    """
    given = options_in(context.run_config)
    simulated, wait = (given.pop(name) for name in OWN)
    settings = settings_of(given)
    dataset = load_dataset(given["data"], seed=settings.seed, notice=log.info)
    engine = OnGrid(grid, context, settings.clients, simulated=simulated, patience_s=wait)
    return Simulation(dataset, given["store"], settings, note=log.info, engine=engine).run()


def options_in(config: Mapping[str, object]) -> dict[str, Any]:
    """Return the options of `anabranch simulate`, and `OWN`, that a run configuration gives.

    Raises
    ------
    UnknownName, InvalidSetting
        When it has a name or a value that means nothing.
    """
    hints = {**get_type_hints(simulate), **{name: type(value) for name, value in OWN.items()}}
    usual = {name: parameter.default for name, parameter in inspect.signature(simulate).parameters.items()} | OWN
    given = {key.replace("-", "_"): value for key, value in config.items() if value != ""}
    known = usual.keys() - ELSEWHERE
    for name in given:
        if name not in known:
            raise UnknownName("run setting", name, [each.replace("_", "-") for each in known])
    return usual | {name: _typed(name, value, hints[name]) for name, value in given.items()}


def _typed(name: str, value: object, hint: Any) -> object:
    """Return a value as its option has it: whole numbers where a fraction may stand, texts where a path does."""
    wanted = [each for each in get_args(hint) if each is not type(None)] or [hint]
    if Path in wanted and isinstance(value, str):
        return Path(value)
    if float in wanted and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) not in wanted:
        raise InvalidSetting(
            f"{name.replace('_', '-')}={value!r} in the run configuration",
            expected=" or ".join(each.__name__ for each in wanted),
        )
    return value
