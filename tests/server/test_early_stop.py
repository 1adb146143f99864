"""A run ends early for two reasons only: budgets that are spent, and whoever watches says so."""

from pathlib import Path

import pytest

from common.errors import BudgetExceeded, RoundError
from server.fleet.base import Failure, Reply
from server.rounds import RoundStore, RunState
from tests.server.memory_fleet import Behaviour, MemoryFleet, silent
from tests.server.test_rounds import plan_of, run

WRAPPED = {
    "in process": "BudgetExceeded: this round would bring epsilon from 7.9 to 9.1; expected: at most 8.0",
    "a SuperNode": "<class 'common.errors.BudgetExceeded'>:<'this round would bring epsilon from 7.9 to 9.1'>",
}


def refuse(text: str = WRAPPED["in process"]) -> Behaviour:
    return lambda reply: [Reply(reply.node, Failure(reply.node, text))]


def from_round(number: int, nodes: range, behaviour: Behaviour) -> MemoryFleet:
    return MemoryFleet(4, {(later, node): behaviour for later in range(number, 9) for node in nodes})


@pytest.mark.parametrize("text", WRAPPED.values(), ids=WRAPPED.keys())
def test_when_all_budgets_are_spent_the_run_ends_and_the_last_round_stays(tmp_path: Path, text: str) -> None:
    states: list[RunState] = []
    with pytest.raises(BudgetExceeded, match=r"round 3 was refused by 3 of 3 nodes.*model of round 2 stays"):
        run(tmp_path, plan_of(), from_round(3, range(1, 5), refuse(text)), states.append)
    latest = RoundStore(tmp_path, plan_of()).latest()
    assert latest is not None
    assert latest.round == 2
    assert latest.adapter_sha256 == states[-1].adapter_sha256


def test_one_spent_budget_costs_only_itself(tmp_path: Path) -> None:
    end = run(tmp_path, plan_of(), from_round(3, range(1, 2), refuse()))
    assert end.round == 5
    assert any("BudgetExceeded" in reason for record in end.history for reason in record.failed.values())


def test_a_round_that_cannot_come_about_whatever_others_answer_ends_it_too(tmp_path: Path) -> None:
    nodes = from_round(1, range(1, 3), refuse())
    with pytest.raises(BudgetExceeded, match="at least 3 with budget left"):
        run(tmp_path, plan_of(min_replies=3), nodes)


def test_silence_is_no_spent_budget(tmp_path: Path) -> None:
    with pytest.raises(RoundError, match="0 usable updates of 3"):
        run(tmp_path, plan_of(), from_round(1, range(1, 5), silent))


def test_whoever_watches_may_end_it(tmp_path: Path) -> None:
    assert run(tmp_path, plan_of(), after_round=lambda state: state.round == 2).round == 2  # type: ignore[arg-type]  # bool
    assert run(tmp_path, plan_of()).round == 5
