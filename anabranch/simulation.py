"""A simulated federation on one machine: data dealt to nodes, rounds run, versions published."""

import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from anabranch.accounting import LentAccountant
from anabranch.engines import Engine, OnRay, in_process
from anabranch.loops import loop_for
from anabranch.nodes import NODES, write_configs, write_nodes
from anabranch.parts import Parts, owners
from anabranch.simulation_result import SimulationResult, describe, seconds_of
from anabranch.simulation_settings import SimulationSettings, privacy_terms
from anabranch.version import PROGRAM
from common.clock import Clock, wall_clock
from common.datasets.base import Dataset
from common.encoder.adapter import TextEncoder, initial_adapter
from common.encoder.cache import HiddenCache, encode_items, open_or_build
from common.encoder.device import resolve_device
from common.encoder.spec import EncoderSpec
from common.errors import BudgetExceeded, InvalidSetting, StoreMismatch
from common.events import Interaction
from common.ids import stable_hash
from common.instructions import PrivacyTerms
from common.manifests import Manifest
from common.progress import Progress, silent
from server.aggregate import strategy_named
from server.aggregate.base import RowAdam
from server.evaluate import control_scorers, quality_of, rank
from server.fleet.base import Fleet
from server.plan import RunPlan, least_threshold
from server.pool import ServerNoise
from server.registry import CURRENT, Registry
from server.release import Publisher, is_promoted, row_slices
from server.rounds import RoundStore, RunState
from server.starts import begin, first_state, newest_start, run_folder, start_from, started
from server.store_info import CATALOGUE_NAME, StoreInfo

ROUNDS = "rounds"
GPU_WORKERS = 4
"""Processes that share a GPU unless told otherwise: each holds more than a gigabyte there."""

__all__ = ["Simulation", "SimulationResult", "SimulationSettings", "privacy_terms", "simulate"]


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
    cache
        Folder of the encoder's frozen layers, when runs share one; else it is in the store.
    engine
        What carries the messages, where it is there already: Flower's own runtime, which called us. None starts the one
        that the settings name.
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
        cache: Path | None = None,
        engine: Engine | None = None,
    ) -> None:
        self._dataset, self._store, self._settings, self._given = dataset, store, settings, engine
        self._progress, self._note, self._clock = progress, note, clock
        self._cache = cache or store / "cache"

    def run(self) -> SimulationResult:
        """Run it.

        Raises
        ------
        StoreMismatch
            When the store holds another run, or this one and `resume` is off.
        RoundError
            When a round has too few usable updates.
        BudgetExceeded
            When the privacy budget allows no round at all; where it allows some, the run ends after them.
        EmptyData
            When no user has enough clicks.
        """
        began = time.monotonic()
        resolve_device(self._settings.device)  # refused before anything is written
        parts = Parts.of(self._dataset, self._settings.hide_cold, self._settings.seed)
        dealt = self._deal(parts)
        spec = EncoderSpec.from_name(self._settings.encoder)
        sha256 = spec.weights_sha256()
        self._refuse_large_ranks(spec)
        plan = self._plan(sha256)
        source = self._source()
        plan = self._started(plan, source)
        registry = self._open_registry(spec, sha256)
        folder = run_folder(self._store / ROUNDS, plan)
        rounds = RoundStore(folder, plan)
        begin(self._store / ROUNDS, plan)
        state = rounds.latest()
        self._refuse_unasked_resume(state)
        if state is not None and state.round >= plan.rounds and (done := _published(registry, state)):
            self._note(f"all {state.round} federated rounds are in the store; nothing to train")
            return SimulationResult(
                self._settings, state, done, seconds_of(state, 0.0, time.monotonic() - began), state.round
            )
        # the workers load their libraries while the items are encoded here
        with self._engine(dealt) as engine:
            encoder = TextEncoder.load(spec, self._settings.device)
            cache = open_or_build(self._cache, encoder, self._dataset.catalogue.texts, self._progress)
            resumed_from = state.round if state else 0
            state = state or self._first_state(encoder, plan, source or registry)
            # who holds a user's data is known only where the data is dealt here
            publisher = self._publisher(
                registry, encoder, cache, parts, owners(dealt) if engine.simulated else {}, plan
            )
            state, stopped = self._run_rounds(engine, folder, rounds, plan, publisher, state)
        evaluating = time.monotonic()
        manifest = self._publish(publisher, state)
        now = time.monotonic()
        return SimulationResult(
            self._settings, state, manifest, seconds_of(state, now - evaluating, now - began), resumed_from, stopped
        )

    def check(self) -> None:
        """Refuse what `run` would refuse for its settings alone; nothing is written or trained.

        Raises
        ------
        InvalidSetting
            When the guarantee cannot be kept with these settings.
        EmptyData
            When no user has enough clicks.
        """
        resolve_device(self._settings.device)
        self._deal(Parts.of(self._dataset, self._settings.hide_cold, self._settings.seed))
        self._plan("")

    # -- preparation ---------------------------------------------------------------------------------------------

    def _plan(self, encoder_sha256: str) -> RunPlan:
        settings = self._settings
        return RunPlan(
            run=self._run_name(),
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
            bad_share=settings.bad_share,
            ranks=settings.ranks,
            timeout_s=settings.timeout_s,
            uplink=settings.uplink,
            asynchronous=settings.asynchronous,
        )

    def _source(self) -> Registry | None:
        """Return the store of the version to start from; opened before anything is written."""
        if self._settings.from_version is None:
            return None
        return Registry.open(self._settings.from_store or self._store)

    def _started(self, plan: RunPlan, source: Registry | None) -> RunPlan:
        """Return the plan with where it starts: of the run begun last when it is gone on with, else as asked."""
        start = newest_start(self._store / ROUNDS) if self._settings.resume else None
        version = self._settings.from_version
        if start is not None and source is not None and version in source.names() and version != start.version:
            start = None  # another run than the one begun last is meant
        if start is None and source is not None and version is not None:
            start = start_from(source, version, self._store, self._dataset.name, plan.privacy)
        return plan if start is None else started(plan, start, self._store / ROUNDS)

    def _refuse_large_ranks(self, spec: EncoderSpec) -> None:
        if max(self._settings.ranks, default=1) > spec.rank:
            raise InvalidSetting(
                f"a node of rank {max(self._settings.ranks)}", expected=f"at most {spec.rank}, the adapter's own rank"
            )

    def _run_name(self) -> str:
        settings = self._settings
        special = [f"hidden {settings.hide_cold}"] if settings.hide_cold else []
        if (settings.since, settings.until) != (0.0, 1.0):
            special.append(f"from {settings.since} to {settings.until}")
        named = stable_hash(self._dataset.name, settings.seed, settings.strategy, settings.clients, *special)
        return f"run-{named:016x}"

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

    def _deal(self, parts: Parts) -> list[dict[str, list[Interaction]]]:
        """Give each node its users' interactions."""
        settings = self._settings
        dealt = parts.deal(settings.clients, settings.seed, settings.since, settings.until)
        self._refuse_large_delta(sum(map(len, dealt)))
        return dealt

    def _refuse_large_delta(self, users: int) -> None:
        """Refuse a delta that is no guarantee over all users, where one noise covers them all."""
        terms = self._settings.privacy
        if terms.undivided and terms.unit != "off" and terms.delta * users >= 1:
            raise InvalidSetting(
                f"delta {terms.delta} over {users} users", expected=f"delta below 1/{users}", mend="lower --delta"
            )

    def _first_state(self, encoder: TextEncoder, plan: RunPlan, source: Registry) -> RunState:
        if plan.start is not None:
            return first_state(source, plan.start, plan.strategy)
        shapes = {name: array.shape for name, array in encoder.adapter().items()}
        return RunState(0, initial_adapter(shapes, self._settings.seed), {})

    def _publisher(
        self,
        registry: Registry,
        encoder: TextEncoder,
        cache: HiddenCache,
        parts: Parts,
        owner: Mapping[str, int],
        plan: RunPlan,
    ) -> Publisher:
        seed, events = self._settings.seed, parts.events(self._dataset.catalogue)
        scorers = control_scorers(events, initial_vectors(encoder, cache, seed), seed)
        rankings = {name: rank(events, scorer, seed) for name, scorer in scorers.items()}
        controls = {name: quality_of(ranking.full, events.user, seed) for name, ranking in rankings.items()}
        slices = {name: row_slices(events, ranking, owner, seed) for name, ranking in rankings.items()}
        return Publisher(registry, encoder, cache, events, controls, plan, self._clock, slices, owner)

    def _publish(self, publisher: Publisher, state: RunState) -> Manifest:
        manifest = publisher.publish(state)
        if not is_promoted(manifest):
            self._note(f"{manifest.version} is kept but not promoted: {manifest.details['reason']}")
        return manifest

    # -- rounds --------------------------------------------------------------------------------------------------

    def _run_rounds(
        self,
        engine: Engine,
        folder: Path,
        rounds: RoundStore,
        plan: RunPlan,
        publisher: Publisher,
        state: RunState,
    ) -> tuple[RunState, str | None]:
        """Return the state after the last whole round, and why the run ended before the planned one, if it did."""
        settings, outcome = self._settings, [state]
        optimizer = RowAdam(learning_rate=settings.server_learning_rate)
        strategy = strategy_named(settings.strategy, optimizer, bad_share=settings.bad_share)

        def after_round(done: RunState) -> bool:
            outcome[0] = done
            self._note(describe(done.history[-1], plan))
            self._publish_if_due(publisher, done)
            return self._enough(publisher) is not None

        def conduct(fleet: Fleet, context: object) -> None:
            loop = loop_for(
                plan,
                strategy,
                fleet,
                rounds,
                device=_aggregation_device(settings.device),
                clock=self._clock,
                progress=self._progress,
                noise=ServerNoise(LentAccountant(), stable_hash("server secret", settings.seed)),
                simulated=engine.simulated,
            )
            loop.run(outcome[0], after_round)

        # a run that died between a round and its version makes up for it
        self._publish_if_due(publisher, state)
        stopped = self._enough(publisher)
        if stopped is None:
            try:
                engine.conduct(conduct, folder)
                stopped = self._enough(publisher)
            except BudgetExceeded as error:
                if outcome[0].round == 0:
                    raise
                stopped = str(error)
        if stopped is not None:
            self._note(f"stopped after round {outcome[0].round} of {plan.rounds}: {stopped}")
        return outcome[0], stopped

    def _publish_if_due(self, publisher: Publisher, state: RunState) -> None:
        every = self._settings.evaluate_every
        if every and state.round and state.round % every == 0 and not publisher.has(state):
            self._publish(publisher, state)

    def _enough(self, publisher: Publisher) -> str | None:
        """Return why the quality gate ends the run, or None."""
        patience = self._settings.patience
        if not patience or publisher.held_back_in_a_row() < patience:
            return None
        return f"the quality gate held back the last {patience} versions"

    def _engine(self, dealt: list[dict[str, list[Interaction]]]) -> AbstractContextManager[Engine]:
        settings, given, nodes = self._settings, self._given, self._store / NODES
        if given is not None and not given.simulated:
            return nullcontext(given)
        configs = write_nodes(nodes, dealt, settings, catalogue=self._store / CATALOGUE_NAME, cache=self._cache)
        on_gpu = resolve_device(settings.device).type == "cuda"
        workers = settings.workers or min(os.cpu_count() or 1, settings.cohort, *([GPU_WORKERS] if on_gpu else []))
        if given is None and settings.engine == "inprocess":
            return in_process(configs, workers)
        write_configs(nodes, configs)
        gpus = 1 / workers if on_gpu else 0.0
        ray = OnRay(nodes, settings.clients, workers=workers, address=settings.ray_address, gpus=gpus)
        return nullcontext(given or ray)


def initial_vectors(encoder: TextEncoder, cache: HiddenCache, seed: int) -> np.ndarray:
    """Return the item vectors before any training, float32 [items, h]: those of the base encoder."""
    shapes = {name: array.shape for name, array in encoder.adapter().items()}
    encoder.set_adapter(initial_adapter(shapes, seed))
    return encode_items(encoder, cache)


def _published(registry: Registry, state: RunState) -> Manifest | None:
    """Return the version that holds the state's adapter, if it is published and either current or held back."""
    current = registry.pointer(CURRENT)
    for manifest in registry.versions():
        if manifest.details.get("adapter_sha256") == state.adapter_sha256:
            return manifest if manifest.version == current or not is_promoted(manifest) else None
    return None


def _aggregation_device(name: str) -> Any:
    """Return where to aggregate: in float64, which Apple's GPUs lack."""
    device = resolve_device(name)
    return resolve_device("cpu") if device.type == "mps" else device


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
