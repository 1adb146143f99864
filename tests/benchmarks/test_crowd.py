"""Rounds in simulated time keep the laws of rounds."""

import importlib.util
import math
import sys
from dataclasses import asdict, replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.ids import rng_for
from tests.house.tree import ROOT
from tests.oracles import crowd as twin

FIRST, SIZE = 2, 400


def _crowd() -> ModuleType:
    """Load the module, which is in no package."""
    spec = importlib.util.spec_from_file_location("_crowd", ROOT / "benchmarks" / "_crowd.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # a dataclass looks its own module up
    spec.loader.exec_module(module)
    return module


crowd = _crowd()
ALWAYS = crowd.Habits(awake_h=48.0, awake_spread=0.0, quits_per_h=0.0, poll_s=0.0)
RESTLESS = crowd.Habits(quits_per_h=40.0)
FREE = crowd.Server(math.inf, math.inf, 0.0, 0.0, math.inf, 60.0)
BUSY = crowd.Server(3e7, 2e6, 0.01, 0.0, math.inf, 60.0)
WORK = crowd.Work(320_000, 120_000, 5.0, 6.0, 0.1)


def a_round(habits: Any, server: Any, *, seed: int = 0, hour: float = 1.0, many: int = 60, work: Any = WORK) -> Any:
    people = crowd.Crowd(SIZE, FIRST, habits, seed)
    chosen = rng_for("cohort", seed).choice(SIZE, many, replace=False)
    cohort = sorted(int(number) + FIRST for number in chosen)
    return crowd.Round(people, server, work, cohort, hour * 3600.0, rng_for("round", seed))


@given(seed=st.integers(0, 1000))
def test_with_endless_links_and_nobody_leaving_a_round_takes_as_long_as_its_slowest_client(seed: int) -> None:
    one = a_round(ALWAYS, FREE, seed=seed)
    people, index = one._crowd, one._index
    people.up[:] = people.down[:] = math.inf
    told = one.play()
    assert told.replied == told.asked == 60
    assert told.seconds == pytest.approx((5.0 + 6.0 + 0.1) * float(people.slowness[index].max()))


@given(seed=st.integers(0, 1000), hour=st.floats(0, 24), server=st.sampled_from([FREE, BUSY]))
def test_times_and_memory_are_those_of_a_plain_account(seed: int, hour: float, server: Any) -> None:
    one = a_round(RESTLESS, server, seed=seed, hour=hour)
    people, index = one._crowd, one._index
    clients = [
        twin.Client(float(asks), float(down), 11.1 * float(slowness), float(up), float(gone))
        for asks, down, slowness, up, gone in zip(
            one._polls, people.down[index], people.slowness[index], people.up[index], one._gone, strict=True
        )
    ]
    shared = twin.Shared(server.out_bytes_s, server.in_bytes_s, server.read_s, server.notice_s)
    read, noticed = twin.times_of(clients, shared, WORK.down_bytes, WORK.up_bytes)
    told = one.play()
    assert told.replied == len(read)
    assert told.lost == {"offline": 60 - len(read) - len(noticed), "left": len(noticed), "late": 0}
    assert told.seconds == pytest.approx(max([*read.values(), *noticed.values()], default=0.0))
    assert told.held == twin.most_held(read, noticed, 60)


@given(seed=st.integers(0, 1000), hour=st.floats(0, 24), timeout_s=st.floats(5, 300))
def test_clients_and_bytes_are_conserved_and_no_round_outlives_its_deadline(
    seed: int, hour: float, timeout_s: float
) -> None:
    told = a_round(RESTLESS, replace(BUSY, timeout_s=timeout_s), seed=seed, hour=hour).play()
    assert told.asked == told.replied + sum(told.lost.values())
    assert told.down_bytes == WORK.down_bytes * (told.asked - told.lost["offline"])
    under_way = told.up_bytes - WORK.up_bytes * told.replied
    assert 0 <= under_way <= WORK.up_bytes * told.lost["late"]
    assert told.seconds <= timeout_s + BUSY.read_s * told.asked
    assert told.held <= told.replied


@given(seed=st.integers(0, 1000), timeout_s=st.floats(5, 300))
def test_a_longer_deadline_never_costs_a_reply(seed: int, timeout_s: float) -> None:
    short, long = (
        a_round(RESTLESS, replace(BUSY, timeout_s=patience), seed=seed).play()
        for patience in (timeout_s, 2 * timeout_s)
    )
    assert short.replied <= long.replied
    assert short.lost["offline"] == long.lost["offline"]


def test_the_same_seed_gives_the_same_round_and_another_seed_another() -> None:
    first, again, other = (asdict(a_round(RESTLESS, BUSY, seed=seed).play()) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_who_came_before_has_its_cache() -> None:
    people = crowd.Crowd(SIZE, FIRST, ALWAYS, 0)
    cohort = range(FIRST, FIRST + 10)
    first, again = (crowd.Round(people, FREE, WORK, cohort, 0.0, rng_for("round", turn)).play() for turn in (1, 2))
    assert people.came_before.sum() == 10
    assert again.seconds < first.seconds


def test_clients_are_there_for_their_hours_and_no_longer() -> None:
    habits = crowd.Habits(wakes_h=22.0, wakes_spread_h=0.0, awake_h=7.0, awake_spread=0.0)
    people, all_of_them = crowd.Crowd(SIZE, FIRST, habits, 0), np.arange(SIZE)
    for hour, left in ((21.9, 0.0), (22.0, 7.0), (24.0, 5.0), (3.0, 2.0), (5.1, 0.0), (46.0, 7.0)):
        assert people.left_s(all_of_them, 3600 * hour) == pytest.approx(3600 * left, abs=1.0)
