"""The loop without rounds: nobody waits for the slowest, updates count by their age, it resumes to the same bytes."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from common.errors import BudgetExceeded, InvalidSetting, RoundError, StoreMismatch
from common.instructions import PrivacyTerms
from common.progress import silent as no_progress
from server.aggregate import STRATEGIES, strategy_named
from server.aggregate.base import PlainStep, RowAdam
from server.aggregate.stale import CARRIED
from server.async_terms import AsyncTerms
from server.asynchronous import AsyncLoop
from server.fleet.base import Failure, Reply
from server.pace import SLOW, SimulatedPace
from server.rounds import RoundStore, RunPlan, RunState
from tests.oracles.buffering import buffered
from tests.server.memory_fleet import Behaviour, MemoryErrands, MemoryFleet, changed, filled, honest, silent
from tests.server.test_rounds import OFF, Stop, fingerprint, first_state, plan_of, stop_after

STEADY = SimulatedPace(0)
STRAGGLER = SimulatedPace(0, frozenset({5}))
Arrays = dict[str, np.ndarray]


@dataclass
class Watched(MemoryFleet):
    """A fleet whose way to the nodes can be slowed down, and looked at afterwards."""

    slow: Mapping[int, int] = field(default_factory=dict)
    away: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        self.way = MemoryErrands(self, self.slow, self.away)

    def errands(self) -> MemoryErrands:
        return self.way


def async_plan(*, buffer: int = 2, max_staleness: int = 10, participations: int = 0, **changes: object) -> RunPlan:
    terms = AsyncTerms(buffer, max_staleness, participations)
    return plan_of(**{"asynchronous": terms, "strategy": "ffa", "cohort": 3, **changes})


def run(
    folder: Path,
    plan: RunPlan,
    fleet: MemoryFleet | None = None,
    after: Callable[[RunState], None] = lambda state: None,
    *,
    pace: SimulatedPace | None = STEADY,
    plain: bool = False,
) -> RunState:
    """Run or go on with a run, as the composition root does."""
    store = RoundStore(folder, plan)
    loop = AsyncLoop(
        plan,
        strategy_named(plan.strategy, PlainStep() if plain else RowAdam(learning_rate=plan.server_learning_rate)),
        fleet or MemoryFleet(5),
        store,
        device="cpu",
        clock=lambda: 1_000,
        progress=no_progress,
        pace=None if pace is None else lambda nodes: pace,
    )
    return loop.run(store.latest() or first_state(), after)


# -- nobody waits ----------------------------------------------------------------------------------------------------


def turns_for(folder: Path, plan: RunPlan, fleet: Watched) -> int:
    """Return how many looks for replies all versions of a plan take, where an answer takes one turn or more."""
    assert run(folder, plan, fleet, pace=None).round == plan.rounds
    return fleet.way.turn


def test_a_straggler_among_five_delays_no_version(tmp_path: Path) -> None:
    four = async_plan(rounds=12, cohort=4, buffer=4, participations=12)
    five = async_plan(rounds=12, cohort=5, buffer=4, participations=12)
    assert turns_for(tmp_path / "four", four, Watched(4)) == 12
    # what rounds would wait for takes twenty turns
    assert turns_for(tmp_path / "five", five, Watched(5, slow={5: 20})) == 12


def test_in_simulated_time_a_straggler_delays_no_version(tmp_path: Path) -> None:
    plan = async_plan(rounds=12, cohort=5, buffer=4, participations=12)
    moments = [record.moment or 0.0 for record in run(tmp_path, plan, pace=STRAGGLER).history]
    assert moments == sorted(moments)
    # four nodes that take 0.5 to 1.5 fill a buffer of four in 1.5 at most; a straggler takes 10 at least
    assert moments[-1] <= 1.5 * 12
    assert STRAGGLER.duration(1, 5) >= 0.5 * SLOW


def test_what_is_too_far_behind_is_quarantined_by_name_and_the_rest_counts(tmp_path: Path) -> None:
    plan = async_plan(rounds=40, cohort=5, max_staleness=4, participations=40, privacy=OFF)
    state = run(tmp_path, plan, pace=STRAGGLER)
    refused = [each for record in state.history for each in record.quarantined]
    assert {each.client for each in refused} == {"client-5"}
    assert refused[0].reason.startswith("an update of version 0, ")
    assert refused[0].reason.endswith("behind; expected at most 4 behind")
    assert all(record.replied == len(record.staleness) == 2 for record in state.history)
    assert max(behind for record in state.history for behind in record.staleness) <= 4


def test_nobody_is_asked_while_at_work_or_away_or_more_often_than_planned(tmp_path: Path) -> None:
    fleet = Watched(5, slow={2: 3}, away=frozenset({1, 4}))
    run(tmp_path, async_plan(participations=4, cohort=3), fleet, pace=None)
    asked = [node for _, node in fleet.way.sent]
    assert set(asked) == {2, 3, 5}
    assert max(asked.count(node) for node in asked) <= 4


def test_those_asked_least_come_first(tmp_path: Path) -> None:
    fleet = Watched(6)
    run(tmp_path, async_plan(rounds=9, cohort=2), fleet)
    asked = [node for _, node in fleet.way.sent]
    # every node once in each six, but for the one that is still at work where two sixes meet
    assert all(len(set(asked[start : start + 6])) >= 5 for start in range(0, 18, 6))


# -- what an update counts -------------------------------------------------------------------------------------------


def test_every_version_is_that_of_a_slow_twin(tmp_path: Path) -> None:
    plan = async_plan(rounds=9, cohort=4, buffer=3, max_staleness=3, participations=20)
    pace, fleet, first = SimulatedPace(0, frozenset({2})), Watched(5), first_state()
    mine: list[Arrays] = [dict(first.adapter)]
    end = run(tmp_path, plan, fleet, lambda done: mine.append(dict(done.adapter)), pace=pace, plain=True)
    # whom an errand goes to is the loop's own choice; when it is begun and done, and all else, is the twin's
    ends: list[float] = [0.0] * plan.cohort
    errands = []
    for number, node in fleet.way.sent:
        begun = ends.pop(ends.index(min(ends)))
        ends.append(begun + pace.duration(number, node))
        errands.append((begun, ends[-1], number, node))
    requests = {request.round: request for request in fleet.asked}

    def change(number: int, node: int, adapter: Arrays) -> Arrays:
        return dict(honest(node, requests[number], adapter).arrays)

    twins, behinds = buffered(mine[0], errands, change, buffer=3, versions=9, most_behind=3)
    assert [list(record.staleness) for record in end.history] == behinds
    assert {0, 1} < {behind for each in behinds for behind in each}
    for one, twin in zip(mine, twins, strict=True):
        for name in one:
            np.testing.assert_allclose(one[name], twin[name], rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        (changed(base_version="old"), "base version 'old'"),
        (changed(round=99), "round 99"),
        (filled(float("nan")), "has NaN or infinite elements"),
        (filled(1e6), "update of norm"),
    ],
)
def test_a_bad_reply_is_quarantined_and_costs_only_itself(tmp_path: Path, behaviour: Behaviour, reason: str) -> None:
    fleet = MemoryFleet(5, bad={(2, node): behaviour for node in range(1, 6)})
    state = run(tmp_path, async_plan(), fleet)
    (refused,) = [each for record in state.history for each in record.quarantined]
    assert reason in refused.reason
    assert [record.replied for record in state.history] == [2] * 5


def test_a_silent_node_is_a_failure_and_its_place_is_taken(tmp_path: Path) -> None:
    fleet = MemoryFleet(5, bad={(3, node): silent for node in range(1, 6)})
    state = run(tmp_path, async_plan(), fleet)
    assert [why for record in state.history for why in record.failed.values()] == ["no reply within 600 s"]
    assert [record.replied for record in state.history] == [2] * 5


# -- resuming --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", sorted(CARRIED))
@pytest.mark.parametrize("stops", [[1], [4], [1, 2, 3, 4]])
def test_stopped_after_any_version_it_ends_the_same(tmp_path: Path, strategy: str, stops: list[int]) -> None:
    plan = async_plan(strategy=strategy, cohort=4)
    fleets = [MemoryFleet(5), MemoryFleet(5)]
    straight = run(tmp_path / "straight", plan, fleets[0], pace=STRAGGLER)
    for number in stops:
        with pytest.raises(Stop):
            run(tmp_path / "stopped", plan, fleets[1], stop_after(number), pace=STRAGGLER)
    resumed = run(tmp_path / "stopped", plan, fleets[1], pace=STRAGGLER)
    assert fingerprint(resumed) == fingerprint(straight)
    told = [[(r.epsilon, r.staleness, r.moment, r.replied) for r in state.history] for state in (straight, resumed)]
    assert told[0] == told[1]
    # the very same releases are asked for again, and no others
    assert set(fleets[0].asked) == set(fleets[1].asked)


def test_stopped_in_the_middle_of_a_version_it_ends_the_same(tmp_path: Path) -> None:
    class Interrupted(MemoryFleet):
        def train(self, *args: object, **named: object) -> Iterator[Reply]:
            if len(self.asked) == 9:
                raise KeyboardInterrupt
            yield from super().train(*args, **named)  # type: ignore[arg-type]  # handed on

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", async_plan(), Interrupted(5))
    assert fingerprint(run(tmp_path / "stopped", async_plan())) == fingerprint(run(tmp_path / "straight", async_plan()))


def test_a_finished_run_asks_nobody(tmp_path: Path) -> None:
    end, fleet = run(tmp_path, async_plan()), MemoryFleet(5)
    assert fingerprint(run(tmp_path, async_plan(), fleet)) == fingerprint(end)
    assert fleet.asked == []


def test_a_run_of_rounds_is_another_run(tmp_path: Path) -> None:
    run(tmp_path, async_plan())
    with pytest.raises(StoreMismatch, match="holds a run with asynchronous="):
        RoundStore(tmp_path, plan_of(strategy="ffa"))


def test_a_version_claims_what_those_at_work_have_spent_too(tmp_path: Path) -> None:
    states: list[RunState] = []
    fleet = Watched(5)
    run(tmp_path, async_plan(), fleet, states.append)
    for state in states:
        assert state.underway is not None
        # the fleet's epsilons grow by the number of the errand
        begun = fleet.way.sent[: state.underway.begun]
        claim = state.claim(PrivacyTerms("user", 8.0, 1e-4, 0.2)).epsilon
        assert claim == pytest.approx(max(0.1 * number + 0.001 * node for number, node in begun))


# -- what is refused -------------------------------------------------------------------------------------------------


def over_budget(reply: Reply) -> list[Reply]:
    return [Reply(reply.node, Failure(reply.node, "BudgetExceeded: this round would bring epsilon from 7 to 9"))]


def test_where_nobody_is_left_the_last_version_stays(tmp_path: Path) -> None:
    bad = {(number, node): silent for number in range(6, 99) for node in range(1, 6)}
    with pytest.raises(RoundError, match=r"version 3 has 1 usable updates, and nobody is left.*version 2 stays"):
        run(tmp_path, async_plan(participations=3), MemoryFleet(5, bad=bad))
    latest = RoundStore(tmp_path, async_plan(participations=3)).latest()
    assert latest is not None
    assert latest.round == 2


def test_nodes_whose_budget_is_spent_are_asked_no_more(tmp_path: Path) -> None:
    bad = {(number, node): over_budget for number in range(6, 99) for node in range(1, 6)}
    fleet = MemoryFleet(5, bad=bad)
    with pytest.raises(BudgetExceeded, match="nobody is left to ask; the first reason: BudgetExceeded"):
        run(tmp_path, async_plan(participations=30), fleet)
    assert len(fleet.asked) == 5 + 5


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        *[({"strategy": name}, f"strategy '{name}' without rounds") for name in sorted(STRATEGIES.keys() - CARRIED)],
        ({"secure_aggregation": True, "min_replies": 2, "privacy": OFF}, "masks cancel only in the sum"),
        ({"privacy": PrivacyTerms("user", 8.0, 1e-4, 0.2, "server")}, "who fills a buffer is neither"),
        ({"privacy": PrivacyTerms("client", 8.0, 1e-4, 0.2, "server", 0.5)}, "drawn by chance, before anybody answers"),
        ({"ranks": (1, 2)}, "columns change their meaning"),
        ({"min_replies": 2}, "--buffer alone"),
        ({"buffer": 0}, "buffer=0"),
        ({"max_staleness": -1}, "max_staleness=-1"),
    ],
)
def test_what_has_no_meaning_without_rounds_is_refused_with_the_reason(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(InvalidSetting) as caught:
        async_plan(**changes)  # type: ignore[arg-type]  # by name
    assert reason in str(caught.value)


def test_a_node_as_unit_is_allowed_where_it_adds_its_own_noise(tmp_path: Path) -> None:
    plan = async_plan(privacy=PrivacyTerms("client", 8.0, 1e-4, 0.2))
    assert run(tmp_path, plan).claim(plan.privacy).unit == "client"
    with pytest.raises(InvalidSetting, match=r"delta 0.3 over 5 nodes"):
        run(tmp_path / "large", async_plan(privacy=PrivacyTerms("client", 8.0, 0.3, 0.2)))


def test_too_few_participations_or_nodes_are_refused_before_anybody_is_asked(tmp_path: Path) -> None:
    fleet = MemoryFleet(5)
    with pytest.raises(InvalidSetting, match="1 participations of each of 5 nodes for 10 updates; expected at least 2"):
        run(tmp_path, async_plan(participations=1), fleet)
    with pytest.raises(InvalidSetting, match="6 nodes at once; expected at most the 5"):
        run(tmp_path / "more", async_plan(cohort=6), fleet)
    with pytest.raises(InvalidSetting, match="a plan of rounds"):
        run(tmp_path / "rounds", plan_of(), fleet)
    assert fleet.asked == []


def test_noise_is_sized_for_the_most_that_a_node_takes_part(tmp_path: Path) -> None:
    fleet = MemoryFleet(5)
    run(tmp_path, async_plan(), fleet)
    # five versions of two, three at work, five nodes: (10 + 3) / 5, and a quarter more
    assert {request.planned_steps for request in fleet.asked} == {4}
