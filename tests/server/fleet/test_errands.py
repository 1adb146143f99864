"""Nodes asked one at a time over a real grid: replies under the errand's number, each from its own adapter."""

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from common.instructions import Objective, PrivacyTerms
from common.progress import silent
from common.store import pack_arrays
from common.updates import AdapterUpdate
from server.aggregate import strategy_named
from server.aggregate.base import PlainStep
from server.async_terms import AsyncTerms
from server.asynchronous import AsyncLoop
from server.fleet.base import Errands, Failure, Reply
from server.fleet.errands import GridErrands
from server.fleet.flower import GridFleet
from server.fleet.inprocess import FIRST_NODE, InProcessGrid
from server.plan import RunPlan
from server.round_store import RoundStore, RunState
from tests.server.fleet.test_inprocess import ADAPTER, APP, REQUEST, configs

OFF = PrivacyTerms("off", float("inf"))
OTHER = {name: array + np.float32(1) for name, array in ADAPTER.items()}


def ask(errands: Errands, number: int, node: int, base: str = "base", timeout_s: float = 300.0) -> None:
    adapter = ADAPTER if base == "base" else OTHER
    errands.send(number, node, replace(REQUEST, base_version=base, round=number), adapter, timeout_s=timeout_s)


def all_of(errands: Errands, count: int) -> dict[int, Reply]:
    found: dict[int, Reply] = {}
    deadline = time.monotonic() + 300.0
    while len(found) < count and time.monotonic() < deadline:
        found |= dict(errands.arrived())
    return found


def arrays_of(reply: Reply) -> Mapping[str, np.ndarray]:
    assert isinstance(reply.outcome, AdapterUpdate)
    return reply.outcome.arrays


def test_each_errand_starts_from_its_own_adapter() -> None:
    with InProcessGrid(APP, configs({}, {}, {}), workers=2) as grid:
        errands = GridFleet(grid).errands()
        ask(errands, 7, FIRST_NODE)
        ask(errands, 8, FIRST_NODE + 1, "other")
        ask(errands, 9, FIRST_NODE + 2)
        found = all_of(errands, 3)
    assert sorted(found) == [7, 8, 9]
    for number, base in ((7, ADAPTER), (8, OTHER), (9, ADAPTER)):
        assert np.array_equal(arrays_of(found[number])["a"], 2 * base["a"])
        assert found[number].sent_bytes == len(pack_arrays(base))


def test_silence_and_absence_are_failures_and_hold_nobody_up() -> None:
    with InProcessGrid(APP, configs({"do": "hang"}, {}), workers=2) as grid:
        there = {FIRST_NODE: FIRST_NODE, FIRST_NODE + 1: FIRST_NODE + 1}
        errands = GridErrands(grid, lambda nodes: {node: there[node] for node in nodes if node in there}, 0.01)
        assert errands.reachable([FIRST_NODE, FIRST_NODE + 5]) == {FIRST_NODE}
        ask(errands, 1, FIRST_NODE, timeout_s=5.0)
        ask(errands, 2, FIRST_NODE + 1)
        ask(errands, 3, FIRST_NODE + 5)
        found = all_of(errands, 3)
    assert isinstance(found[2].outcome, AdapterUpdate)
    assert found[1].outcome == Failure(FIRST_NODE, "no reply within 5 s")
    assert found[3] == Reply(FIRST_NODE + 5, Failure(FIRST_NODE + 5, "not connected", asked=False))


def test_a_reply_that_is_no_update_says_so() -> None:
    with InProcessGrid(APP, configs({"spoil": "no meta"}), workers=1) as grid:
        errands = GridFleet(grid).errands()
        ask(errands, 1, FIRST_NODE)
        (reply,) = all_of(errands, 1).values()
    assert isinstance(reply.outcome, Failure)
    assert reply.outcome.reason.startswith("a reply that is no update (")


def test_a_node_that_sleeps_holds_up_no_version(tmp_path: Path) -> None:
    plan = RunPlan("run", 0, 4, 3, "ffa", 0.01, "sha", Objective(), OFF, asynchronous=AsyncTerms(2), timeout_s=300.0)
    with InProcessGrid(APP, configs({"do": "sleep", "seconds": "3600"}, {}, {}), workers=2) as grid:
        loop = AsyncLoop(
            plan,
            strategy_named("ffa", PlainStep(0.01)),
            GridFleet(grid),
            RoundStore(tmp_path, plan),
            device="cpu",
            clock=lambda: 1_000,
            progress=silent,
        )
        state = loop.run(RunState(0, ADAPTER, {}), lambda done: None)
    assert state.round == 4
    assert [record.replied for record in state.history] == [2] * 4
    assert state.underway is not None
    assert FIRST_NODE in {errand.node for errand in state.underway.errands}
    assert all(record.moment is None for record in state.history)
