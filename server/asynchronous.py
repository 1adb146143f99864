"""The loop without rounds: nodes at work at once, a buffer of their answers, and a version whenever it is full.

    begin    an errand for an idle node, from the newest adapter, while fewer than M are at work
    take     the next answer: in a simulation by the simulated clock, else the first to arrive
    check    it as a round would; too old a base is quarantined
    buffer   it; with K of them: carry each to the newest adapter, weigh it by its staleness, let the strategy step
    keep     version, strategy state, and all that is under way, as one artifact; then go on

Which node an errand goes to, and how often each is asked at most, depends on no data: see `server.async_terms`.
"""

import time
from collections.abc import Callable
from dataclasses import replace

from common.clock import Clock
from common.errors import BudgetExceeded, InvalidSetting, RoundError, UpdateRejected
from common.progress import Progress
from common.updates import AdapterUpdate
from server.aggregate import Strategy, aggregate_arrays
from server.aggregate.stale import carry
from server.async_terms import weight_of
from server.desk import Desk
from server.fleet.base import Failure, Fleet, Reply
from server.intake import Tally
from server.pace import SimulatedPace
from server.plan import RunPlan
from server.round_store import RoundStore, RunState
from server.underway import Errand
from server.validate import opened, validate


class AsyncLoop:
    """Runs a plan without rounds over a fleet.

    Parameters
    ----------
    plan
        What to run; with asynchronous terms.
    strategy
        How to aggregate.
    fleet
        Whom to ask.
    store
        Where versions are kept.
    device
        Where to aggregate, in torch's words.
    clock
        Wall clock of the manifests.
    progress
        Told of every usable answer.
    pace
        Makes the simulated pace of some nodes; None on a real federation, where whoever is first comes first.

    Raises
    ------
    InvalidSetting
        For a plan of rounds.
    """

    def __init__(
        self,
        plan: RunPlan,
        strategy: Strategy,
        fleet: Fleet,
        store: RoundStore,
        *,
        device: str,
        clock: Clock,
        progress: Progress,
        pace: Callable[[tuple[int, ...]], SimulatedPace] | None = None,
    ) -> None:
        if plan.asynchronous is None:
            raise InvalidSetting("a plan of rounds in a loop without rounds", expected="asynchronous terms")
        self._plan, self._strategy, self._fleet, self._store = plan, strategy, fleet, store
        self._terms, self._device, self._clock, self._progress = plan.asynchronous, device, clock, progress
        self._pace = pace

    def run(self, state: RunState, after_version: Callable[[RunState], bool | None]) -> RunState:
        """Make the versions that are left, calling `after_version` when each is on disk; True from it ends the run.

        Raises
        ------
        RoundError
            When nobody is left to fill the buffer; the last version stays.
        BudgetExceeded
            When that is for their privacy budgets.
        InvalidSetting
            When there are fewer nodes than are to be at work at once, or the guarantee cannot be kept over them.
        """
        if state.round >= self._plan.rounds:
            return state
        nodes = self._fleet.nodes()
        if self._plan.cohort > len(nodes):
            raise InvalidSetting(f"{self._plan.cohort} nodes at once", expected=f"at most the {len(nodes)} there are")
        self._plan.refuse_large_delta(nodes)
        desk = Desk.opened(
            self._plan,
            self._terms,
            self._strategy,
            self._fleet.errands(),
            nodes,
            state,
            self._pace and self._pace(nodes),
        )
        while state.round < self._plan.rounds:
            state = self._next_version(desk, state)
            self._store.save(state, self._clock())
            if after_version(state):
                break
        return state

    def _next_version(self, desk: Desk, state: RunState) -> RunState:
        tally, buffer = Tally(state.round + 1), list[AdapterUpdate]()
        staleness: list[int] = []
        stage, started, answered, waiting = f"version {state.round + 1}/{self._plan.rounds}", time.monotonic(), 0, 0.0
        self._progress(stage, 0, self._terms.buffer)
        while len(buffer) < self._terms.buffer:
            asked = time.monotonic()
            desk.begin(state)
            self._refuse_nobody(desk, tally, state, len(buffer))
            errand, reply = desk.take()
            answered, waiting = answered + 1, waiting + time.monotonic() - asked
            update = self._usable(desk, tally, errand, reply, state)
            if update is not None:
                buffer.append(update)
                staleness.append(state.round - errand.base)
                self._progress(stage, len(buffer), self._terms.buffer)
        asked = time.monotonic()
        desk.settle(tally)
        waiting += time.monotonic() - asked
        adapter, strategy_state, _ = aggregate_arrays(
            self._strategy, state.adapter, state.strategy_state, buffer, self._device
        )
        seconds = {"train": waiting, "aggregate": time.monotonic() - started - waiting}
        record = replace(tally.record(answered, seconds), staleness=tuple(staleness), moment=desk.moment)
        return RunState(state.round + 1, adapter, strategy_state, (*state.history, record), desk.underway())

    def _usable(self, desk: Desk, tally: Tally, errand: Errand, reply: Reply, state: RunState) -> AdapterUpdate | None:
        """Return an answer as an update of the newest adapter, weighed; None when it is no use."""
        tally.count(reply)
        update, behind = reply.outcome, state.round - errand.base
        if isinstance(update, Failure):
            tally.fail(reply.node, update.reason)
            desk.spare(reply.node, update.reason)
            return None
        base = desk.base(errand)

        def check() -> AdapterUpdate:
            request = desk.request(errand)
            whole = opened(update, request)
            validate(whole, request, base)
            if behind > self._terms.max_staleness:
                # it is as it should be, and whoever sent it has paid for it
                tally.spent(update.meta)
                raise UpdateRejected(
                    f"an update of version {errand.base}, {behind} behind",
                    expected=f"at most {self._terms.max_staleness} behind",
                )
            current = whole if behind == 0 else carry(whole, self._plan.strategy, base, state.adapter)
            return current.scale(weight_of(behind))

        return tally.keep(update.meta, reply.received_bytes, check)

    def _refuse_nobody(self, desk: Desk, tally: Tally, state: RunState, usable: int) -> None:
        """Refuse to wait for a buffer that nobody is left to fill."""
        if desk.busy:
            return
        refusals = tally.over_budget()
        error = BudgetExceeded if refusals else RoundError
        raise error(
            f"version {state.round + 1} has {usable} usable updates, and nobody is left to ask{tally.first_reason()}",
            expected=f"{self._terms.buffer}",
            consequence=f"version {state.round} stays",
            mend="raise --participations or --max-staleness in a new store, or mend the nodes and use --resume",
        )
