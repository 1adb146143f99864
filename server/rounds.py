"""The round loop: plan, ask, validate, aggregate, evaluate, publish; resumable at every round.

After each round the adapter, the strategy's state and the history are on disk as one artifact, so a server that was
killed goes on from the last whole round to the same adapter. Flower's own ``Strategy.start`` cannot: it begins at round
1, waits for ever below its minimum of nodes, and ends with empty arrays when all clients fail.
"""

import secrets
import time
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch

from common.clock import Clock
from common.errors import BudgetExceeded, InvalidSetting, RoundError
from common.instructions import SecureTerms, TrainRequest
from common.privacy import PrivacySpend
from common.progress import Progress
from common.updates import AdapterUpdate, UpdateMeta
from server.aggregate.base import Strategy
from server.fleet.base import Fleet
from server.intake import Intake, RoundRecord
from server.plan import RunPlan
from server.pool import Pool, ServerNoise, mean_of, pool_updates
from server.round_store import RoundStore, RunState
from server.secagg import SecretSession

__all__ = ["RoundLoop", "RoundRecord", "RoundStore", "RunPlan", "RunState"]


class RoundLoop:
    """Runs the rounds of a plan over a fleet.

    Parameters
    ----------
    plan
        What to run.
    strategy
        How to aggregate.
    fleet
        Whom to ask.
    store
        Where rounds are kept.
    device
        Where to aggregate.
    clock
        Wall clock of the manifests.
    progress
        Told of every reply.
    noise
        To size, add and account for one noise over all nodes; needed unless each node adds its own.
    """

    def __init__(
        self,
        plan: RunPlan,
        strategy: Strategy,
        fleet: Fleet,
        store: RoundStore,
        *,
        device: torch.device,
        clock: Clock,
        progress: Progress,
        noise: ServerNoise | None = None,
    ) -> None:
        self._plan, self._strategy, self._fleet, self._store = plan, strategy, fleet, store
        self._device, self._clock, self._progress, self._noise = device, clock, progress, noise

    def run(self, state: RunState, after_round: Callable[[RunState], bool | None]) -> RunState:
        """Run the rounds that are left, calling `after_round` when each is on disk; True from it ends the run.

        Raises
        ------
        RoundError
            When a round has too few usable updates; the last whole round stays.
        BudgetExceeded
            When a round does not fit the budget: of one noise over all nodes, and then nobody is asked; or of so many
            nodes that the round cannot come about whatever the others answer. The last whole round stays.
        InvalidSetting
            When the guarantee cannot be kept over this fleet.
        """
        nodes = self._fleet.nodes()
        planned = self._plan.planned_steps(nodes)
        sigma = self._sigma(nodes, max(planned.values(), default=1))
        while state.round < self._plan.rounds:
            state = self._one_round(state, nodes, planned, sigma)
            self._store.save(state, self._clock())
            if after_round(state):
                break
        return state

    def _sigma(self, nodes: tuple[int, ...], steps: int) -> float:
        """Return the multiplier of the one noise over all nodes; 0 where each node sizes its own, or there is none."""
        terms = self._plan.privacy
        self._plan.refuse_large_delta(nodes)
        if terms.noise == "local" or terms.unit == "off":
            return 0.0
        if self._noise is None:
            raise InvalidSetting(f"noise {terms.noise!r} in a round loop without an accountant", expected="ServerNoise")
        return self._noise.accountant.sigma(terms.epsilon, terms.delta, terms.rate, steps)

    def _one_round(self, state: RunState, nodes: tuple[int, ...], planned: Mapping[int, int], sigma: float) -> RunState:
        number = state.round + 1
        spend, epsilon = self._charge(state, sigma)
        requests = {node: self._request(state, planned[node], sigma) for node in self._plan.cohort_of(number, nodes)}
        stage = f"round {number}/{self._plan.rounds}"
        self._progress(stage, 0, len(requests))
        intake = Intake(number, requests, state.adapter, self._fleet, self._plan.timeout_s)
        started = time.monotonic()

        def answered(count: int) -> None:
            self._progress(stage, count, len(requests))

        updates: Iterable[AdapterUpdate]
        if self._plan.only_sum:
            pool = self._pool(intake, requests, state, answered)
            updates = [self._mean(self._noised(pool, state, sigma), state, nodes)]
        else:
            updates = intake.updates(answered)
        result = self._strategy.aggregate(self._tensors(state.adapter), self._tensors(state.strategy_state), updates)
        self._refuse_few(intake, len(requests))
        return RunState(
            number,
            {name: tensor.cpu().numpy() for name, tensor in result.adapter.items()},
            {name: tensor.cpu().numpy() for name, tensor in result.state.items()},
            (*state.history, intake.in_round(time.monotonic() - started, spend, epsilon)),
        )

    def _refuse_few(self, intake: Intake, asked: int) -> None:
        """Refuse a round without enough usable updates; asking nobody, by chance, is enough of none."""
        if intake.usable >= min(self._plan.min_replies, asked):
            return
        refusals = intake.over_budget()
        if refusals and asked - len(refusals) < self._plan.min_replies:
            raise BudgetExceeded(
                f"round {intake.number} was refused by {len(refusals)} of {asked} nodes for their privacy budget"
                f"{intake.first_reason()}",
                expected=f"at least {self._plan.min_replies} with budget left",
                consequence=f"the model of round {intake.number - 1} stays",
                mend="ask for no more rounds than planned, or raise --epsilon in a new store, knowingly",
            )
        raise RoundError(
            f"round {intake.number} has {intake.usable} usable updates of {asked}{intake.first_reason()}",
            expected=f"at least {self._plan.min_replies}",
            consequence=f"the model of round {intake.number - 1} stays",
            mend="mend the nodes and run the same command with --resume",
        )

    # -- one sum for all -----------------------------------------------------------------------------------------

    def _pool(
        self,
        intake: Intake,
        requests: Mapping[int, TrainRequest],
        state: RunState,
        answered: Callable[[int], None],
    ) -> Pool:
        """Return the sum of the updates, in the open or without ever seeing one of them."""
        if not self._plan.secure_aggregation:
            pool = pool_updates(intake.updates(answered), state.adapter, self._trained(state), self._bound())
            self._refuse_few(intake, len(requests))
            return pool
        terms = SecureTerms(self._plan.cohort, self._plan.min_replies, self._plan.colluders)
        # each attempt has a name of its own: a node that is asked for two sums must know that they are two
        name = f"{self._plan.run}/{intake.number}/{secrets.token_hex(16)}"
        session = SecretSession(name, terms, requests, state.adapter, self._plan.timeout_s)
        started = time.monotonic()
        total = session.total(self._fleet, intake, answered)
        intake.waiting += time.monotonic() - started
        return total

    def _charge(self, state: RunState, sigma: float) -> tuple[PrivacySpend | None, float | None]:
        """Return what the coming round costs nodes that are not asked either, and epsilon with it.

        It is saved with the round's adapter in one write, and nothing leaves before that.
        """
        terms = self._plan.privacy
        if not self._plan.drawn_by_chance or self._noise is None:
            return None, None
        spend = PrivacySpend(terms.unit, terms.delta, ((sigma, terms.rate, 1),))
        total = spend
        for record in state.history:
            total = total + record.spend if record.spend is not None else total
        epsilon = self._noise.accountant.epsilon(total)
        if not epsilon <= terms.epsilon:
            raise BudgetExceeded(
                f"round {state.round + 1} would bring epsilon to {epsilon:.3f}",
                expected=f"at most {terms.epsilon:.3f}",
                consequence="nobody is asked",
                mend="raise the budget knowingly, or start with new data",
            )
        return spend, epsilon

    def _bound(self) -> float | None:
        """Return the bound of a node's whole update, where the noise is sized for it."""
        return self._plan.objective.clip if self._plan.privacy.unit == "client" else None

    def _noised(self, pool: Pool, state: RunState, sigma: float) -> Pool:
        terms, goal = self._plan.privacy, self._plan.objective
        if terms.noise != "server" or terms.unit == "off" or self._noise is None:
            return pool
        # a sum over records comes multiplied by the nodes' learning rate, and so does its bound
        scale = goal.learning_rate if terms.undivided else 1.0
        return self._noise.add(pool, sigma * goal.clip * scale, self._plan.run, state.round + 1, state.adapter_sha256)

    def _mean(self, pool: Pool, state: RunState, nodes: tuple[int, ...]) -> AdapterUpdate:
        """Return the mean over all, by a denominator that depends on no data."""
        terms = self._plan.privacy
        if terms.undivided:
            denominator = pool.examples
        elif terms.unit == "client" and terms.noise != "local":
            denominator = terms.cohort_rate * len(nodes) if self._plan.drawn_by_chance else self._plan.cohort
        else:
            denominator = pool.clients
        meta = UpdateMeta("sum", state.adapter_sha256, self._strategy.name, state.round + 1, pool.examples)
        return mean_of(pool, denominator, meta)

    # -- asking ------------------------------------------------------------------------------------------------------

    def _request(self, state: RunState, planned_steps: int, sigma: float) -> TrainRequest:
        return self._plan.request(state.round + 1, state.adapter_sha256, self._trained(state), planned_steps, sigma)

    def _trained(self, state: RunState) -> tuple[str, ...]:
        return self._strategy.trained(state.adapter, state.strategy_state)

    def _tensors(self, arrays: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(np.array(array)).to(self._device) for name, array in arrays.items()}
