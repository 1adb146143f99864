"""The round loop: plan, ask, validate, aggregate, evaluate, publish; resumable at every round.

After each round the adapter, the strategy's state and the history are on disk as one artifact, so a server that was
killed goes on from the last whole round to the same adapter. Flower's own ``Strategy.start`` cannot: it begins at round
1, waits for ever below its minimum of nodes, and ends with empty arrays when all clients fail.
"""

import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch

from common.clock import Clock
from common.errors import ArtifactCorrupt, InvalidSetting, RoundError, StoreMismatch, UpdateRejected
from common.ids import arrays_sha256, rng_for
from common.instructions import Objective, PrivacyTerms, TrainRequest
from common.manifests import Manifest
from common.privacy import PrivacyClaim
from common.progress import Progress
from common.store import pack_arrays, publish_folder, unpack_arrays, verify_folder, write_atomic
from common.updates import AdapterUpdate
from server.aggregate.base import Strategy
from server.fleet.base import Failure, Fleet
from server.validate import validate

KEEP_ROUNDS = 2
RUN_NAME = "run.json"


@dataclass(frozen=True, slots=True)
class RunPlan:
    """A whole federated run; the same plan on the same data gives the same adapter.

    Parameters
    ----------
    run
        Its name, part of every ledger entry.
    seed
        Of everything.
    rounds
        How many.
    cohort
        Nodes asked a round.
    strategy
        Name of the aggregation strategy.
    server_learning_rate
        Of the server's optimiser.
    encoder_sha256
        The base weights.
    objective, privacy
        What nodes do, and under which guarantee.
    min_replies
        A round with fewer usable updates fails.
    timeout_s
        Patience with the slowest node of a round.
    """

    run: str
    seed: int
    rounds: int
    cohort: int
    strategy: str
    server_learning_rate: float
    encoder_sha256: str
    objective: Objective
    privacy: PrivacyTerms
    min_replies: int = 1
    timeout_s: float = 600.0

    def __post_init__(self) -> None:
        for name in ("rounds", "cohort", "min_replies"):
            if getattr(self, name) < 1:
                raise InvalidSetting(f"{name}={getattr(self, name)}", expected=f"{name} >= 1")

    def cohort_of(self, number: int, nodes: tuple[int, ...]) -> tuple[int, ...]:
        """Return the nodes of a round, a fixed-size sample without replacement, sorted."""
        if self.cohort > len(nodes):
            raise InvalidSetting(f"a cohort of {self.cohort}", expected=f"at most the {len(nodes)} nodes there are")
        chosen = rng_for("cohort", self.seed, number).choice(len(nodes), size=self.cohort, replace=False)
        return tuple(sorted(nodes[int(index)] for index in chosen))

    def participations(self, nodes: tuple[int, ...]) -> Mapping[int, int]:
        """Return how many rounds each node takes part in; it depends on no data, so nodes may calibrate by it."""
        return Counter(node for number in range(1, self.rounds + 1) for node in self.cohort_of(number, nodes))


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A reply that was refused, and why."""

    client: str
    round: int
    reason: str


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """What happened in one round.

    Parameters
    ----------
    round
        From 1.
    planned, replied
        Nodes asked, and usable updates.
    failed
        Node id (as text) to reason.
    quarantined
        Refused replies.
    epsilon
        The largest that a client reported after this round, composed over its ledger; None without DP.
    reply_bytes
        Of all updates together.
    seconds
        ``train`` (waiting for nodes, with summing) and ``aggregate``.
    loss
        Mean training loss; None under DP, where nodes do not tell it.
    """

    round: int
    planned: int
    replied: int
    failed: Mapping[str, str]
    quarantined: tuple[Quarantined, ...]
    epsilon: float | None
    reply_bytes: int
    seconds: Mapping[str, float]
    loss: float | None


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
    ) -> None:
        self._plan, self._strategy, self._fleet, self._store = plan, strategy, fleet, store
        self._device, self._clock, self._progress = device, clock, progress

    def run(self, state: RunState, after_round: Callable[[RunState], None]) -> RunState:
        """Run the rounds that are left, calling `after_round` when each is on disk.

        Raises
        ------
        RoundError
            When a round has too few usable updates; the last whole round stays.
        """
        nodes = self._fleet.nodes()
        participations = self._plan.participations(nodes)
        while state.round < self._plan.rounds:
            state = self._one_round(state, nodes, participations)
            self._store.save(state, self._clock())
            after_round(state)
        return state

    def _one_round(self, state: RunState, nodes: tuple[int, ...], participations: Mapping[int, int]) -> RunState:
        number = state.round + 1
        version = state.adapter_sha256
        requests = {
            node: self._request(number, version, state, participations[node])
            for node in self._plan.cohort_of(number, nodes)
        }
        stage = f"round {number}/{self._plan.rounds}"
        self._progress(stage, 0, len(requests))
        intake = _Intake(number, requests, state.adapter, self._fleet, self._plan.timeout_s)
        started = time.monotonic()
        updates = intake.updates(lambda count: self._progress(stage, count, len(requests)))
        result = self._strategy.aggregate(self._tensors(state.adapter), self._tensors(state.strategy_state), updates)
        if result.clients < self._plan.min_replies:
            raise RoundError(
                f"round {number} has {result.clients} usable updates of {len(requests)}{intake.first_reason()}",
                expected=f"at least {self._plan.min_replies}",
                consequence=f"the model of round {state.round} stays",
                mend="mend the nodes and run the same command with --resume",
            )
        return RunState(
            number,
            {name: tensor.cpu().numpy() for name, tensor in result.adapter.items()},
            {name: tensor.cpu().numpy() for name, tensor in result.state.items()},
            (*state.history, intake.record(time.monotonic() - started)),
        )

    def _request(self, number: int, version: str, state: RunState, participations: int) -> TrainRequest:
        return TrainRequest(
            run=self._plan.run,
            round=number,
            base_version=version,
            strategy=self._strategy.name,
            trained=self._strategy.trained(state.adapter),
            encoder_sha256=self._plan.encoder_sha256,
            planned_steps=participations * self._plan.objective.local_steps,
            objective=self._plan.objective,
            privacy=self._plan.privacy,
        )

    def _tensors(self, arrays: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(np.array(array)).to(self._device) for name, array in arrays.items()}


class _Intake:
    """Replies of one round, sorted into usable updates, failures and quarantine."""

    def __init__(
        self,
        number: int,
        requests: Mapping[int, TrainRequest],
        adapter: Mapping[str, np.ndarray],
        fleet: Fleet,
        timeout_s: float,
    ) -> None:
        self._number, self._requests, self._adapter = number, requests, adapter
        self._fleet, self._timeout_s = fleet, timeout_s
        self.failed: dict[str, str] = {}
        self.quarantined: list[Quarantined] = []
        self._heard: set[int] = set()
        self._epsilons: list[float] = []
        self._losses: list[float] = []
        self._bytes = 0
        self._waiting = 0.0

    def updates(self, answered: Callable[[int], None]) -> Iterator[AdapterUpdate]:
        """Yield the usable updates in the order of the node ids."""
        replies = self._fleet.train(self._requests, self._adapter, timeout_s=self._timeout_s, answered=answered)
        while True:
            asked = time.monotonic()
            reply = next(replies, None)
            self._waiting += time.monotonic() - asked
            if reply is None:
                return
            if isinstance(reply.outcome, Failure):
                self.failed[str(reply.node)] = reply.outcome.reason
            elif self._accept(reply.node, reply.outcome):
                self._bytes += reply.received_bytes
                yield reply.outcome

    def _accept(self, node: int, update: AdapterUpdate) -> bool:
        """Tell whether an update is usable, and keep its public side; one that is not goes to quarantine."""
        meta = update.meta
        try:
            validate(update, self._requests[node], self._adapter)
            # by node, which the transport vouches for; the client's name is its own word and could be another's
            if node in self._heard:
                raise UpdateRejected(f"a second update of node {node}", expected="one a round")
        except UpdateRejected as error:
            self.quarantined.append(Quarantined(meta.client, self._number, str(error)))
            return False
        self._heard.add(node)
        if meta.epsilon is not None:
            self._epsilons.append(meta.epsilon)
        if "loss" in meta.metrics:
            self._losses.append(meta.metrics["loss"])
        return True

    def first_reason(self) -> str:
        """Return why the first reply was no use, as the end of a sentence; empty when all were."""
        reasons = [*self.failed.values(), *(each.reason for each in self.quarantined)]
        return f"; the first reason: {reasons[0]}" if reasons else ""

    def record(self, seconds: float) -> RoundRecord:
        """Return what happened in the `seconds` that the round took."""
        return RoundRecord(
            round=self._number,
            planned=len(self._requests),
            replied=len(self._heard),
            failed=self.failed,
            quarantined=tuple(self.quarantined),
            epsilon=max(self._epsilons, default=None),
            reply_bytes=self._bytes,
            seconds={"train": self._waiting, "aggregate": seconds - self._waiting},
            loss=float(np.mean(self._losses)) if self._losses else None,
        )
