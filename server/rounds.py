"""The round loop: plan, ask, validate, aggregate, evaluate, publish; resumable at every round.

After each round the adapter, the strategy's state and the history are on disk as one artifact, so a server that was
killed goes on from the last whole round to the same adapter. Flower's own ``Strategy.start`` cannot: it begins at round
1, waits for ever below its minimum of nodes, and ends with empty arrays when all clients fail.
"""

import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch

from common.clock import Clock
from common.errors import ArtifactCorrupt, BudgetExceeded, InvalidSetting, RoundError, StoreMismatch
from common.ids import arrays_sha256
from common.instructions import PrivacyTerms, SecureTerms, TrainRequest
from common.manifests import Manifest
from common.privacy import PrivacyClaim, PrivacySpend
from common.progress import Progress
from common.store import pack_arrays, publish_folder, unpack_arrays, verify_folder, write_atomic
from common.updates import AdapterUpdate, UpdateMeta
from server.aggregate.base import Strategy
from server.fleet.base import Fleet
from server.intake import Intake, RoundRecord
from server.plan import RunPlan
from server.pool import Pool, ServerNoise, mean_of, pool_updates
from server.secagg import SecretSession

__all__ = ["RoundLoop", "RoundRecord", "RoundStore", "RunPlan", "RunState"]

KEEP_ROUNDS = 2
RUN_NAME = "run.json"


@dataclass(frozen=True, slots=True)
class RunState:
    """Where a run stands.

    Parameters
    ----------
    round
        Rounds done.
    adapter, strategy_state
        Tensors by name.
    history
        One record a round.
    """

    round: int
    adapter: Mapping[str, np.ndarray]
    strategy_state: Mapping[str, np.ndarray]
    history: tuple[RoundRecord, ...] = ()

    @property
    def adapter_sha256(self) -> str:
        """Hash of the adapter's tensors."""
        return arrays_sha256(self.adapter.items())

    def claim(self, privacy: PrivacyTerms) -> PrivacyClaim:
        """Return the guarantee over all rounds so far: the largest epsilon that any client ever reported."""
        if privacy.unit == "off":
            return PrivacyClaim("off", None, None, None, "none")
        spent = [record.epsilon for record in self.history if record.epsilon is not None]
        return PrivacyClaim(privacy.unit, max(spent, default=0.0), privacy.delta, privacy.epsilon, "prv")


class RoundStore:
    """The rounds of one run on disk.

    Parameters
    ----------
    folder
        ``rounds/`` of the store.
    plan
        The run; a folder with rounds of another one is refused.

    Raises
    ------
    StoreMismatch
        When the folder holds another run, naming the first setting that differs.
    """

    def __init__(self, folder: Path, plan: RunPlan) -> None:
        self._folder = folder
        path = folder / RUN_NAME
        wanted = msgspec.json.encode(plan)
        if path.exists() and any(folder.glob("round-*")):
            _refuse_other_run(_read_plan(path), msgspec.json.decode(wanted), folder)
        else:
            write_atomic(path, wanted)

    def latest(self) -> RunState | None:
        """Return the state after the newest whole round, or None before the first.

        Raises
        ------
        ArtifactCorrupt
            When a file of that round is damaged.
        """
        for folder in sorted(self._folder.glob("round-*"), reverse=True):
            try:
                manifest = verify_folder(folder)
            except ArtifactCorrupt as error:
                raise ArtifactCorrupt(
                    error.found,
                    expected=error.expected,
                    consequence="the run does not go on from it",
                    mend=f"delete {folder} to go on from the round before",
                ) from error
            return RunState(
                round=int(manifest.details["round"]),
                adapter=_read_arrays(folder / "adapter.safetensors"),
                strategy_state=_read_arrays(folder / "strategy.safetensors"),
                history=msgspec.json.decode((folder / "history.json").read_bytes(), type=tuple[RoundRecord, ...]),
            )
        return None

    def save(self, state: RunState, created_at: int) -> None:
        """Write the state after a round as one artifact and forget all but the last two."""
        files = {
            "adapter.safetensors": pack_arrays(state.adapter),
            "strategy.safetensors": pack_arrays(state.strategy_state),
            "history.json": msgspec.json.encode(state.history),
        }
        name = f"round-{state.round:06d}"
        publish_folder(
            self._folder / name, files, Manifest("round", name, (), created_at, details={"round": state.round})
        )
        for old in sorted(self._folder.glob("round-*"))[:-KEEP_ROUNDS]:
            shutil.rmtree(old)


def _read_plan(path: Path) -> dict[str, object]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, object])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ArtifactCorrupt(
            f"{path} does not describe a run ({error})",
            consequence="nothing was changed",
            mend=f"restore it from a copy, or delete {path.parent} to start again",
        ) from error


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    return unpack_arrays(path.read_bytes(), str(path))


def _refuse_other_run(found: dict[str, object], wanted: dict[str, object], folder: Path) -> None:
    # the run's name is made of other settings, so it says least about what differs
    for name in sorted(wanted, key=lambda name: name == "run"):
        if name != "rounds" and found.get(name) != wanted[name]:
            raise StoreMismatch(
                f"{folder} holds a run with {name}={found.get(name)!r}",
                expected=f"{wanted[name]!r}",
                consequence="nothing was changed",
                mend="use the same settings to go on, or another --store",
            )


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
        if terms.unit == "client" and terms.delta * len(nodes) >= 1:
            raise InvalidSetting(
                f"delta {terms.delta} over {len(nodes)} nodes",
                expected=f"delta below 1/{len(nodes)}",
                mend="lower --delta",
            )
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
            (*state.history, intake.record(time.monotonic() - started, spend, epsilon)),
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
        return TrainRequest(
            run=self._plan.run,
            round=state.round + 1,
            base_version=state.adapter_sha256,
            strategy=self._strategy.name,
            trained=self._trained(state),
            encoder_sha256=self._plan.encoder_sha256,
            planned_steps=planned_steps,
            objective=self._plan.objective,
            privacy=self._plan.privacy,
            noise_multiplier=sigma,
        )

    def _trained(self, state: RunState) -> tuple[str, ...]:
        return self._strategy.trained(state.adapter, state.strategy_state)

    def _tensors(self, arrays: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(np.array(array)).to(self._device) for name, array in arrays.items()}
