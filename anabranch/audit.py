"""A privacy audit: what an attacker really learns, against what the ledger claims.

Canaries, made-up people, each get a coin flip: heads, and the canary is among a node's people. The node then trains by
the whole real path (`Node.answer`, the round loop, the strategy). The attacker knows everything but the coin flips, the
sampling and the noise: every adapter, every update, all people's clicks, and so the clipped gradient of each. It
estimates how much each canary took part, and guesses "in" for the largest and "out" for the smallest estimates. From
the number of right guesses follows a lower bound on epsilon (`anabranch.audit_bound`).

A bound above the claim refutes it. A bound below proves nothing: an attacker who is better might do better.
"""

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from anabranch.audit_bound import lower_bound
from client.dataset import NodeData
from client.node import Node
from client.train import TrainPlan, record_gradients, train
from common.clock import wall_clock
from common.encoder.adapter import TextEncoder, initial_adapter
from common.encoder.cache import HiddenCache
from common.encoder.device import resolve_device
from common.errors import InvalidSetting
from common.ids import rng_for, stable_hash
from common.instructions import Objective, PrivacyTerms, TrainRequest
from common.progress import Progress, silent
from common.updates import AdapterUpdate
from server.aggregate import strategy_named
from server.aggregate.base import RowAdam
from server.fleet.base import Reply
from server.plan import RunPlan
from server.rounds import RoundLoop, RoundStore, RunState

UNITS = ("user", "example")
NODE = 1
DRAWS = 4
"""Draws of a record's window and negatives, to estimate its gradient: which ones a step used is not known."""

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class AuditSettings:
    """What to audit, and how hard.

    Parameters
    ----------
    canaries
        Made-up people a run, each in or out by a coin flip. Few a run attack better: their gradients overlap less.
    guesses
        Guesses over all runs, half of them "in", half "out"; fixed before anything is seen. More can refute more.
    runs
        Independent trainings with canaries of their own; together they are one audit of ``runs * canaries`` flips,
        since no flip has a part in two of them.
    rounds
        Federated rounds a run.
    confidence
        Of the lower bound.
    privacy, objective
        As in `simulate`; noise is each node's own.
    strategy, server_learning_rate
        What makes the next adapter of an update.
    seed
        Of everything.
    noise
        False trains without noise while the ledger charges for it: the audit must find that out.
    """

    canaries: int = 16
    guesses: int = 48
    runs: int = 6
    rounds: int = 2
    confidence: float = 0.95
    privacy: PrivacyTerms = field(default_factory=lambda: PrivacyTerms("user", 1.0, 1e-5, 0.5))
    objective: Objective = field(default_factory=lambda: Objective(window=6, negatives=8, clip=0.1))
    strategy: str = "fedsvd"
    server_learning_rate: float = 1e-2
    seed: int = 0
    noise: bool = True

    def __post_init__(self) -> None:
        for name in ("canaries", "runs", "rounds"):
            if getattr(self, name) < 1:
                raise InvalidSetting(f"{name}={getattr(self, name)}", expected=f"{name} >= 1")
        if not 2 <= self.guesses <= self.canaries * self.runs or self.guesses % 2:
            raise InvalidSetting(
                f"{self.guesses} guesses", expected=f"an even number from 2 to the {self.canaries * self.runs} canaries"
            )
        if not 0 < self.confidence < 1:
            raise InvalidSetting(f"confidence {self.confidence}", expected="0 < confidence < 1")
        if self.privacy.unit not in UNITS or self.privacy.noise != "local":
            raise InvalidSetting(
                f"unit {self.privacy.unit!r} with noise {self.privacy.noise!r}",
                expected=f"unit {' or '.join(UNITS)}, and noise 'local'",
                mend="these are the ones that a single node keeps by itself",
            )


@dataclass(frozen=True, slots=True)
class AuditResult:
    """What came of it.

    Parameters
    ----------
    claim
        Epsilon that the ledger charged; the largest over the runs.
    bound
        Lower bound on epsilon.
    reachable
        The bound that all guesses right would give: an audit cannot refute a claim above it.
    correct, guesses, canaries
        Right guesses, of how many, on how many coin flips.
    """

    claim: float
    bound: float
    reachable: float
    correct: int
    guesses: int
    canaries: int

    @property
    def refuted(self) -> bool:
        """Whether the claim is false, as surely as the confidence says."""
        return self.bound > self.claim


def audit(
    people: Mapping[str, np.ndarray],
    encoder: TextEncoder,
    cache: HiddenCache,
    settings: AuditSettings,
    *,
    base: Arrays | None = None,
    progress: Progress = silent,
) -> AuditResult:
    """Audit the training of one node.

    Parameters
    ----------
    people
        User id to item rows in click order: those that the canaries hide among; may be empty.
    encoder, cache
        The shared BERT, and the hidden states of the catalogue.
    settings
        What to audit.
    base
        The adapter to start from; a fresh one when left out.
    progress
        Told of the rounds.
    """
    scores, truth, claims = [], [], []
    for run in range(settings.runs):
        trial = _Trial(people, encoder, cache, settings, run)
        claims.append(trial.train(base, progress))
        scores.append(trial.scores(progress))
        truth.append(trial.included)
    order = np.argsort(np.concatenate(scores), kind="stable")
    inside, half = np.concatenate(truth), settings.guesses // 2
    correct = int(np.sum(inside[order[-half:]]) + np.sum(~inside[order[:half]]))
    flips = len(inside)

    def bound(right: int) -> float:
        delta, confidence = settings.privacy.delta, settings.confidence
        return lower_bound(right, settings.guesses, delta=delta, canaries=flips, confidence=confidence)

    return AuditResult(max(claims), bound(correct), bound(settings.guesses), correct, settings.guesses, flips)


class _Trial:
    """One training run with its coin flips, and the attack on it."""

    def __init__(
        self,
        people: Mapping[str, np.ndarray],
        encoder: TextEncoder,
        cache: HiddenCache,
        settings: AuditSettings,
        run: int,
    ) -> None:
        self._encoder, self._cache, self._settings, self._run = encoder, cache, settings, run
        rng = rng_for("canaries", settings.seed, run)
        windows = rng.integers(0, len(cache), size=(settings.canaries, settings.objective.window))
        self._canaries = {f"canary-{number:06d}": window for number, window in enumerate(windows)}
        self.included = rng.random(settings.canaries) < 0.5
        chosen = {
            name: self._canaries[name] for name, inside in zip(self._canaries, self.included, strict=True) if inside
        }
        self._people = dict(people)
        self._data = NodeData({**self._people, **chosen}, len(cache))
        self._seen: list[tuple[Arrays, AdapterUpdate]] = []
        self._request: TrainRequest | None = None

    # -- the real path -------------------------------------------------------------------------------------------

    def train(self, base: Arrays | None, progress: Progress) -> float:
        """Run the rounds and return the claim."""
        settings = self._settings
        shapes = {name: array.shape for name, array in self._encoder.adapter().items()}
        start = initial_adapter(shapes, settings.seed) if base is None else base
        plan = RunPlan(
            run=f"audit-{self._run}",
            seed=settings.seed,
            rounds=settings.rounds,
            cohort=1,
            strategy=settings.strategy,
            server_learning_rate=settings.server_learning_rate,
            encoder_sha256=self._encoder.sha256,
            objective=settings.objective,
            privacy=settings.privacy,
        )
        with tempfile.TemporaryDirectory(prefix="anabranch-audit-") as folder:
            node = Node(
                client="audited",
                data=self._data,
                ledger_path=Path(folder) / "ledger.sqlite",
                secret_seed=stable_hash("audit", settings.seed, self._run) % 2**63,
            )
            loop = RoundLoop(
                plan,
                strategy_named(settings.strategy, RowAdam(learning_rate=settings.server_learning_rate)),
                _OneNode(self, node),
                RoundStore(Path(folder) / "rounds", plan),
                device=resolve_device("cpu"),
                clock=wall_clock,
                progress=silent,
            )
            stage = f"train, run {self._run + 1}/{settings.runs}"
            state = loop.run(RunState(0, start, {}), lambda done: progress(stage, done.round, settings.rounds))
        claimed = state.claim(settings.privacy).epsilon
        return float("inf") if claimed is None else claimed

    def answer(self, node: Node, request: TrainRequest, adapter: Arrays) -> AdapterUpdate:
        """Let the node answer, and keep what the attacker sees."""
        base = {name: np.array(array) for name, array in adapter.items()}
        update = node.answer(request, base, self._encoder, self._cache)
        if not self._settings.noise:
            seed = stable_hash("no noise", self._settings.seed, self._run, request.round)
            plan = self._plan(request, request.privacy.sample_rate, seed)
            update = replace(update, arrays=train(plan, base, self._data, self._encoder, self._cache).arrays)
        self._request = request
        self._seen.append((base, update))
        return update

    @staticmethod
    def _plan(request: TrainRequest, sample_rate: float, seed: int) -> TrainPlan:
        """Return the request's training without noise."""
        goal = request.objective
        return TrainPlan(
            trained=request.trained,
            unit=request.privacy.unit,
            sample_rate=sample_rate,
            local_steps=goal.local_steps,
            noise_multiplier=0.0,
            clip=goal.clip,
            window=goal.window,
            negatives=goal.negatives,
            temperature=goal.temperature,
            learning_rate=goal.learning_rate,
            seed=seed,
        )

    # -- the attack ----------------------------------------------------------------------------------------------

    def scores(self, progress: Progress) -> np.ndarray:
        """Return how much each canary seems to have taken part, float64 [canaries]: more is "in"."""
        total = np.zeros(len(self._canaries))
        for number, (base, update) in enumerate(self._seen, start=1):
            total += self._estimate(base, update)
            progress(f"attack, run {self._run + 1}/{self._settings.runs}", number, len(self._seen))
        return total

    def _estimate(self, base: Arrays, update: AdapterUpdate) -> np.ndarray:
        """Return the linear estimate of least mean square error of each canary's part in one update.

        The update times the expected records is a sum of clipped gradients, each there or not, and of noise. Its size
        is taken from what no gradient explains, so the attack adapts to noise that is missing.
        """
        rate = self._settings.privacy.sample_rate
        gradients = self._gradients(base)
        chance = np.where(np.arange(gradients.shape[1]) < len(self._canaries), rate / 2.0, rate)
        left = _flat(update.arrays) * update.meta.examples - gradients @ chance
        spread = np.sqrt(chance * (1.0 - chance))
        scaled = gradients * spread
        products = scaled.T @ scaled
        noise = self._noise_power(scaled, products, left)
        parts = np.linalg.solve(products + noise * np.eye(len(spread)), scaled.T @ left)
        return np.asarray((spread * parts)[: len(self._canaries)])

    def _noise_power(self, scaled: np.ndarray, products: np.ndarray, left: np.ndarray) -> float:
        size, columns = scaled.shape
        goal = self._settings.objective
        floor = 1e-9 * (goal.clip * goal.learning_rate) ** 2
        ridge = floor * np.eye(columns)
        unexplained = left - scaled @ np.linalg.solve(products + ridge, scaled.T @ left)
        return max(floor, float(np.square(unexplained).sum() / max(1, size - columns)))

    def _gradients(self, base: Arrays) -> np.ndarray:
        """Return what every canary, and then everybody else, adds to a step's sum, on average: float64 [d, people]."""
        assert self._request is not None  # noqa: S101  there is no update without a request
        plan = self._plan(self._request, 1.0, 0)
        total: np.ndarray | float = 0.0
        for draw in range(DRAWS):
            rng = rng_for("attack", self._settings.seed, self._run, draw)
            records = [
                record
                for held in (self._canaries, self._people)
                if held
                for record in NodeData(held, len(self._cache))
                .population(plan.unit, plan.window)
                .draw(1.0, plan.negatives, rng)
            ]
            total = total + record_gradients(plan, base, records, self._encoder, self._cache).astype(np.float64)
        return np.asarray(total).T / DRAWS


class _OneNode:
    """A fleet of the audited node, asked in this process."""

    def __init__(self, trial: _Trial, node: Node) -> None:
        self._trial, self._node = trial, node

    def nodes(self) -> tuple[int, ...]:
        """Return the one node."""
        return (NODE,)

    def train(
        self, requests: Mapping[int, TrainRequest], adapter: Arrays, *, timeout_s: float, answered: Any
    ) -> Iterator[Reply]:
        """Ask it."""
        yield Reply(NODE, self._trial.answer(self._node, requests[NODE], adapter))

    def ask(self, *_: object, **__: object) -> Iterator[Any]:
        """Refuse: one node has nobody to hide among."""
        raise InvalidSetting("a secret sum of one node", expected="plain updates")

    def errands(self) -> Any:
        """Refuse: what is audited goes by rounds."""
        raise InvalidSetting("an audit without rounds", expected="rounds")


def _flat(arrays: Arrays) -> np.ndarray:
    return np.concatenate([arrays[name].ravel() for name in sorted(arrays)]).astype(np.float64)
