"""The round loop: resumable anywhere to the same bytes, and no node stops or bends it."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.encoder.adapter import initial_adapter
from common.errors import ArtifactCorrupt, InvalidSetting, RoundError, StoreMismatch
from common.ids import arrays_sha256
from common.instructions import Objective, PrivacyTerms
from common.progress import silent as no_progress
from server.aggregate import STRATEGIES, strategy_named
from server.aggregate.base import RowAdam
from server.round_store import KEEP_ROUNDS
from server.rounds import RoundLoop, RoundRecord, RoundStore, RunPlan, RunState
from tests.server.memory_fleet import MemoryFleet, changed, filled, silent, twice

SHAPES = {"x.lora_A.weight": (2, 6), "x.lora_B.weight": (5, 2)}
TERMS = PrivacyTerms("user", 8.0, 1e-4, 0.2)
OFF = PrivacyTerms("off", float("inf"), 1e-4, 0.2)


def plan_of(**changes: object) -> RunPlan:
    plan = RunPlan("run-a", 0, 5, 3, "fedsvd", 0.05, "sha", Objective(), TERMS)
    return replace(plan, **changes)  # type: ignore[arg-type]  # by name


def first_state() -> RunState:
    return RunState(0, initial_adapter(SHAPES, 0), {})


def run(
    folder: Path,
    plan: RunPlan,
    fleet: MemoryFleet | None = None,
    after_round: Callable[[RunState], None] = lambda state: None,
) -> RunState:
    """Run or go on with a run, as the composition root does."""
    store = RoundStore(folder, plan)
    loop = RoundLoop(
        plan,
        strategy_named(plan.strategy, RowAdam(learning_rate=plan.server_learning_rate)),
        fleet or MemoryFleet(4),
        store,
        device=torch.device("cpu"),
        clock=lambda: 1_000,
        progress=no_progress,
    )
    return loop.run(store.latest() or first_state(), after_round)


def fingerprint(state: RunState) -> tuple[str, str]:
    """Return the hashes of adapter and strategy state; shapes count too."""
    shapes = {name: array.shape for name, array in state.strategy_state.items()}
    return state.adapter_sha256, f"{arrays_sha256(state.strategy_state.items())} {sorted(shapes.items())}"


class Stop(Exception):
    """Ends a run from outside."""


def stop_after(number: int) -> Callable[[RunState], None]:
    def after_round(state: RunState) -> None:
        if state.round == number:
            raise Stop

    return after_round


# -- resuming --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
@pytest.mark.parametrize("stops", [[1], [2], [4], [1, 2, 3, 4]])
def test_stopped_after_any_round_it_ends_the_same(tmp_path: Path, strategy: str, stops: list[int]) -> None:
    plan = plan_of(strategy=strategy)
    straight = run(tmp_path / "straight", plan)
    for number in stops:
        with pytest.raises(Stop):
            run(tmp_path / "stopped", plan, after_round=stop_after(number))
    resumed = run(tmp_path / "stopped", plan)
    assert fingerprint(resumed) == fingerprint(straight)
    assert [record.round for record in resumed.history] == [1, 2, 3, 4, 5]
    assert [r.epsilon for r in resumed.history] == [r.epsilon for r in straight.history]


def test_what_is_on_disk_is_the_state_itself(tmp_path: Path) -> None:
    plan = plan_of()
    states: list[RunState] = []
    end = run(tmp_path, plan, after_round=states.append)
    latest = RoundStore(tmp_path, plan).latest()
    assert latest is not None
    assert fingerprint(latest) == fingerprint(end) == fingerprint(states[-1])
    assert latest.history == end.history


def test_stopped_in_the_middle_of_a_round_it_ends_the_same(tmp_path: Path) -> None:
    plan = plan_of()

    class Interrupted(MemoryFleet):
        def train(self, *args: object, **named: object) -> Iterator[object]:  # type: ignore[override]  # handed on
            for number, reply in enumerate(super().train(*args, **named)):  # type: ignore[arg-type]  # handed on
                if len(self.asked) > 7 and number == 1:
                    raise KeyboardInterrupt
                yield reply

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", plan, Interrupted(4))
    assert fingerprint(run(tmp_path / "stopped", plan)) == fingerprint(run(tmp_path / "straight", plan))


def test_a_finished_run_asks_nobody(tmp_path: Path) -> None:
    end = run(tmp_path, plan_of())
    fleet = MemoryFleet(4)
    assert fingerprint(run(tmp_path, plan_of(), fleet)) == fingerprint(end)
    assert fleet.asked == []


def test_more_rounds_go_on_from_the_last(tmp_path: Path) -> None:
    run(tmp_path, plan_of())
    fleet = MemoryFleet(4)
    assert run(tmp_path, plan_of(rounds=7), fleet).round == 7
    assert {request.round for request in fleet.asked} == {6, 7}


def test_only_the_last_rounds_are_kept(tmp_path: Path) -> None:
    run(tmp_path, plan_of())
    assert sorted(path.name for path in tmp_path.glob("*-*")) == ["round-000004", "round-000005"]
    assert KEEP_ROUNDS == 2


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.server.test_rounds import fingerprint, plan_of, run

root = Path(sys.argv[1])


def dying(steps):
    left = steps
    for name in ("fsync", "replace", "rename", "mkdir", "unlink", "rmdir"):
        def counted(*args, _real=getattr(os, name), **named):
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return _real(*args, **named)
        setattr(os, name, counted)


def child(folder, steps):
    pid = os.fork()
    if pid == 0:
        if steps:
            dying(steps)
        run(folder, plan_of(rounds=3))
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


steps, stride = 1, int(sys.argv[2])
while child(root / str(steps), steps):
    assert not child(root / str(steps), 0)
    print(fingerprint(run(root / str(steps), plan_of(rounds=3))), flush=True)
    steps += stride
"""


@pytest.mark.parametrize("stride", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_every_step_of_writing_it_ends_the_same(tmp_path: Path, stride: int) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(each for each in sys.path if each)}
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), str(stride)],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    ends = killed.stdout.splitlines()
    assert len(ends) * stride > 20  # so many calls to the file system, and a death at each, or each fifth
    assert set(ends) == {str(fingerprint(run(tmp_path / "straight", plan_of(rounds=3))))}


# -- refusing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 1, "run": "run-b"}, "seed=0; expected 1"),
        ({"cohort": 2}, "cohort=3; expected 2"),
        ({"strategy": "fedit", "run": "run-b"}, "strategy='fedsvd'; expected 'fedit'"),
        ({"encoder_sha256": "other"}, "encoder_sha256='sha'"),
        ({"server_learning_rate": 0.1}, "server_learning_rate=0.05"),
        ({"objective": Objective(clip=0.1)}, "objective="),
        ({"privacy": PrivacyTerms("user", 4.0, 1e-4, 0.2)}, "privacy="),
        ({"run": "run-b"}, "run='run-a'; expected 'run-b'"),
    ],
)
def test_another_runs_folder_is_refused_naming_the_setting(
    tmp_path: Path, changes: dict[str, object], named: str
) -> None:
    end = run(tmp_path, plan_of())
    with pytest.raises(StoreMismatch) as caught:
        run(tmp_path, plan_of(**changes))
    assert f"holds a run with {named}" in str(caught.value)
    assert "nothing was changed" in str(caught.value)
    latest = RoundStore(tmp_path, plan_of()).latest()
    assert latest is not None
    assert fingerprint(latest) == fingerprint(end)


def test_a_run_without_a_guarantee_is_known_again(tmp_path: Path) -> None:
    run(tmp_path, plan_of(privacy=OFF, rounds=1))  # an infinite epsilon is null in JSON
    assert run(tmp_path, plan_of(privacy=OFF, rounds=2)).round == 2


def test_a_run_of_an_older_program_is_gone_on_with(tmp_path: Path) -> None:
    """It did not know the settings that came later; at their defaults they change nothing."""
    straight = run(tmp_path / "straight", plan_of())
    run(tmp_path / "old", plan_of(rounds=2))
    path = tmp_path / "old" / "run.json"
    written = json.loads(path.read_bytes())
    for name in ("bad_share", "ranks", "start"):
        del written[name]
    for name in ("anchor", "replay"):
        del written["objective"][name]
    path.write_text(json.dumps(written))
    assert fingerprint(run(tmp_path / "old", plan_of())) == fingerprint(straight)
    path.write_text(json.dumps(written))
    with pytest.raises(StoreMismatch, match="objective="):
        run(tmp_path / "old", plan_of(objective=Objective(replay=0.5)))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_a_damaged_plan_is_refused(tmp_path: Path, content: bytes) -> None:
    run(tmp_path, plan_of(rounds=1))
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(ArtifactCorrupt, match=r"run\.json does not describe a run"):
        RoundStore(tmp_path, plan_of(rounds=1))


@pytest.mark.parametrize("file", ["adapter.safetensors", "strategy.safetensors", "history.json", "manifest.json"])
def test_a_damaged_round_is_refused_and_the_one_before_is_a_way_out(tmp_path: Path, file: str) -> None:
    plan = plan_of()
    end = run(tmp_path, plan)
    path = tmp_path / "round-000005" / file
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ArtifactCorrupt, match=r"to mend it: delete .*round-000005 to go on from the round before"):
        RoundStore(tmp_path, plan).latest()
    for each in path.parent.iterdir():
        each.unlink()
    path.parent.rmdir()
    assert fingerprint(run(tmp_path, plan)) == fingerprint(end)


@pytest.mark.parametrize("name", ["rounds", "cohort", "min_replies"])
def test_impossible_numbers_are_refused(name: str) -> None:
    with pytest.raises(InvalidSetting, match=f"{name}=0; expected {name} >= 1"):
        plan_of(**{name: 0})


def test_a_cohort_beyond_the_nodes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match="a cohort of 3; expected at most the 2 nodes there are"):
        run(tmp_path, plan_of(), MemoryFleet(2))


# -- nodes that fail -------------------------------------------------------------------------------------------------


def test_too_few_replies_raise_and_keep_the_last_round(tmp_path: Path) -> None:
    plan = plan_of(min_replies=2)
    bad = {(3, node): silent for node in (1, 2, 3, 4)}
    kept = run(tmp_path / "bad", replace(plan, rounds=2))
    with pytest.raises(
        RoundError,
        match=r"round 3 has 0 usable updates of 3; the first reason: no reply within 600 s; expected at least 2; "
        r"the model of round 2 stays; .*--resume",
    ):
        run(tmp_path / "bad", plan, MemoryFleet(4, bad))
    latest = RoundStore(tmp_path / "bad", plan).latest()
    assert latest is not None
    assert fingerprint(latest) == fingerprint(kept)
    assert fingerprint(run(tmp_path / "bad", plan)) == fingerprint(run(tmp_path / "good", plan))


def test_nothing_but_silence_never_gives_an_empty_model(tmp_path: Path) -> None:
    bad = {(1, node): silent for node in (1, 2, 3, 4)}
    with pytest.raises(RoundError, match="0 usable updates"):
        run(tmp_path, plan_of(), MemoryFleet(4, bad))
    assert RoundStore(tmp_path, plan_of()).latest() is None


def cohort(number: int) -> tuple[int, ...]:
    return plan_of().cohort_of(number, (1, 2, 3, 4))


def last_record(state: RunState, number: int) -> RoundRecord:
    (record,) = (each for each in state.history if each.round == number)
    return record


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        (filled(np.nan), "tensor 'x.lora_B.weight' has NaN or infinite elements"),
        (filled(np.inf), "tensor 'x.lora_B.weight' has NaN or infinite elements"),
        (filled(1e6), "update of norm"),
        (changed(round=1), "round 1; expected 2"),
        (changed(base_version="old"), "base version 'old'"),
        (changed(epsilon=9.0), "a claimed epsilon of 9"),
        (changed(privacy=None), "an update without a privacy claim"),
    ],
)
def test_a_bad_reply_is_quarantined_and_costs_only_itself(tmp_path: Path, behaviour: object, reason: str) -> None:
    node = cohort(2)[0]
    plan = plan_of(rounds=2)
    with_bad = run(tmp_path / "bad", plan, MemoryFleet(4, {(2, node): behaviour}))  # type: ignore[dict-item]  # by name
    without = run(tmp_path / "silent", plan, MemoryFleet(4, {(2, node): silent}))
    record = last_record(with_bad, 2)
    (quarantined,) = record.quarantined
    assert (quarantined.client, quarantined.round) == (f"client-{node}", 2)
    assert reason in quarantined.reason
    assert (record.planned, record.replied, dict(record.failed)) == (3, 2, {})
    assert fingerprint(with_bad) == fingerprint(without)
    assert last_record(without, 2).failed == {str(node): "no reply within 600 s"}


def test_a_second_reply_of_a_node_is_quarantined(tmp_path: Path) -> None:
    node = cohort(1)[1]
    plan = plan_of(rounds=1)
    doubled = run(tmp_path / "double", plan, MemoryFleet(4, {(1, node): twice}))
    (quarantined,) = last_record(doubled, 1).quarantined
    assert quarantined.reason == f"a second update of node {node}; expected one a round"
    assert last_record(doubled, 1).replied == 3
    assert fingerprint(doubled) == fingerprint(run(tmp_path / "once", plan))


def test_a_node_under_anothers_name_does_not_push_it_out(tmp_path: Path) -> None:
    liar, victim, _ = cohort(1)
    plan = plan_of(rounds=1)
    state = run(tmp_path / "liar", plan, MemoryFleet(4, {(1, liar): changed(client=f"client-{victim}")}))
    assert last_record(state, 1).quarantined == ()
    assert last_record(state, 1).replied == 3
    assert fingerprint(state) == fingerprint(run(tmp_path / "honest", plan))


# -- planning --------------------------------------------------------------------------------------------------------


def test_requests_say_all_that_a_node_needs(tmp_path: Path) -> None:
    fleet = MemoryFleet(4)
    plan = plan_of(objective=Objective(local_steps=2))
    run(tmp_path, plan, fleet)
    taken = Counter[int]()
    for number in range(1, 6):
        taken.update(plan.cohort_of(number, (1, 2, 3, 4)))
    assert plan.participations((1, 2, 3, 4)) == taken
    assert sum(taken.values()) == 15
    assert Counter(request.planned_steps for request in fleet.asked) == Counter(
        {2 * times: 0 for times in taken.values()}
    ) + Counter(2 * taken[node] for number in range(1, 6) for node in plan.cohort_of(number, (1, 2, 3, 4)))
    assert fleet.asked[0].base_version == first_state().adapter_sha256
    assert len({request.base_version for request in fleet.asked}) == 5
    assert {request.trained for request in fleet.asked} == {("x.lora_B.weight",)}


@given(st.integers(0, 99), st.integers(1, 9), st.sets(st.integers(0, 999), min_size=9, max_size=20))
def test_a_cohort_is_a_sample_fixed_by_seed_and_round(seed: int, size: int, nodes: set[int]) -> None:
    plan, known = plan_of(seed=seed, cohort=size), tuple(sorted(nodes))
    chosen = plan.cohort_of(1, known)
    assert len(set(chosen)) == size
    assert set(chosen) <= nodes
    assert list(chosen) == sorted(chosen)
    assert plan.cohort_of(1, known) == chosen


def test_cohorts_differ_and_all_nodes_come_in() -> None:
    plan, nodes = plan_of(cohort=2), tuple(range(10))
    cohorts = [plan.cohort_of(number, nodes) for number in range(1, 60)]
    assert len(set(cohorts)) > 20
    assert {node for each in cohorts for node in each} == set(nodes)


# -- the claim -------------------------------------------------------------------------------------------------------


def test_the_claim_is_the_largest_epsilon_that_was_ever_reported(tmp_path: Path) -> None:
    node = cohort(2)[0]
    state = run(tmp_path, plan_of(), MemoryFleet(4, {(2, node): changed(epsilon=7.5)}))
    claim = state.claim(TERMS)
    assert (claim.unit, claim.epsilon, claim.delta, claim.budget) == ("user", 7.5, 1e-4, 8.0)
    assert state.history[-1].epsilon is not None
    assert state.history[-1].epsilon < 7.5


def test_without_a_guarantee_nothing_is_claimed(tmp_path: Path) -> None:
    plan = plan_of(privacy=OFF, rounds=2)
    state = run(tmp_path, plan)
    claim = state.claim(OFF)
    assert (claim.unit, claim.epsilon, claim.delta, claim.budget) == ("off", None, None, None)
    assert [record.loss for record in state.history] == [1.0, 0.5]
    assert [record.epsilon for record in state.history] == [None, None]


def test_a_round_counts_its_bytes_and_seconds(tmp_path: Path) -> None:
    state = run(tmp_path, plan_of(rounds=1))
    record = last_record(state, 1)
    assert record.reply_bytes == 3 * 5 * 2 * 4
    assert set(record.seconds) == {"train", "aggregate"}
    assert all(seconds >= 0 for seconds in record.seconds.values())
