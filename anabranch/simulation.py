"""A simulated federation on one machine: data dealt to nodes, rounds run, versions published."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flwr.app import Context, RecordDict

from anabranch.accounting import LentAccountant
from anabranch.version import PROGRAM
from common.clock import Clock, wall_clock
from common.datasets.base import Dataset
from common.datasets.files import write_interactions
from common.datasets.split import global_time_split, partition_users, positives
from common.encoder.adapter import TextEncoder, initial_adapter, resolve_device
from common.encoder.cache import HiddenCache, encode_items, open_or_build
from common.encoder.spec import DEFAULT_ENCODER, EncoderSpec
from common.errors import EmptyData, InvalidSetting, StoreMismatch, UnknownName
from common.events import Interaction
from common.ids import stable_hash
from common.instructions import Objective, PrivacyTerms
from common.items import Catalogue
from common.manifests import Manifest
from common.privacy import Noise, PrivacyUnit
from common.progress import Progress, silent
from server.aggregate import STRATEGIES, strategy_named
from server.aggregate.base import RowAdam
from server.app import make_app
from server.evaluate import TestEvents, build_test, control_rows
from server.fleet.base import Fleet
from server.fleet.inprocess import InProcessGrid
from server.intake import RoundRecord
from server.plan import RunPlan, least_threshold
from server.pool import ServerNoise
from server.registry import CATALOGUE_NAME, CURRENT, Registry, StoreInfo
from server.release import Publisher
from server.rounds import RoundLoop, RoundStore, RunState

ENGINES = ("inprocess",)
UNITS: tuple[PrivacyUnit, ...] = ("user", "example", "client", "off")
NOISES: tuple[Noise, ...] = ("local", "server", "shared")
TRAIN_SHARE = 0.8
MIN_CLICKS = 2
"""A user needs this many training clicks to take part."""


@dataclass(frozen=True, slots=True)
class SimulationSettings:
    """What to simulate.

    Parameters
    ----------
    clients, cohort, rounds
        Nodes, nodes a round, rounds.
    strategy
        "fedsvd" or "fedit".
    privacy, objective
        Handed to the nodes. With unit "client" and a trusted server that adds the noise, each node is asked by a chance
        of its own, ``cohort / clients``, and the guarantee counts on it.
    server_learning_rate
        Of the server's optimiser.
    engine
        "inprocess".
    encoder
        Name, hub id or folder.
    device
        "auto", "cpu", "cuda" or "mps".
    seed
        Of everything; the same seed and data give the same adapter.
    workers
        Processes of the in-process fleet; 0 means one a core.
    evaluate_every
        Rounds between published versions; 0 publishes only the last.
    resume
        Go on from the last whole round of the store.
    secure_aggregation, colluders
        The server learns only the sum of a cohort's updates; so many of its nodes may tell the server all they know.
    min_replies
        A round with fewer usable updates fails; 0: one, or two thirds of the cohort under secure aggregation.
    """

    clients: int = 10
    cohort: int = 10
    rounds: int = 12
    strategy: str = "fedsvd"
    privacy: PrivacyTerms = field(default_factory=PrivacyTerms)
    objective: Objective = field(default_factory=Objective)
    server_learning_rate: float = 1e-2
    engine: str = "inprocess"
    encoder: str = DEFAULT_ENCODER
    device: str = "auto"
    seed: int = 0
    workers: int = 0
    evaluate_every: int = 0
    resume: bool = False
    secure_aggregation: bool = False
    colluders: int = 0
    min_replies: int = 0

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise UnknownName("engine", self.engine, list(ENGINES), mend="leave out --engine")
        if self.strategy not in STRATEGIES:
            raise UnknownName("strategy", self.strategy, list(STRATEGIES))
        if self.clients < 1 or not 1 <= self.cohort <= self.clients:
            raise InvalidSetting(
                f"a cohort of {self.cohort} out of {self.clients} clients", expected="1 <= cohort <= clients"
            )


def privacy_terms(unit: str, *, epsilon: float, delta: float, sample_rate: float, noise: str = "local") -> PrivacyTerms:
    """Return the terms for a unit and a place of the noise, given by name.

    Raises
    ------
    UnknownName
        Another unit than `UNITS`, another place than `NOISES`.
    """
    if unit not in UNITS:
        raise UnknownName("privacy unit", unit, list(UNITS))
    if noise not in NOISES:
        raise UnknownName("place of the noise", noise, list(NOISES))
    return PrivacyTerms(unit, epsilon, delta, sample_rate, noise)


@dataclass(frozen=True, slots=True)
class SimulationResult:
    """What a simulation did; `as_json` has the keys of the command line."""

    settings: SimulationSettings
    state: RunState
    manifest: Manifest
    seconds: Mapping[str, float]
    resumed_from: int

    def as_json(self) -> dict[str, Any]:
        """Return one JSON-ready mapping."""
        history = self.state.history
        replies = sum(record.replied for record in history)
        claim = self.manifest.privacy
        return {
            "version": self.manifest.version,
            "strategy": self.settings.strategy,
            "engine": self.settings.engine,
            "seed": self.settings.seed,
            "rounds_run": self.state.round,
            "resumed_from": self.resumed_from,
            "adapter_sha256": self.state.adapter_sha256,
            "clients": {
                "planned": sum(record.planned for record in history),
                "replied": replies,
                "failed": sum(len(record.failed) for record in history),
                "failures": [
                    f"round {each.round}, node {node}: {why}" for each in history for node, why in each.failed.items()
                ],
                "quarantined": [
                    {"client": q.client, "round": q.round, "reason": q.reason}
                    for each in history
                    for q in each.quarantined
                ],
            },
            "privacy": {
                "unit": claim.unit if claim else "off",
                "epsilon": claim.epsilon if claim else None,
                "delta": claim.delta if claim else None,
                "budget": claim.budget if claim else None,
                "accountant": claim.accountant if claim else "none",
            },
            "bytes_per_client": sum(record.reply_bytes for record in history) // max(1, replies),
            "metrics": dict(self.manifest.metrics),
            "seconds": dict(self.seconds),
        }


class Simulation:
    """One federated run over a data set, into a store.

    Parameters
    ----------
    dataset
        Items and interactions.
    store
        Folder of the store; made when missing.
    settings
        What to run.
    progress, note
        Told how far it is; told in words.
    clock
        Wall clock.
    """

    def __init__(
        self,
        dataset: Dataset,
        store: Path,
        settings: SimulationSettings,
        *,
        progress: Progress = silent,
        note: Callable[[str], None] = lambda text: None,
        clock: Clock = wall_clock,
    ) -> None:
        self._dataset, self._store, self._settings = dataset, store, settings
        self._progress, self._note, self._clock = progress, note, clock

    def run(self) -> SimulationResult:
        """Run it.

        Raises
        ------
        StoreMismatch
            When the store holds another run, or this one and `resume` is off.
        RoundError
            When a round has too few usable updates.
        EmptyData
            When no user has enough clicks.
        """
        began = time.monotonic()
        resolve_device(self._settings.device)  # refused before anything is written
        train, test = global_time_split(positives(self._dataset), TRAIN_SHARE)
        owners = self._deal(train)
        spec = EncoderSpec.from_name(self._settings.encoder)
        sha256 = spec.weights_sha256()
        plan = self._plan(sha256)
        registry = self._open_registry(spec, sha256)
        rounds = RoundStore(self._store / "rounds", plan)
        state = rounds.latest()
        self._refuse_unasked_resume(state)
        if state is not None and state.round >= plan.rounds and (done := _published(registry, state)):
            self._note(f"all {state.round} federated rounds are in the store; nothing to train")
            return SimulationResult(
                self._settings, state, done, _seconds(state, 0.0, time.monotonic() - began), state.round
            )
        # the workers load their libraries while the items are encoded here
        with self._fleet(owners) as grid:
            encoder = TextEncoder.load(spec, self._settings.device)
            cache = open_or_build(self._store / "cache", encoder, self._dataset.catalogue.texts, self._progress)
            state, resumed_from = state or self._first_state(encoder), state.round if state else 0
            publisher = self._publisher(registry, encoder, cache, (train, test), plan)
            state = self._run_rounds(grid, rounds, plan, publisher, state)
        evaluating = time.monotonic()
        manifest = publisher.publish(state)
        now = time.monotonic()
        return SimulationResult(
            self._settings, state, manifest, _seconds(state, now - evaluating, now - began), resumed_from
        )

    # -- preparation ---------------------------------------------------------------------------------------------

    def _plan(self, encoder_sha256: str) -> RunPlan:
        settings = self._settings
        return RunPlan(
            run=f"run-{stable_hash(self._dataset.name, settings.seed, settings.strategy, settings.clients):016x}",
            seed=settings.seed,
            rounds=settings.rounds,
            cohort=settings.cohort,
            strategy=settings.strategy,
            server_learning_rate=settings.server_learning_rate,
            encoder_sha256=encoder_sha256,
            objective=settings.objective,
            privacy=self._terms(),
            min_replies=self._min_replies(),
            secure_aggregation=settings.secure_aggregation,
            colluders=settings.colluders,
        )

    def _terms(self) -> PrivacyTerms:
        """Return the terms with the cohort rate that the rounds will really use."""
        settings, terms = self._settings, self._settings.privacy
        if (terms.unit, terms.noise) == ("client", "server") and not settings.secure_aggregation:
            return replace(terms, cohort_rate=settings.cohort / settings.clients)
        return terms

    def _min_replies(self) -> int:
        settings = self._settings
        if settings.secure_aggregation:
            return settings.min_replies or least_threshold(settings.cohort, settings.colluders)
        return settings.min_replies or 1

    def _open_registry(self, spec: EncoderSpec, encoder_sha256: str) -> Registry:
        info = StoreInfo(
            encoder=spec.name,
            encoder_sha256=encoder_sha256,
            data=self._dataset.name,
            created_at=self._clock(),
            program=PROGRAM,
        )
        return Registry.create(self._store, info, self._dataset.catalogue)

    def _refuse_unasked_resume(self, state: RunState | None) -> None:
        if state is not None and not self._settings.resume:
            raise StoreMismatch(
                f"{self._store} already holds {state.round} rounds of this run",
                expected="an empty store, or --resume",
                consequence="nothing was changed",
                mend="add --resume to go on, or choose another --store",
            )

    def _deal(self, train: Sequence[Interaction]) -> list[dict[str, list[Interaction]]]:
        """Give each node its users' interactions."""
        by_user: dict[str, list[Interaction]] = {}
        for event in train:
            by_user.setdefault(event.user_id, []).append(event)
        usable = {user: events for user, events in by_user.items() if len(events) >= MIN_CLICKS}
        if not usable:
            raise EmptyData(
                f"data set {self._dataset.name!r} has no user with {MIN_CLICKS} positive training interactions",
                expected="at least one",
                mend="use more data",
            )
        self._refuse_large_delta(len(usable))
        dealt = partition_users(usable, self._settings.clients, self._settings.seed)
        return [{user: usable[user] for user in dealt[node]} for node in sorted(dealt)]

    def _refuse_large_delta(self, users: int) -> None:
        """Refuse a delta that is no guarantee over all users, where one noise covers them all."""
        terms = self._settings.privacy
        if terms.undivided and terms.unit != "off" and terms.delta * users >= 1:
            raise InvalidSetting(
                f"delta {terms.delta} over {users} users", expected=f"delta below 1/{users}", mend="lower --delta"
            )

    def _first_state(self, encoder: TextEncoder) -> RunState:
        shapes = {name: array.shape for name, array in encoder.adapter().items()}
        return RunState(0, initial_adapter(shapes, self._settings.seed), {})

    def _publisher(
        self,
        registry: Registry,
        encoder: TextEncoder,
        cache: HiddenCache,
        split: tuple[Sequence[Interaction], Sequence[Interaction]],
        plan: RunPlan,
    ) -> Publisher:
        events = _test_events(split, self._dataset.catalogue)
        shapes = {name: array.shape for name, array in encoder.adapter().items()}
        encoder.set_adapter(initial_adapter(shapes, self._settings.seed))
        controls = control_rows(events, encode_items(encoder, cache), self._settings.seed)
        return Publisher(registry, encoder, cache, events, controls, plan, self._clock)

    # -- rounds --------------------------------------------------------------------------------------------------

    def _run_rounds(
        self,
        grid: InProcessGrid,
        rounds: RoundStore,
        plan: RunPlan,
        publisher: Publisher,
        state: RunState,
    ) -> RunState:
        settings, outcome = self._settings, [state]
        strategy = strategy_named(settings.strategy, RowAdam(learning_rate=settings.server_learning_rate))

        def after_round(done: RunState) -> None:
            self._note(_describe(done.history[-1], plan))
            if settings.evaluate_every and done.round % settings.evaluate_every == 0:
                publisher.publish(done)

        def conduct(fleet: Fleet, context: Context) -> None:
            loop = RoundLoop(
                plan,
                strategy,
                fleet,
                rounds,
                device=_aggregation_device(settings.device),
                clock=self._clock,
                progress=self._progress,
                noise=ServerNoise(LentAccountant(), stable_hash("server secret", settings.seed)),
            )
            outcome[0] = loop.run(outcome[0], after_round)

        make_app(conduct)(grid, Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={}))
        return outcome[0]

    def _fleet(self, owners: list[dict[str, list[Interaction]]]) -> AbstractContextManager[InProcessGrid]:
        configs = []
        for node, users in enumerate(owners):
            folder = self._store / "clients" / f"node-{node:05d}"
            write_interactions(folder / "interactions.jsonl", (event for events in users.values() for event in events))
            configs.append(
                {
                    "client": f"node-{node:05d}",
                    "interactions": str(folder / "interactions.jsonl"),
                    "ledger": str(folder / "ledger.sqlite"),
                    "catalogue": str(self._store / CATALOGUE_NAME),
                    "cache": str(self._store / "cache"),
                    "encoder": self._settings.encoder,
                    "device": self._settings.device,
                    "secret-seed": str(stable_hash("secret", self._settings.seed, node) % 2**63),
                }
            )
        workers = self._settings.workers or min(os.cpu_count() or 1, self._settings.cohort)
        # one thread each, however many workers: sums then come out the same
        return InProcessGrid("client.app:app", configs, workers=workers, threads=1)


def _published(registry: Registry, state: RunState) -> Manifest | None:
    """Return the version that holds the state's adapter, if it is published and current."""
    if registry.pointer(CURRENT) is None:
        return None
    manifest = registry.current()
    return manifest if manifest.details.get("adapter_sha256") == state.adapter_sha256 else None


def _seconds(state: RunState, evaluate: float, total: float) -> dict[str, float]:
    """Return where the time went; training and aggregation include earlier runs of these rounds."""
    return {
        "train": sum(record.seconds["train"] for record in state.history),
        "aggregate": sum(record.seconds["aggregate"] for record in state.history),
        "evaluate": evaluate,
        "total": total,
    }


def _aggregation_device(name: str) -> Any:
    """Return where to aggregate: in float64, which Apple's GPUs lack."""
    device = resolve_device(name)
    return resolve_device("cpu") if device.type == "mps" else device


def _test_events(split: tuple[Sequence[Interaction], Sequence[Interaction]], catalogue: Catalogue) -> TestEvents:
    train, test = (
        [(event.user_id, row) for event in part if (row := catalogue.index(event.item_id)) is not None]
        for part in split
    )
    return build_test(train, test, len(catalogue))


def _describe(record: RoundRecord, plan: RunPlan) -> str:
    bad = len(record.failed) + len(record.quarantined)
    spent = "" if record.epsilon is None else f", epsilon so far {record.epsilon:.2f} of {plan.privacy.epsilon:g}"
    return (
        f"round {record.round}/{plan.rounds}: {record.replied} of {record.planned} nodes"
        f"{f', {bad} unusable' if bad else ''}{spent} ({record.seconds['train']:.1f} s)"
    )


def simulate(
    dataset: Dataset,
    store: Path | str,
    settings: SimulationSettings | None = None,
    *,
    progress: Progress = silent,
    note: Callable[[str], None] = lambda text: None,
) -> SimulationResult:
    """Run federated rounds over a data set and publish the global model into a store.

    Parameters
    ----------
    dataset
        For example ``anabranch.load_dataset("movielens-100k", notice=print)``.
    store
        Folder of models; made when missing.
    settings
        What to run; the defaults train under user-level differential privacy with epsilon 8.
    progress, note
        Told how far it is; told in words.

    Raises
    ------
    AnabranchError
        See `Simulation.run`.
    """
    return Simulation(dataset, Path(store), settings or SimulationSettings(), progress=progress, note=note).run()
