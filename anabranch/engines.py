"""What carries a run's messages: worker processes of this program, or Flower's own runtimes.

Each engine hands the same ServerApp a Flower Grid; the same ClientApp answers. Nodes have the same numbers under each,
so the same seed and data give the same adapter.
"""

import importlib.util
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from flwr.app import Context, RecordDict
from flwr.serverapp import Grid

from client.app import app_of
from common.errors import ArtifactCorrupt, InvalidSetting, RoundError
from common.store import write_atomic
from server.app import make_app
from server.fleet.base import Fleet
from server.fleet.flower import GridFleet
from server.fleet.inprocess import InProcessGrid
from server.fleet.roll import call_roll

CLIENT_APP, CLIENT_MODULES = "client.app:app", ("client.workbench",)
ROLL_NAME = "nodes.json"
POLL_S = 0.2
"""Pause between two looks for replies where each look is a request to a SuperLink."""
NODES_WAIT_S = 300.0
AHEAD = 256
"""Messages under way at once in process: enough to choose the longest from, and a bound on the replies held back."""

Conduct = Callable[[Fleet, Context], None]


class Engine(Protocol):
    """Runs a ServerApp over some nodes."""

    @property
    def simulated(self) -> bool:
        """Whether the nodes' files are to be written by who runs the rounds."""

    def conduct(self, conduct: Conduct, run_folder: Path) -> None:
        """Call `conduct` with the fleet; `run_folder` keeps the run's nodes by name, for when it goes on."""


class InProcess:
    """Worker processes on this machine.

    Parameters
    ----------
    grid
        With its workers started.
    """

    simulated = True

    def __init__(self, grid: InProcessGrid) -> None:
        self._grid = grid

    def conduct(self, conduct: Conduct, run_folder: Path) -> None:
        """Run the ServerApp here, as Flower's runtime would."""
        context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
        make_app(conduct, lambda grid: GridFleet(grid, ahead=AHEAD))(self._grid, context)


@contextmanager
def in_process(configs: Sequence[Mapping[str, str]], workers: int) -> Iterator[InProcess]:
    """Start worker processes for nodes with these configurations, and end them afterwards."""
    # how much a node has to read and train says how long it takes, well enough to begin with the longest
    costs = [float(Path(config["interactions"]).stat().st_size) for config in configs]
    # one thread each, however many workers: sums then come out the same
    with InProcessGrid(CLIENT_APP, configs, workers=workers, threads=1, costs=costs, modules=CLIENT_MODULES) as grid:
        yield InProcess(grid)


class OnGrid:
    """The nodes of a grid that Flower handed to a ServerApp.

    Parameters
    ----------
    grid, context
        As Flower handed them over.
    expected
        How many nodes the run is planned for.
    simulated
        Whether they are nodes that Flower simulates, which have no files of their own.
    patience_s
        How long to wait for the nodes.
    """

    def __init__(
        self, grid: Grid, context: Context, expected: int, *, simulated: bool, patience_s: float = NODES_WAIT_S
    ) -> None:
        self._grid, self._context, self._expected = grid, context, expected
        self.simulated, self._patience_s = simulated, patience_s

    def conduct(self, conduct: Conduct, run_folder: Path) -> None:
        """Call the nodes' roll, keep it, and run the ServerApp over them."""

        def fleet_of(grid: Grid) -> Fleet:
            known = read_roll(run_folder)
            roll = call_roll(grid, self._expected, known=known, patience_s=self._patience_s)
            if not known:
                write_atomic(run_folder / ROLL_NAME, json.dumps(roll.names).encode())
            return GridFleet(grid, roll, poll_s=POLL_S)

        make_app(conduct, fleet_of)(self._grid, self._context)


def read_roll(run_folder: Path) -> tuple[str, ...]:
    """Return the names of a run's nodes; empty for a run that has not begun."""
    path = run_folder / ROLL_NAME
    if not path.exists():
        return ()
    try:
        names = json.loads(path.read_bytes())
    except ValueError as error:
        raise ArtifactCorrupt(f"{path} holds no names ({error})", mend="restore it from a copy") from error
    return tuple(str(name) for name in names)


class OnRay:
    """Nodes that Flower simulates on Ray, on this machine or a cluster.

    Parameters
    ----------
    folder
        Of the nodes, with a configuration each; on a cluster it must be there on every machine.
    nodes
        How many.
    workers
        Processes on this machine; 0 means one a core.
    address
        Of a Ray cluster that runs already; None starts Ray here.
    gpus
        Share of a GPU that a worker takes; 0 without one.

    Raises
    ------
    InvalidSetting
        When Ray is not installed.
    """

    simulated = True

    def __init__(self, folder: Path, nodes: int, *, workers: int = 0, address: str | None = None, gpus: float = 0.0):
        if importlib.util.find_spec("ray") is None:
            raise InvalidSetting(
                "engine 'flower' without Ray, which simulates Flower's nodes",
                expected="the extra `ray`",
                consequence="nothing was trained",
                mend='pip install -c constraints.txt -e ".[ray]", or use --engine inprocess',
            )
        self._folder, self._nodes, self._workers, self._address, self._gpus = folder, nodes, workers, address, gpus

    def conduct(self, conduct: Conduct, run_folder: Path) -> None:
        """Start Ray, and Flower's simulation with the ServerApp in it."""
        from flwr.serverapp import ServerApp
        from flwr.simulation import run_simulation

        app = ServerApp()

        @app.main()
        def main(grid: Grid, context: Context) -> None:
            OnGrid(grid, context, self._nodes, simulated=True).conduct(conduct, run_folder)

        start_ray(self._workers, self._address)
        with _quiet("flwr"):
            run_simulation(
                app,
                app_of(self._folder.resolve()),
                self._nodes,
                backend_config={"client_resources": {"num_cpus": 1, "num_gpus": self._gpus}},
            )


def start_ray(workers: int = 0, address: str | None = None) -> None:
    """Start Ray before Flower does, so that its workers compute and import as the in-process ones do.

    Raises
    ------
    RoundError
        When Ray does not start, or nobody answers at the address.
    """
    # no telemetry; and no warning of what a later Ray will do without GPUs
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    environment = {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "OMP_NUM_THREADS": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }
    # Ray has no password: on one machine it is to be reached from there alone
    here = {"num_cpus": workers or None, "_node_ip_address": "127.0.0.1"}
    place = {"address": address} if address else here
    common = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    try:
        ray.init(**place, **common, runtime_env={"env_vars": environment})
    except Exception as error:  # Ray raises bare Exceptions, as when a busy machine is slow to start it
        raise RoundError(
            f"Ray {f'at {address} ' if address else ''}does not start: {error}",
            consequence="no round is begun",
            mend="see Ray's own logs, or use --engine inprocess",
        ) from error


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Silence a logger that repeats what the replies say already."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
