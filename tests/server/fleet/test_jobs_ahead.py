"""A worker with short jobs has its next one at hand, and nobody pays for the death of the one before."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from common.updates import AdapterUpdate
from server.fleet import inprocess
from server.fleet.flower import GridFleet
from server.fleet.inprocess import InProcessGrid
from tests.server.fleet.test_inprocess import APP, ask, clients, configs


def most_at_hand(monkeypatch: pytest.MonkeyPatch, nodes: Sequence[Mapping[str, str]]) -> int:
    """Return the most jobs that a worker had at a time while all nodes answered."""
    seen: list[int] = []
    hand = InProcessGrid._hand

    def watched(grid: InProcessGrid, worker: inprocess._Worker, job: inprocess._Job) -> None:
        hand(grid, worker, job)
        seen.append(len(worker.jobs))

    monkeypatch.setattr(InProcessGrid, "_hand", watched)
    with InProcessGrid(APP, nodes, workers=1) as grid:
        replies = ask(grid)
        assert all(isinstance(reply.outcome, AdapterUpdate) for reply in replies)
    return max(seen)


def test_the_next_short_job_lies_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inprocess, "QUICK_S", 60.0)
    assert most_at_hand(monkeypatch, configs(*[{}] * 8)) == 2


def test_behind_a_long_job_none_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inprocess, "QUICK_S", 0.0)
    assert most_at_hand(monkeypatch, configs(*[{}] * 8)) == 1


def test_a_long_task_is_handed_to_an_idle_worker_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inprocess, "QUICK_S", 60.0)
    monkeypatch.setattr(inprocess, "READY_BYTES", 10)
    assert most_at_hand(monkeypatch, configs(*[{}] * 8)) == 1


def test_a_job_that_lay_ready_when_the_worker_died_has_both_its_chances(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(inprocess, "QUICK_S", 60.0)
    mark = str(tmp_path / "mark")
    nodes = configs({}, {}, {"do": "die"}, {"do": "die-once", "mark": mark}, {}, {}, {})
    with InProcessGrid(APP, nodes, workers=1) as grid:
        found = clients(ask(grid))
        assert found[2].startswith("the worker process died twice")
        assert [*found[:2], *found[3:]] == ["n0", "n1", "n3", "n4", "n5", "n6"]
        assert len(Path(mark).read_text().splitlines()) == 2


def test_a_stage_of_a_secret_sum_with_long_questions_comes_through() -> None:
    with InProcessGrid(APP, configs(*[{}] * 6), workers=2) as grid:
        fleet = GridFleet(grid)
        questions = {node: bytes([node]) * 300_000 for node in fleet.nodes()}
        replies = list(fleet.ask(questions, None, group="1", timeout_s=120.0, answered=lambda count: None))
    assert [reply.node for reply in replies] == sorted(questions)
