"""What `flwr run` is told, and that it is what `anabranch simulate` is told."""

import inspect
import io
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from anabranch.commands.simulate import settings_of, simulate
from anabranch.federation import ELSEWHERE, OWN, options_in
from anabranch.simulation_settings import SimulationSettings
from common.errors import InvalidSetting, UnknownName
from tests.house.tree import ROOT

APP: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
OPTIONS = {name: parameter.default for name, parameter in inspect.signature(simulate).parameters.items()}


def test_every_option_can_be_set_and_no_other() -> None:
    assert {key.replace("-", "_") for key in APP["config"]} == OPTIONS.keys() - ELSEWHERE | OWN.keys()


def test_defaults_differ_only_where_the_first_run_is_to_be_small() -> None:
    given = options_in(APP["config"])
    differing = {name for name, usual in OPTIONS.items() if given[name] != usual}
    assert differing == {"clients", "rounds", "data", "store", "resume"}
    settings = settings_of(given)
    assert settings == SimulationSettings(
        clients=2,
        cohort=2,
        rounds=3,
        resume=True,
        privacy=settings.privacy,
        server_learning_rate=settings.server_learning_rate,
    )


def test_a_number_without_a_fraction_may_stand_for_one_with() -> None:
    given = options_in({"epsilon": 4, "server-rate": 1, "store": "x", "local-steps": "", "wait": 5})
    assert given["epsilon"] == 4.0
    assert isinstance(given["epsilon"], float)
    assert isinstance(given["server_rate"], float)
    assert (given["store"], given["local_steps"], given["wait"]) == (Path("x"), None, 5.0)


@pytest.mark.parametrize(
    ("config", "error", "reason"),
    [
        ({"round": 3}, UnknownName, "unknown run setting 'round'.*rounds"),
        ({"engine": "flower"}, UnknownName, "unknown run setting 'engine'"),
        ({"rounds": 2.5}, InvalidSetting, r"rounds=2\.5 in the run configuration; expected int"),
        ({"rounds": True}, InvalidSetting, "rounds=True"),
        ({"resume": 1}, InvalidSetting, "expected bool"),
        ({"epsilon": "8"}, InvalidSetting, "epsilon='8'.*expected float"),
        ({"data": 3}, InvalidSetting, "data=3"),
    ],
)
def test_what_means_nothing_is_refused(config: dict[str, object], error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason):
        options_in(config)


@pytest.mark.filterwarnings(
    "ignore:GitWildMatchPattern:DeprecationWarning"
)  # Flower names pathspec's pattern by its old name
def test_flower_accepts_the_description_and_packs_our_packages_alone() -> None:
    from flwr.cli.build import build_fab_from_files
    from flwr.common.config import validate_config

    whole = tomllib.loads((ROOT / "pyproject.toml").read_text())
    valid, errors, _ = validate_config(whole, check_module=False)
    assert valid, errors
    sources = {
        path.relative_to(ROOT).as_posix(): path
        for name in ("anabranch", "tests")
        for path in (ROOT / name).rglob("*.py")
    }
    others = {f"{name}/x.py": b"" for name in ("client", "common", "server", "stream")}
    fab, _ = build_fab_from_files({"pyproject.toml": ROOT / "pyproject.toml", **sources, **others})
    packed = zipfile.ZipFile(io.BytesIO(fab)).namelist()
    assert "anabranch/federation.py" in packed
    assert {name.partition("/")[0] for name in packed} == {
        ".info", "pyproject.toml", "anabranch", "client", "common", "server", "stream",
    }  # fmt: skip
