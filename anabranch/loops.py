"""Which loop conducts a run: of rounds, or without."""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from common.clock import Clock
from common.errors import InvalidSetting
from common.progress import Progress
from server.aggregate import Strategy
from server.asynchronous import AsyncLoop
from server.fleet.base import Fleet
from server.pace import SimulatedPace
from server.plan import RunPlan
from server.pool import ServerNoise
from server.rounds import RoundLoop, RoundStore, RunState


class Loop(Protocol):
    """Conducts what is left of a run."""

    def run(self, state: RunState, after: Callable[[RunState], bool | None], /) -> RunState:
        """Go on from a state, calling `after` with each that is on disk; True from it ends the run."""


def loop_for(
    plan: RunPlan,
    strategy: Strategy,
    fleet: Fleet,
    store: RoundStore,
    *,
    device: Any,
    clock: Clock,
    progress: Progress,
    noise: ServerNoise,
    simulated: bool,
) -> Loop:
    """Return the loop of a plan over a fleet; without rounds, simulated nodes answer at a simulated pace.

    Raises
    ------
    InvalidSetting
        For simulated stragglers among real nodes.
    """
    terms = plan.asynchronous
    if terms is None:
        return RoundLoop(plan, strategy, fleet, store, device=device, clock=clock, progress=progress, noise=noise)
    if terms.stragglers and not simulated:
        raise InvalidSetting(
            f"a share of {terms.stragglers} stragglers among real nodes",
            expected="0: real nodes are as slow as they are",
            mend="leave out stragglers",
        )
    pace = partial(SimulatedPace.of, plan.seed, stragglers=terms.stragglers) if simulated else None
    return AsyncLoop(plan, strategy, fleet, store, device=str(device), clock=clock, progress=progress, pace=pace)
