"""One noise over all updates: sized, placed, accounted for, and divided by what depends on no data."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import BudgetExceeded, InvalidSetting, RoundError
from common.instructions import Objective, PrivacyTerms
from common.privacy import PrivacySpend
from common.progress import silent as no_progress
from common.updates import AdapterUpdate, UpdateMeta
from server.aggregate import strategy_named
from server.aggregate.base import Aggregate, RowAdam
from server.plan import RunPlan
from server.pool import Pool, ServerNoise, mean_of, pool_updates
from server.rounds import RoundLoop, RoundStore, RunState
from tests.server.memory_fleet import MemoryFleet, changed, filled, silent
from tests.server.test_rounds import fingerprint, first_state, plan_of

LIKE = {"a": np.zeros((300, 300), dtype=np.float32), "b": np.zeros((200, 100), dtype=np.float32)}


def update(value: float, examples: float = 1.0) -> AdapterUpdate:
    arrays = {name: np.full(array.shape, value, dtype=np.float32) for name, array in LIKE.items()}
    return AdapterUpdate(UpdateMeta("n", "base", "fedsvd", 1, examples), arrays)


@dataclass(frozen=True)
class Table:
    """An accountant one can check by hand: sigma is given, epsilon is rate times steps over sigma."""

    multiplier: float

    def sigma(self, epsilon: float, delta: float, sample_rate: float, steps: int) -> float:
        return self.multiplier

    def epsilon(self, spend: PrivacySpend) -> float:
        return sum(rate * count / sigma for sigma, rate, count in spend.steps)


def test_updates_add_up_and_none_is_zero() -> None:
    pool = pool_updates([update(0.5, 2.0), update(0.25, 3.0)], LIKE, LIKE, None)
    assert (pool.clients, pool.examples) == (2, 5.0)
    np.testing.assert_array_equal(pool.sums["a"], np.full((300, 300), 0.75))
    empty = pool_updates([], LIKE, LIKE, None)
    assert (empty.clients, empty.examples) == (0, 0.0)
    assert not any(array.any() for array in empty.sums.values())


def test_a_node_that_did_not_bound_its_update_is_bounded_here() -> None:
    pool = pool_updates([update(3.0), update(0.0)], LIKE, LIKE, 0.5)
    assert math.sqrt(sum(np.square(array).sum() for array in pool.sums.values())) == pytest.approx(0.5)


def test_the_noise_has_its_deviation_whatever_the_number_of_updates() -> None:
    """One noise over the sum, not one an update."""
    for count in (0, 1, 16):
        pool = pool_updates([update(0.0)] * count, LIKE, LIKE, None)
        noise = np.concatenate([a.ravel() for a in ServerNoise(Table(1.0), count).add(pool, 0.7, "r").sums.values()])
        assert noise.std() == pytest.approx(0.7, rel=6 / math.sqrt(2 * noise.size))  # six standard errors
        assert abs(noise.mean()) < 6 * 0.7 / math.sqrt(noise.size)


def test_the_same_release_has_the_same_noise_and_another_one_other_noise() -> None:
    pool = Pool({"a": np.zeros((4, 4))}, 1, 1.0)
    noise = ServerNoise(Table(1.0), 5)
    first = noise.add(pool, 1.0, "run", 1).sums["a"]
    np.testing.assert_array_equal(first, noise.add(pool, 1.0, "run", 1).sums["a"])
    others = [
        noise.add(pool, 1.0, "run", 2).sums["a"],
        noise.add(pool, 1.5, "run", 1).sums["a"] / 1.5,
        noise.add(Pool({"a": np.full((4, 4), 1e-9)}, 1, 1.0), 1.0, "run", 1).sums["a"],
        ServerNoise(Table(1.0), 6).add(pool, 1.0, "run", 1).sums["a"],
    ]
    assert all(np.abs(first - other).max() > 0.1 for other in others)


def test_a_real_server_draws_from_the_operating_system() -> None:
    pool, noise = Pool({"a": np.zeros((4, 4))}, 1, 1.0), ServerNoise(Table(1.0))
    assert np.abs(noise.add(pool, 1.0, "r").sums["a"] - noise.add(pool, 1.0, "r").sums["a"]).max() > 0.1


def test_the_denominator_has_a_floor() -> None:
    pool = Pool({"a": np.full((2,), 3.0)}, 1, 0.01)
    np.testing.assert_array_equal(mean_of(pool, 0.01, update(0.0).meta).arrays["a"], [3.0, 3.0])
    np.testing.assert_array_equal(mean_of(pool, 2.0, update(0.0).meta).arrays["a"], [1.5, 1.5])


# -- in the round loop -----------------------------------------------------------------------------------------------

CLIENT = PrivacyTerms("client", 8.0, 1e-4, 0.2, "server", 0.5)
USER = PrivacyTerms("user", 8.0, 1e-4, 0.2, "server")


@dataclass
class Recording:
    """A strategy that only keeps the mean it is given."""

    name: str = "fedsvd"

    def __post_init__(self) -> None:
        self.given: list[AdapterUpdate] = []

    def trained(self, names: Iterable[str], state: object = None) -> tuple[str, ...]:
        return tuple(sorted(name for name in names if "lora_B" in name))

    def aggregate(self, adapter: object, state: object, updates: object) -> Aggregate:
        given = list(updates)  # type: ignore[call-overload]  # an iterable
        self.given += given
        return Aggregate(dict(adapter), {}, len(given))  # type: ignore[call-overload]  # a mapping


def run(
    folder: Path,
    plan: RunPlan,
    fleet: MemoryFleet,
    sigma: float = 1.0,
    strategy: Recording | None = None,
    after_round: Callable[[RunState], None] = lambda state: None,
) -> RunState:
    store = RoundStore(folder, plan)
    loop = RoundLoop(
        plan,
        strategy or strategy_named(plan.strategy, RowAdam(learning_rate=plan.server_learning_rate)),
        fleet,
        store,
        device=torch.device("cpu"),
        clock=lambda: 1_000,
        progress=no_progress,
        noise=ServerNoise(Table(sigma), 11),
    )
    return loop.run(store.latest() or first_state(), after_round)


def big_b(state: RunState) -> np.ndarray:
    return state.adapter["x.lora_B.weight"]


def given(tmp_path: Path, plan: RunPlan, fleet: MemoryFleet, sigma: float) -> AdapterUpdate:
    recording = Recording()
    run(tmp_path, plan, fleet, sigma, recording)
    return recording.given[-1]


def test_users_sums_are_divided_by_the_expected_records_of_all(tmp_path: Path) -> None:
    bad = {(1, node): filled(0.25) for node in range(1, 4)}
    plan = plan_of(privacy=USER, rounds=1)
    mean = given(tmp_path, plan, MemoryFleet(3, bad), 1e-12)
    np.testing.assert_allclose(mean.arrays["x.lora_B.weight"], 3 * 0.25 / 3.0, rtol=1e-6)
    assert mean.meta.examples == 3.0


@pytest.mark.parametrize(("unit", "denominator", "scale"), [("user", 3.0, 0.5), ("client", 3.0, 1.0)])
def test_the_mean_carries_one_noise_over_the_sum(tmp_path: Path, unit: str, denominator: float, scale: float) -> None:
    goal = Objective(learning_rate=0.5, clip=0.2)
    terms = replace(USER, unit=unit, epsilon=1e9)  # type: ignore[arg-type]  # a literal by name
    zero = {(number, node): filled(0.0) for number in range(1, 151) for node in range(1, 4)}
    recording = Recording()
    run(tmp_path, plan_of(privacy=terms, rounds=150, objective=goal), MemoryFleet(3, zero), 2.0, recording)
    noise = np.concatenate([each.arrays["x.lora_B.weight"].ravel() for each in recording.given])
    expected = 2.0 * goal.clip * scale / denominator
    assert noise.std() == pytest.approx(expected, rel=6 / math.sqrt(2 * noise.size))  # six standard errors


def test_a_chance_cohort_divides_by_the_expected_nodes_and_charges_all_rounds(tmp_path: Path) -> None:
    plan = plan_of(privacy=replace(CLIENT, epsilon=1e9), rounds=6, cohort=2)
    fleet = MemoryFleet(4, {(number, node): filled(0.01) for number in range(1, 7) for node in range(1, 5)})
    recording = Recording()
    state = run(tmp_path, plan, fleet, 1e-6, recording)
    sizes = [len(plan.cohort_of(number, (1, 2, 3, 4))) for number in range(1, 7)]
    assert len(set(sizes)) > 1
    for size, each in zip(sizes, recording.given, strict=True):
        np.testing.assert_allclose(each.arrays["x.lora_B.weight"], size * 0.01 / 2.0, atol=1e-5)
    assert [record.planned for record in state.history] == sizes
    assert {record.spend for record in state.history} == {PrivacySpend("client", 1e-4, ((1e-6, 0.5, 1),))}


def test_an_empty_cohort_is_noise_alone_charged_and_applied(tmp_path: Path) -> None:
    terms = replace(CLIENT, cohort_rate=1e-9)
    plan = plan_of(privacy=terms, rounds=2, cohort=1)
    fleet = MemoryFleet(4)
    state = run(tmp_path, plan, fleet, 1.0)
    assert fleet.asked == []
    assert [(record.planned, record.replied) for record in state.history] == [(0, 0), (0, 0)]
    assert np.abs(big_b(state)).min() > 0
    assert state.history[-1].epsilon == pytest.approx(2e-9)
    assert state.claim(terms).epsilon == state.history[-1].epsilon


def test_a_round_by_chance_beyond_the_budget_asks_nobody(tmp_path: Path) -> None:
    plan = plan_of(privacy=replace(CLIENT, epsilon=1.2), rounds=9, cohort=2)
    fleet = MemoryFleet(4, {(n, node): changed(epsilon=0.1) for n in range(1, 10) for node in range(1, 5)})
    kept: list[RunState] = []
    with pytest.raises(BudgetExceeded, match=r"round 3 would bring epsilon to 1\.500; expected at most 1\.200"):
        run(tmp_path, plan, fleet, 1.0, after_round=kept.append)
    assert {request.round for request in fleet.asked} <= {1, 2}
    latest = RoundStore(tmp_path, plan).latest()
    assert latest is not None
    assert fingerprint(latest) == fingerprint(kept[-1])


def test_a_cohort_of_which_nobody_answers_is_no_empty_cohort(tmp_path: Path) -> None:
    plan = plan_of(privacy=CLIENT, rounds=8, cohort=2)
    bad = {(number, node): silent for number in range(1, 9) for node in range(1, 5)}
    with pytest.raises(RoundError, match="0 usable updates"):
        run(tmp_path, plan, MemoryFleet(4, bad), 1.0)


def test_too_few_replies_release_nothing(tmp_path: Path) -> None:
    plan = plan_of(privacy=USER, rounds=1, min_replies=3)
    recording = Recording()
    with pytest.raises(RoundError, match="2 usable updates of 3"):
        run(tmp_path, plan, MemoryFleet(3, {(1, 2): filled(np.nan)}), 1.0, recording)
    assert recording.given == []
    assert RoundStore(tmp_path, plan).latest() is None


def test_stopped_after_a_round_it_ends_the_same(tmp_path: Path) -> None:
    plan = plan_of(privacy=CLIENT, rounds=6, cohort=2)
    straight = run(tmp_path / "straight", plan, MemoryFleet(4))
    run(tmp_path / "stopped", replace(plan, rounds=3), MemoryFleet(4))
    resumed = run(tmp_path / "stopped", plan, MemoryFleet(4))
    assert fingerprint(resumed) == fingerprint(straight)
    assert [r.spend for r in resumed.history] == [r.spend for r in straight.history]
    assert [r.epsilon for r in resumed.history] == [r.epsilon for r in straight.history]


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [(filled(np.nan), "NaN"), (filled(np.inf), "NaN"), (changed(examples=0.0), "0.0 expected records")],
)
def test_a_bad_update_is_not_in_the_sum(tmp_path: Path, behaviour: object, reason: str) -> None:
    plan = plan_of(privacy=USER, rounds=1)
    zero = {(1, node): filled(0.125) for node in (1, 2, 3)}
    bad = {**zero, (1, 2): behaviour}
    recording = Recording()
    state = run(tmp_path, plan, MemoryFleet(3, bad), 1e-12, recording)  # type: ignore[arg-type]  # behaviours
    (quarantined,) = state.history[0].quarantined
    assert reason in quarantined.reason
    np.testing.assert_allclose(recording.given[0].arrays["x.lora_B.weight"], 0.125, rtol=1e-6)


def test_a_delta_of_one_over_the_nodes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match=r"delta 0\.25 over 4 nodes"):
        run(tmp_path, plan_of(privacy=replace(CLIENT, delta=0.25), cohort=2), MemoryFleet(4))
