"""Who is at work in a run without rounds, from which adapter, and whose answer is next."""

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from common.errors import BudgetExceeded, UpdateRejected
from common.ids import arrays_sha256, rng_for
from common.instructions import TrainRequest
from common.updates import AdapterUpdate
from server.aggregate import Strategy
from server.async_terms import AsyncTerms
from server.fleet.base import Errands, Reply
from server.intake import Tally
from server.pace import SimulatedPace
from server.plan import RunPlan
from server.round_store import RunState
from server.underway import Errand, Underway
from server.validate import validate_meta


@dataclass(slots=True)
class Desk:
    """Errands from the moment they are begun until they are taken.

    Parameters
    ----------
    plan, terms, strategy
        Of the run.
    errands
        The way to the nodes.
    nodes
        All of them.
    pace
        The simulated one, or None.
    busy
        Number to errand: asked, not taken yet.
    early
        Replies that came before their turn.
    taken
        How often each node was asked.
    bases
        The adapters that errands start from.
    begun, clock
        Errands begun so far, and the simulated moment.
    """

    plan: RunPlan
    terms: AsyncTerms
    strategy: Strategy
    errands: Errands
    nodes: tuple[int, ...]
    pace: SimulatedPace | None
    busy: dict[int, Errand]
    early: dict[int, Reply]
    taken: Counter[int]
    bases: dict[int, Mapping[str, np.ndarray]]
    begun: int
    clock: float

    @classmethod
    def opened(
        cls,
        plan: RunPlan,
        terms: AsyncTerms,
        strategy: Strategy,
        errands: Errands,
        nodes: tuple[int, ...],
        state: RunState,
        pace: SimulatedPace | None,
    ) -> "Desk":
        """Return a desk that goes on from a state; what was under way is asked for again."""
        past = state.underway or Underway()
        taken, bases = Counter(past.taken), dict(past.bases)
        desk = cls(plan, terms, strategy, errands, nodes, pace, {}, {}, taken, bases, past.begun, past.moment)
        for errand in past.errands:
            desk._send(errand)
        return desk

    @property
    def moment(self) -> float | None:
        """The simulated moment, if there is one."""
        return None if self.pace is None else self.clock

    @property
    def most(self) -> int:
        """How often a node is asked at most."""
        return self.terms.most_participations(self.plan.rounds, self.plan.cohort, len(self.nodes))

    def base(self, errand: Errand) -> Mapping[str, np.ndarray]:
        """Return the adapter that an errand starts from."""
        return self.bases[errand.base]

    def request(self, errand: Errand) -> TrainRequest:
        """Return what an errand's node was asked."""
        base, steps = self.base(errand), self.plan.planned_steps(self.nodes)[errand.node]
        return self.plan.request(errand.number, arrays_sha256(base.items()), self.strategy.trained(base), steps)

    def begin(self, state: RunState) -> None:
        """Begin errands from the newest adapter until as many are at work as may be; those asked least come first."""
        if len(self.busy) >= self.plan.cohort:
            return
        at_work = {errand.node for errand in self.busy.values()}
        idle = [node for node in self.nodes if node not in at_work and self.taken[node] < self.most]
        free = sorted(self.errands.reachable(idle))
        while free and len(self.busy) < self.plan.cohort:
            least = min(self.taken[node] for node in free)
            chosen = [node for node in free if self.taken[node] == least]
            number = self.begun + 1
            node = chosen[int(rng_for("errand", self.plan.seed, number).integers(len(chosen)))]
            due = 0.0 if self.pace is None else self.clock + self.pace.duration(number, node)
            self.begun, self.bases[state.round] = number, state.adapter
            self.taken[node] += 1
            free.remove(node)
            self._send(Errand(number, node, state.round, due))

    def _send(self, errand: Errand) -> None:
        self.busy[errand.number] = errand
        self.errands.send(
            errand.number, errand.node, self.request(errand), self.base(errand), timeout_s=self.plan.timeout_s
        )

    def take(self) -> tuple[Errand, Reply]:
        """Wait for the next answer, by the simulated clock or as they come."""
        if self.pace is not None:
            number = min(self.busy, key=lambda each: (self.busy[each].due, each))
            self.clock = self.busy[number].due
            while number not in self.early:
                self._collect()
        else:
            while not self.early:
                self._collect()
            number = next(iter(self.early))
        return self.busy.pop(number), self.early.pop(number)

    def _collect(self) -> None:
        self.early.update((number, reply) for number, reply in self.errands.arrived() if number in self.busy)

    def spare(self, node: int, reason: str) -> None:
        """Ask a node no more whose budget is spent."""
        if BudgetExceeded.__name__ in reason:
            self.taken[node] = self.most

    def settle(self, tally: Tally) -> None:
        """In a simulation, hear what all that are at work have spent, so that a version claims what all ledgers say.

        Simulated time stands still meanwhile. On a real federation nobody is waited for.
        """
        while self.pace is not None and len(self.early) < len(self.busy):
            self._collect()
        for number, reply in self.early.items():
            if isinstance(reply.outcome, AdapterUpdate):
                with suppress(UpdateRejected):  # its turn to be quarantined comes
                    validate_meta(reply.outcome.meta, self.request(self.busy[number]))
                    tally.spent(reply.outcome.meta)

    def underway(self) -> Underway:
        """Return what is under way, and forget the adapters that nobody starts from any more."""
        errands = tuple(self.busy[number] for number in sorted(self.busy))
        self.bases = {base: self.bases[base] for base in sorted({errand.base for errand in errands})}
        return Underway(errands, self.begun, self.clock, dict(self.taken), dict(self.bases))
