"""Secure aggregation whole: real ClientApp, real messages, worker processes, real ledgers, nodes that really fail."""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from anabranch.accounting import LentAccountant
from anabranch.simulation import Simulation, SimulationResult, SimulationSettings
from client.dataset import NodeData
from client.dp import epsilon_of
from client.node import Node, SecretSum
from common.datasets.files import read_catalogue, read_interactions, write_catalogue, write_interactions
from common.encoder.adapter import TextEncoder, initial_adapter
from common.encoder.cache import open_or_build
from common.encoder.spec import EncoderSpec
from common.errors import InvalidSetting, RoundError
from common.fixed_point import flatten
from common.instructions import Objective, PrivacyTerms, TrainRequest
from common.privacy import Noise, PrivacySpend, PrivacyUnit
from common.progress import silent
from common.updates import AdapterUpdate
from server.fleet.flower import GridFleet
from server.fleet.inprocess import InProcessGrid
from server.plan import RunPlan
from server.pool import ServerNoise
from server.rounds import RoundLoop, RoundStore, RunState
from tests.integration.failing_app import FAILURE
from tests.integration.test_federated import DELTA, ledger_epsilons, make_dataset, not_lower
from tests.server.test_pool import Recording

NODES = 4
STAGES = ("AskKeys", "AskShares", "AskUpdate", "AskUnmasking")
GOAL = Objective(window=4, negatives=3)


def settings_for(bert: Path, unit: PrivacyUnit, noise: Noise, **changes: object) -> SimulationSettings:
    epsilon = float("inf") if unit == "off" else 8.0
    settings = SimulationSettings(
        clients=NODES,
        cohort=NODES,
        rounds=2,
        privacy=PrivacyTerms(unit, epsilon, DELTA, 1.0, noise),
        objective=GOAL,
        encoder=str(bert),
        device="cpu",
        workers=1,
        secure_aggregation=noise == "shared",
    )
    return replace(settings, **changes)  # type: ignore[arg-type]  # by name


def simulate(store: Path, settings: SimulationSettings) -> SimulationResult:
    return Simulation(make_dataset(), store, settings).run()


@pytest.fixture(scope="module")
def shared(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SimulationResult]:
    """Run once with shares of the noise; what others must equal."""
    store = tmp_path_factory.mktemp("shared") / "store"
    return store, simulate(store, settings_for(tiny_bert, "user", "shared"))


def test_a_shared_run_publishes_its_claim_and_charges_every_node(shared: tuple[Path, SimulationResult]) -> None:
    store, result = shared
    told = result.as_json()
    assert told["clients"]["replied"] == 2 * NODES
    assert told["privacy"]["unit"] == "user"
    epsilons = ledger_epsilons(store)
    assert len(epsilons) == NODES
    assert told["privacy"]["epsilon"] == pytest.approx(max(epsilons.values()), abs=1e-6)
    assert 0.8 * 8.0 < told["privacy"]["epsilon"] <= 8.0
    assert told["bytes_per_client"] == 2 * sum(
        array.nbytes for name, array in result.state.adapter.items() if "lora_B" in name
    )


@pytest.mark.slow
def test_the_same_seed_gives_the_same_adapter_whichever_worker_serves_a_stage(
    shared: tuple[Path, SimulationResult], tiny_bert: Path, tmp_path: Path
) -> None:
    again = simulate(tmp_path / "store", settings_for(tiny_bert, "user", "shared", workers=2))
    assert again.state.adapter_sha256 == shared[1].state.adapter_sha256
    assert ledger_epsilons(tmp_path / "store") == ledger_epsilons(shared[0])


@pytest.mark.slow
def test_stopped_and_resumed_it_ends_the_same(
    shared: tuple[Path, SimulationResult], tiny_bert: Path, tmp_path: Path
) -> None:
    """Killed after the first round: noise was sized for two, so the plan is whole from the start."""
    settings = settings_for(tiny_bert, "user", "shared")
    simulation = Simulation(make_dataset(), tmp_path / "store", settings, note=_stop_after("round 1/2"))
    with pytest.raises(KeyboardInterrupt):
        simulation.run()
    before = ledger_epsilons(tmp_path / "store")
    resumed = simulate(tmp_path / "store", replace(settings, resume=True))
    assert resumed.resumed_from == 1
    assert resumed.state.adapter_sha256 == shared[1].state.adapter_sha256
    assert not_lower(before, ledger_epsilons(tmp_path / "store"))
    assert ledger_epsilons(tmp_path / "store") == ledger_epsilons(shared[0])


def _stop_after(words: str) -> Callable[[str], None]:
    def note(text: str) -> None:
        if words in text:
            raise KeyboardInterrupt

    return note


@pytest.mark.parametrize(
    ("unit", "noise", "changes"),
    [
        pytest.param("user", "server", {}, marks=pytest.mark.slow),
        pytest.param("client", "server", {"cohort": 2}, marks=pytest.mark.slow),  # drawn by chance
        pytest.param(
            "client", "shared", {"objective": replace(GOAL, local_steps=2), "colluders": 1}, marks=pytest.mark.slow
        ),
    ],
)
def test_each_place_of_the_noise_is_a_whole_run_within_its_budget(
    tiny_bert: Path, tmp_path: Path, unit: PrivacyUnit, noise: Noise, changes: dict[str, object]
) -> None:
    settings = settings_for(tiny_bert, unit, noise, privacy=PrivacyTerms(unit, 8.0, 1e-2, 1.0, noise), **changes)
    first, second = (simulate(tmp_path / f"{workers}", replace(settings, workers=workers)) for workers in (1, 2))
    assert first.state.adapter_sha256 == second.state.adapter_sha256
    privacy = first.as_json()["privacy"]
    assert privacy["unit"] == unit
    assert 0.5 * 8.0 < privacy["epsilon"] <= 8.0


# -- one fleet whose nodes can be told to fail -------------------------------------------------------------------------


@dataclass
class World:
    """Four nodes behind a real grid; what one test does to them the next one finds undone."""

    folder: Path
    grid: InProcessGrid
    configs: list[dict[str, str]]
    encoder: TextEncoder
    base: dict[str, np.ndarray]

    def run(self, plan: RunPlan, folder: Path) -> tuple[AdapterUpdate, RunState]:
        """Run one round; return the mean that the strategy was given."""
        recording = Recording()
        store = RoundStore(folder, plan)
        loop = RoundLoop(
            plan,
            recording,
            GridFleet(self.grid),
            store,
            device=torch.device("cpu"),
            clock=lambda: 1_000,
            progress=silent,
            noise=ServerNoise(LentAccountant(), 5),
        )
        state = loop.run(store.latest() or RunState(0, self.base, {}), lambda state: None)
        return recording.given[-1], state

    def plan(self, run: str, unit: PrivacyUnit, noise: Noise, *, secure: bool, **changes: object) -> RunPlan:
        epsilon = float("inf") if unit == "off" else 8.0
        plan = RunPlan(
            run=run,
            seed=0,
            rounds=1,
            cohort=NODES,
            strategy="fedsvd",
            server_learning_rate=0.1,
            encoder_sha256=self.encoder.sha256,
            objective=GOAL,
            privacy=PrivacyTerms(unit, epsilon, DELTA, 1.0, noise),
            min_replies=3 if secure else 1,
            secure_aggregation=secure,
        )
        return replace(plan, **changes)  # type: ignore[arg-type]  # by name

    def ledger(self, index: int) -> Path:
        return Path(self.configs[index]["ledger"])

    @contextmanager
    def failing(self, nodes: Sequence[int], stage: str, how: str) -> Iterator[None]:
        files = [self.ledger(node).with_name(FAILURE) for node in nodes]
        for file in files:
            file.write_text(f"{stage} {how}")
        try:
            yield
        finally:
            for file in files:
                file.unlink()

    def charges(self, index: int, run: str) -> list[tuple[float, float, int]]:
        if not self.ledger(index).exists():
            return []
        db = sqlite3.connect(f"file:{self.ledger(index)}?mode=ro", uri=True)
        rows = db.execute("SELECT sigma, rate, steps FROM charges WHERE release LIKE ?", (f"{run}/%",)).fetchall()
        db.close()
        return rows


@pytest.fixture
def world(running: World) -> World:
    """Let the nodes forget what earlier tests made them spend."""
    for node in range(NODES):
        running.ledger(node).unlink(missing_ok=True)
    return running


@pytest.fixture(scope="module")
def running(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Deal eight users to four nodes and start two workers."""
    folder = tmp_path_factory.mktemp("world")
    dataset = make_dataset()
    write_catalogue(folder / "catalogue.jsonl", dataset.catalogue)
    encoder = TextEncoder.load(EncoderSpec.from_name(str(tiny_bert)), "cpu")
    open_or_build(folder / "cache", encoder, dataset.catalogue.texts)
    base = initial_adapter({name: array.shape for name, array in encoder.adapter().items()}, 0)
    configs = []
    for node in range(NODES):
        mine = [event for event in dataset.interactions if event.user_id in (f"u{2 * node}", f"u{2 * node + 1}")]
        write_interactions(folder / f"{node}" / "interactions.jsonl", mine)
        configs.append(
            {
                "client": f"node-{node}",
                "interactions": str(folder / f"{node}" / "interactions.jsonl"),
                "ledger": str(folder / f"{node}" / "ledger.sqlite"),
                "catalogue": str(folder / "catalogue.jsonl"),
                "cache": str(folder / "cache"),
                "encoder": str(tiny_bert),
                "device": "cpu",
                "secret-seed": str(100 + node),
                "units": "user,client,off",
                "noise": "local,server,shared",
            }
        )
    with InProcessGrid("tests.integration.failing_app:app", configs, workers=2) as grid:
        yield World(folder, grid, configs, encoder, base)


def answers(world: World, plan: RunPlan, tmp_path: Path, nodes: Sequence[int]) -> np.ndarray:
    """Return the plain sum of what the nodes would release in round 1, asked one by one, on other ledgers."""
    state = RunState(0, world.base, {})
    trained = Recording().trained(world.base)
    hidden_in = SecretSum("any", plan.min_replies - plan.colluders) if plan.secure_aggregation else None
    catalogue = read_catalogue(world.folder / "catalogue.jsonl")
    cache = open_or_build(world.folder / "cache", world.encoder, catalogue.texts)
    request = TrainRequest(
        run=plan.run,
        round=1,
        base_version=state.adapter_sha256,
        strategy=plan.strategy,
        trained=trained,
        encoder_sha256=plan.encoder_sha256,
        planned_steps=1,
        objective=plan.objective,
        privacy=plan.privacy,
    )
    total = np.zeros(0)
    for node in nodes:
        events = read_interactions(Path(world.configs[node]["interactions"]))
        data = NodeData.from_interactions(events, catalogue)
        each = Node(f"node-{node}", data, tmp_path / f"{node}.sqlite", 100 + node)
        update = each.answer(request, world.base, world.encoder, cache, hidden_in)
        row = flatten(update.arrays).astype(np.float64)
        total = row if not total.size else total + row
    return total


def row_of(update: AdapterUpdate) -> np.ndarray:
    return flatten(update.arrays).astype(np.float64)


@pytest.mark.parametrize(("noise", "secure"), [("server", False), ("server", True), ("shared", True)])
def test_without_noise_it_is_the_plain_mean_over_all_records(
    world: World, tmp_path: Path, noise: Noise, secure: bool
) -> None:
    plan = world.plan(f"plain-{noise}-{secure}", "off", noise, secure=secure)
    mean, state = world.run(plan, tmp_path / "rounds")
    plain = answers(world, plan, tmp_path, range(NODES)) / (2 * NODES)  # two users a node, all of them drawn
    assert state.history[0].replied == NODES
    assert np.linalg.norm(row_of(mean) - plain) < 1e-6 * np.linalg.norm(plain)


@pytest.mark.parametrize(
    ("stage", "how"),
    [
        *((stage, "raise") for stage in STAGES),
        # two workers die and two are started, which takes longer than all the rest
        *(pytest.param(stage, "die", marks=pytest.mark.slow) for stage in STAGES),
    ],
)
def test_a_node_that_really_fails_at_a_stage_costs_only_itself(
    world: World, tmp_path: Path, stage: str, how: str
) -> None:
    plan = world.plan(f"drop-{stage}-{how}", "off", "shared", secure=True)
    with world.failing([1], stage, how):
        mean, state = world.run(plan, tmp_path / "rounds")
    left = range(NODES) if stage == "AskUnmasking" else (0, 2, 3)
    plain = answers(world, plan, tmp_path, left) / (2 * len(left))
    assert np.linalg.norm(row_of(mean) - plain) < 1e-6 * np.linalg.norm(plain)
    (reason,) = state.history[0].failed.values()
    assert ("died twice" if how == "die" else "this node fails here") in reason
    assert state.history[0].replied == len(left)


@pytest.mark.parametrize("stage", ["AskUpdate", "AskUnmasking"])
def test_below_the_threshold_the_round_is_refused_and_what_was_charged_stays(
    world: World, tmp_path: Path, stage: str
) -> None:
    run = f"refused-{stage}"
    plan = world.plan(run, "user", "shared", secure=True)
    with world.failing([0, 2], stage, "raise"), pytest.raises(RoundError, match=r"of 2 nodes of 4.*at least 3"):
        world.run(plan, tmp_path / "rounds")
    assert RoundStore(tmp_path / "rounds", plan).latest() is None
    charged = {node: world.charges(node, run) for node in range(NODES)}
    trained = (1, 3) if stage == "AskUpdate" else range(NODES)
    assert {node for node, rows in charged.items() if rows} == set(trained)
    _, state = world.run(plan, tmp_path / "rounds")
    assert state.round == 1
    for node in range(NODES):
        # a simulated node repeats its release; a real one would draw new noise and charge again
        ((sigma, rate, steps),) = world.charges(node, run)
        assert (rate, steps) == (1.0, 1)
        assert epsilon_of(PrivacySpend("user", DELTA, ((sigma, 1.0, 1),))) <= 8.0
        assert charged[node] in ([], [(sigma, 1.0, 1)])


@pytest.mark.parametrize("unit", ["user", "client"])
def test_the_sum_carries_one_noise_or_shares_of_one_or_one_a_node(
    world: World, tmp_path: Path, unit: PrivacyUnit
) -> None:
    """The issue of where the noise is added, measured: four nodes, no record drawn, nothing but noise in the mean."""
    found: dict[str, float] = {}
    sigma = LentAccountant().sigma(8.0, DELTA, 1.0 if unit == "client" else 1e-9, 1)
    # a user's whole noise comes divided by the records that its node expects, and here none are
    for noise, secure in (("server", False), ("shared", True), ("local", True))[: 3 if unit == "client" else 2]:
        for node in range(NODES):
            world.ledger(node).unlink(missing_ok=True)
        plan = world.plan(f"noise-{unit}-{noise}", unit, noise, secure=secure)  # type: ignore[arg-type]  # by name
        plan = replace(plan, privacy=replace(plan.privacy, sample_rate=1e-9))
        mean, _ = world.run(plan, tmp_path / noise)
        # users are divided by the records expected: none, so the floor, one; nodes by the cohort
        divisor = NODES if unit == "client" else 1.0
        row = row_of(mean) * divisor
        found[noise] = float(row.std()) / (sigma * GOAL.clip)
        size = row.size
    tolerance = 6 / np.sqrt(2 * size)
    assert found["server"] == pytest.approx(1.0, rel=tolerance)
    assert found["shared"] == pytest.approx(np.sqrt(NODES / 3), rel=tolerance)  # sized for three of four
    if unit == "client":
        assert found["local"] == pytest.approx(np.sqrt(NODES), rel=tolerance)


def test_what_no_guarantee_holds_for_is_refused_before_anything_is_written(tiny_bert: Path, tmp_path: Path) -> None:
    for changes, reason in (
        ({"objective": replace(GOAL, local_steps=2)}, "over 2 local steps"),
        ({"secure_aggregation": False}, "without secure aggregation"),
        ({"strategy": "median"}, "where only the sum of the updates is known"),
        ({"cohort": 2, "min_replies": 1}, "a threshold of 1"),
        ({"privacy": PrivacyTerms("user", 8.0, 0.2, 1.0, "shared")}, "delta 0.2 over"),
    ):
        with pytest.raises(InvalidSetting) as caught:
            simulate(tmp_path / "store", settings_for(tiny_bert, "user", "shared", **changes))
        assert reason in str(caught.value)
        assert not (tmp_path / "store").exists()
