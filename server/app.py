"""The Flower ServerApp: it hands Flower's grid to whoever conducts the rounds, and nothing else."""

from collections.abc import Callable

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from server.fleet.base import Fleet
from server.fleet.flower import GridFleet


def make_app(conduct: Callable[[Fleet, Context], None], fleet_of: Callable[[Grid], Fleet] = GridFleet) -> ServerApp:
    """Return a ServerApp whose main runs `conduct` over the nodes of the grid that Flower gives it.

    `fleet_of` makes the fleet of the grid: of Flower's own ids, or of nodes that were called by name first.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        conduct(fleet_of(grid), context)

    return app
