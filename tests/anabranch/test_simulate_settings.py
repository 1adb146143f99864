"""The options of `anabranch simulate` and the settings that they become."""

import inspect
from dataclasses import fields
from pathlib import Path

import pytest

from anabranch.accounting import LentAccountant
from anabranch.commands.simulate import ranks_in, settings_of, simulate
from anabranch.loops import loop_for
from anabranch.simulation_settings import SimulationSettings
from common.errors import InvalidSetting, UnknownName, UsageError
from common.instructions import Objective, PrivacyTerms
from common.progress import silent
from server.aggregate.ffa import FFA
from server.async_terms import AsyncTerms
from server.plan import RunPlan
from server.pool import ServerNoise
from server.round_store import RoundStore
from tests.server.memory_fleet import MemoryFleet

DEFAULTS = {name: parameter.default for name, parameter in inspect.signature(simulate).parameters.items()}


def test_left_out_they_are_the_settings_defaults() -> None:
    found, usual = settings_of(DEFAULTS), SimulationSettings()
    differing = {each.name for each in fields(found) if getattr(found, each.name) != getattr(usual, each.name)}
    assert differing <= {"privacy", "server_learning_rate"}  # these follow the unit


def test_every_option_reaches_its_setting() -> None:
    given = DEFAULTS | {
        "cohort": 3, "strategy": "krum", "bad_share": 0.3, "anchor": 0.5, "replay": 0.25, "local_steps": 2, "seed": 5,
        "window": 6, "negatives": 7, "clip": 0.1, "from_version": "current", "from_store": Path("x"), "since": 0.2,
        "until": 0.7, "patience": 4, "evaluate_every": 2, "hide_cold": 0.1, "device": "cpu", "rounds": 9,
    }  # fmt: skip
    found = settings_of(given)
    goal = Objective(window=6, negatives=7, clip=0.1, local_steps=2, anchor=0.5, replay=0.25)
    assert found.objective == goal
    for name in set(given) & {each.name for each in fields(found)} - {"privacy", "objective", "ranks"}:
        assert getattr(found, name) == given[name], name


def test_ranks_are_read() -> None:
    assert ranks_in("") == ()
    assert ranks_in("2, 4,8") == (2, 4, 8)
    assert settings_of(DEFAULTS | {"ranks": "2,4"}).ranks == (2, 4)
    for text in ("2;4", "two", "2,", "-1"):
        with pytest.raises(UsageError, match="--ranks"):
            ranks_in(text)


@pytest.mark.parametrize(("since", "until"), [(0.5, 0.5), (0.6, 0.4), (-0.1, 1.0), (0.0, 1.1)])
def test_a_window_of_time_must_be_one(since: float, until: float) -> None:
    with pytest.raises(InvalidSetting, match="since"):
        SimulationSettings(since=since, until=until)


@pytest.mark.parametrize("option", ["client_rate", "server_rate"])
@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_a_rate_that_moves_nothing_is_refused_by_the_options_name(option: str, rate: float) -> None:
    with pytest.raises(UsageError, match=option.replace("_", "-")):
        settings_of(DEFAULTS | {option: rate})


def test_without_rounds_what_is_left_out_follows_from_those_at_work() -> None:
    assert settings_of(DEFAULTS).asynchronous is None
    assert settings_of(DEFAULTS | {"mode": "async", "clients": 9}).asynchronous == AsyncTerms(4)
    given = {"mode": "async", "cohort": 1, "buffer": 3, "max_staleness": 0, "participations": 7, "stragglers": 0.2}
    assert settings_of(DEFAULTS | given).asynchronous == AsyncTerms(3, 0, 7, 0.2)


@pytest.mark.parametrize("option", [{"buffer": 2}, {"max_staleness": 0}, {"participations": 1}, {"stragglers": 0.1}])
def test_what_rounds_do_not_have_is_refused_with_rounds(option: dict[str, object]) -> None:
    with pytest.raises(InvalidSetting, match="add --mode async"):
        settings_of(DEFAULTS | option)


@pytest.mark.parametrize(
    ("option", "known"), [({"mode": "buffered"}, "async, sync"), ({"uplink": "int4"}, "float32, int8")]
)
def test_an_unknown_mode_or_uplink_names_those_there_are(option: dict[str, object], known: str) -> None:
    with pytest.raises(UnknownName, match=f"expected one of {known}"):
        settings_of(DEFAULTS | option)


def test_real_nodes_are_as_slow_as_they_are(tmp_path: Path) -> None:
    plan = RunPlan(
        "run", 0, 2, 2, "ffa", 0.01, "sha", Objective(), PrivacyTerms(), asynchronous=AsyncTerms(1, stragglers=0.5)
    )
    rest = {"device": "cpu", "clock": lambda: 0, "progress": silent, "noise": ServerNoise(LentAccountant())}
    with pytest.raises(InvalidSetting, match=r"0\.5 stragglers among real nodes"):
        loop_for(plan, FFA(), MemoryFleet(2), RoundStore(tmp_path, plan), simulated=False, **rest)  # type: ignore[arg-type]  # by name
