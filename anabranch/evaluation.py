"""The federated learner beside what it must be compared with, on one data set and one protocol.

Controls: random, popularity, item-kNN, text without training. Trained rows, each a real `Simulation` in a store of its
own, so that an interrupted evaluation goes on where it was: one node that holds everything (the upper bound), federated
without privacy, federated under each privacy unit, place of the noise and epsilon.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from anabranch.evaluation_settings import CENTRALISED, EvaluationSettings
from anabranch.parts import TRAIN_SHARE, Parts, owners
from anabranch.provenance import commit, machine
from anabranch.simulation import Simulation, SimulationResult, SimulationSettings, initial_vectors
from common.clock import Clock, wall_clock
from common.datasets.base import Dataset
from common.encoder.adapter import TextEncoder
from common.encoder.cache import open_or_build
from common.encoder.spec import EncoderSpec
from common.progress import Progress, silent
from common.store import write_atomic
from server.artifact import ITEM_VECTORS
from server.evaluate import (
    HISTORY,
    NEGATIVES,
    TOP,
    Quality,
    Ranking,
    Scorer,
    TestEvents,
    by_text,
    control_scorers,
    quality_of,
    rank,
)
from server.gate import Difference, difference
from server.neighbours import MOST_ITEMS, by_neighbours, fit_neighbours
from server.registry import Registry
from server.release import row_slices
from server.slices import HEAD_SHARE, Rows, by_slice

GAP_DECAY, AGE_DECAY = 15.0, 4.0
"""Of the recency-aware item-kNN; the best on MovieLens-100K of the few that were tried."""


Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Point:
    """A version on the way: its round, its quality, and the epsilon spent by then (None without privacy)."""

    round: int
    quality: Mapping[str, Any]
    epsilon: float | None


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the evaluation.

    Parameters
    ----------
    quality, sampled
        In full rank, and among `NEGATIVES` sampled items.
    ranking
        What both come from.
    slices
        Slice name to metrics.
    trained
        What trained it; None for a control.
    points, epsilons
        Versions on the way; epsilon after each round.
    """

    quality: Quality
    sampled: Quality
    ranking: Ranking
    slices: Rows
    trained: SimulationResult | None = None
    points: tuple[Point, ...] = ()
    epsilons: tuple[float, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the keys of the command line's JSON."""
        told = {
            **self.quality.as_json(),
            "coverage": self.ranking.coverage,
            "us_per_event": 1e6 * self.ranking.seconds / len(self.ranking.full),
            "sampled": {**self.sampled.as_json(), "negatives": NEGATIVES, "inflated": True},
        }
        if self.trained is not None:
            whole = self.trained.as_json()
            kept = ("version", "rounds_run", "adapter_sha256", "privacy", "stopped", "clients", "seconds")
            told["run"] = {"strategy": self.trained.settings.strategy, **{key: whole[key] for key in kept}}
        return told


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All rows, and the protocol under which they were measured."""

    settings: EvaluationSettings
    protocol: Mapping[str, Any]
    events: TestEvents
    rows: Mapping[str, Row]

    def against(self, row: str, other: str) -> Difference:
        """Return the recall of `row` minus that of `other`, paired over users."""
        new, old = self.rows[row].ranking.hits, self.rows[other].ranking.hits
        return difference(new, old, self.events.user, self.settings.base.seed)

    @property
    def trained(self) -> dict[str, Row]:
        """The rows that were trained."""
        return {name: row for name, row in self.rows.items() if row.trained is not None}

    @property
    def controls(self) -> dict[str, Row]:
        """The rows that were not."""
        return {name: row for name, row in self.rows.items() if row.trained is None}

    def as_json(self) -> dict[str, Any]:
        """Return the keys of the command line's JSON, without the report's path."""
        curves = {
            name: [{"round": point.round, "epsilon": point.epsilon, **point.quality} for point in row.points]
            for name, row in self.trained.items()
        }
        return {
            "protocol": dict(self.protocol),
            "rows": {name: row.as_json() for name, row in self.rows.items()},
            "slices": by_slice({name: row.slices for name, row in self.rows.items()}),
            "curves": curves,
            "differences": {
                name: {other: _told(self.against(name, other)) for other in self.rows if other != name}
                for name in self.trained
            },
        }


def _told(found: Difference) -> dict[str, Any]:
    return {"recall@10": found.mean, "ci95": list(found.ci95), "worse": found.is_worse, "better": found.is_better}


class FederatedEvaluation:
    """Trains and measures every row.

    Parameters
    ----------
    dataset
        Items and interactions.
    store
        A folder; each trained row gets a store of its own in it.
    settings
        What to evaluate.
    progress, note
        Told how far it is; told in words.
    clock
        Wall clock.
    """

    def __init__(
        self,
        dataset: Dataset,
        store: Path,
        settings: EvaluationSettings,
        *,
        progress: Progress = silent,
        note: Note = lambda text: None,
        clock: Clock = wall_clock,
    ) -> None:
        self._dataset, self._store, self._settings = dataset, store, settings
        self._progress, self._note, self._clock = progress, note, clock
        base = settings.base
        self._parts = Parts.of(dataset, base.hide_cold, base.seed)
        self._events = self._parts.events(dataset.catalogue)
        self._owner = owners(self._parts.deal(base.clients, base.seed))

    def run(self) -> Evaluation:
        """Train what is not trained yet, and measure.

        Raises
        ------
        StoreMismatch
            When the folder holds an evaluation with other settings.
        AnabranchError
            See `Simulation.run`; what was finished stays.
        """
        base = self._settings.base
        for name, settings in self._settings.runs().items():  # an hour later would be too late
            self._simulation(name, settings).check()
        encoder = TextEncoder.load(EncoderSpec.from_name(base.encoder), base.device)
        cache = open_or_build(self._cache, encoder, self._dataset.catalogue.texts, self._progress)
        zero_shot = initial_vectors(encoder, cache, base.seed)
        rows = {name: self._control(scorer) for name, scorer in self._controls(zero_shot).items()}
        runs = self._settings.runs()
        for number, (name, settings) in enumerate(runs.items(), start=1):
            self._note(f"{number}/{len(runs)} {name}: {settings.rounds} rounds over {settings.clients} nodes")
            rows[name] = self._trained(name, settings, rows["zero_shot"].quality)
        return Evaluation(self._settings, self._protocol(encoder), self._events, rows)

    @property
    def _cache(self) -> Path:
        return self._store / "cache"

    def _controls(self, zero_shot: np.ndarray) -> dict[str, Scorer]:
        scorers = dict(control_scorers(self._events, zero_shot, self._settings.base.seed))
        if len(self._events.candidates) > MOST_ITEMS:
            self._note(f"item_knn is left out: more than {MOST_ITEMS} items")
            return scorers
        catalogue = self._dataset.catalogue
        hidden = self._parts.hidden_rows(catalogue)
        train = [(user, row) for user, row in self._parts.clicks(catalogue)[0] if row not in hidden]
        fitted = (fit_neighbours(train, self._events.candidates, gap_decay=decay) for decay in (None, GAP_DECAY))
        plain, recent = fitted
        text = scorers.pop("zero_shot")
        return scorers | {
            "item_knn": by_neighbours(self._events, plain),
            "item_knn_recent": by_neighbours(self._events, recent, age_decay=AGE_DECAY),
            "zero_shot": text,
        }

    def _control(self, scorer: Scorer) -> Row:
        seed = self._settings.base.seed
        ranking = rank(self._events, scorer, seed)
        full, sampled = (quality_of(ranks, self._events.user, seed) for ranks in (ranking.full, ranking.sampled))
        return Row(full, sampled, ranking, row_slices(self._events, ranking, self._owner, seed))

    def _simulation(self, name: str, settings: SimulationSettings) -> Simulation:
        def report(stage: str, done: int, total: int) -> None:
            self._progress(f"{name}: {stage}", done, total)

        return Simulation(
            self._dataset,
            self._store / name,
            settings,
            progress=report,
            note=lambda text: self._note(f"{name}: {text}"),
            clock=self._clock,
            cache=self._cache,
        )

    def _trained(self, name: str, settings: SimulationSettings, before: Quality) -> Row:
        result = self._simulation(name, settings).run()
        registry = Registry.open(self._store / name)
        vectors = registry.arrays(result.manifest.version, ITEM_VECTORS)["item_vectors"]
        # the last version, held back or not: to pick the best by these events would be to train on them
        row = self._control(by_text(self._events, vectors))
        epsilons = _epsilons(result)
        start = Point(0, before.as_json(), 0.0 if epsilons else None)
        points = [start]
        for manifest in registry.versions():
            done = int(manifest.details["round"])
            points.append(Point(done, manifest.metrics["global"], epsilons[done - 1] if epsilons else None))
        return replace(row, trained=result, points=tuple(points), epsilons=epsilons)

    def _protocol(self, encoder: TextEncoder) -> dict[str, Any]:
        base, parts, events = self._settings.base, self._parts, self._events
        return {
            "data": self._dataset.name,
            "split": f"one moment for everybody: the first {TRAIN_SHARE:.0%} of the positive interactions train",
            "train_interactions": len(parts.train),
            "train_interactions_visible": len(parts.visible()),
            "test_interactions": len(parts.test),
            "test_events": len(events),
            "test_users": len(events.users),
            "training_users": len(self._owner),
            "candidates": len(events.candidates),
            "hide_cold": base.hide_cold,
            "cold_candidates": int((events.popularity == 0).sum()),
            "head": f"the most clicked items that hold {HEAD_SHARE:.0%} of the training clicks",
            "ranking": f"full: all unseen candidates, ties against the model, top {TOP}; "
            f"sampled: {NEGATIVES} unseen candidates at random, which inflates every figure",
            "history": f"live, the last {HISTORY} clicks, the model frozen",
            "interval": "95%, bootstrap over users, 1000 draws; differences paired over users",
            "clients": base.clients,
            "cohort": base.cohort,
            "rounds": base.rounds,
            "local_steps": base.objective.local_steps,
            "sample_rate": base.privacy.sample_rate,
            "records_expected": self._records(),
            "strategy": base.strategy,
            "server_learning_rate": base.server_learning_rate,
            "centralised": f"one node, strategy {self._settings.runs()[CENTRALISED].strategy}, as many records",
            "objective": msgspec.to_builtins(base.objective),
            "delta": base.privacy.delta,
            "encoder": encoder.spec.name,
            "encoder_sha256": encoder.sha256,
            "seed": base.seed,
            "commit": commit(),
            "machine": dict(machine(str(encoder.device))),
        }

    def _records(self) -> float:
        base = self._settings.base
        a_step = len(self._owner) * base.cohort / base.clients * base.privacy.sample_rate
        return a_step * base.objective.local_steps * base.rounds


def _epsilons(result: SimulationResult) -> tuple[float, ...]:
    """Return what was spent after each round, the most of any client so far; empty without privacy."""
    if result.settings.privacy.unit == "off":
        return ()
    told = [record.epsilon or 0.0 for record in result.state.history]
    return tuple(float(each) for each in np.maximum.accumulate(told))


def save_json(evaluation: Mapping[str, Any], folder: Path) -> Path:
    """Write the figures behind a report as ``evaluation.json`` and return its path."""
    path = folder / "evaluation.json"
    write_atomic(path, msgspec.json.format(msgspec.json.encode(evaluation), indent=2) + b"\n")
    return path
