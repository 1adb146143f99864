"""What carries a run: the engine that the settings name, or a refusal that says what is missing."""

import importlib.util
import json
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from anabranch.engines import ROLL_NAME, OnRay, read_roll, start_ray
from anabranch.nodes import write_configs, write_nodes
from anabranch.simulation_settings import SimulationSettings
from client.app import app, app_of
from client.configuration import node_settings
from common.errors import ArtifactCorrupt, InvalidSetting, RoundError, UnknownName
from common.events import Interaction


def test_without_ray_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InvalidSetting, match=r"without Ray.*nothing was trained.*pip install .*\[ray\]") as refusal:
        OnRay(Path("nodes"), 3)
    assert "\n" not in str(refusal.value)


def test_a_ray_that_does_not_start_begins_no_round(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**settings: object) -> None:
        raise Exception("the node timed out")  # as Ray itself does

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=fail))
    with pytest.raises(RoundError, match=r"Ray at h:1 does not start: the node timed out; no round is begun"):
        start_ray(address="h:1")


@pytest.mark.parametrize(
    ("changes", "error", "reason"),
    [
        ({"engine": "spark"}, UnknownName, "inprocess"),
        ({"ray_address": "auto"}, InvalidSetting, "add --engine flower"),
        ({"timeout_s": 0.0}, InvalidSetting, "a timeout of 0.0 s"),
    ],
)
def test_settings_that_no_engine_bears_are_refused(
    changes: dict[str, object], error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        SimulationSettings(**changes)  # type: ignore[arg-type]  # by name


def test_ray_gets_the_app_by_name_and_each_process_keeps_its_own(tmp_path: Path) -> None:
    raw = pickle.dumps(app_of(tmp_path))  # as Ray carries it
    assert len(raw) < 500
    assert pickle.loads(raw) is app_of(tmp_path)  # noqa: S301  our own bytes
    assert pickle.loads(pickle.dumps(app)) is app  # noqa: S301  our own bytes


def test_nodes_that_flower_simulates_find_what_in_process_ones_are_given(tmp_path: Path) -> None:
    dealt = [{f"u{n}": [Interaction(f"e{n}", f"u{n}", "i", "click", n)]} for n in range(3)]
    settings = SimulationSettings(clients=3, cohort=3, encoder="minilm", ranks=(2, 4))
    nodes = tmp_path / "store" / "clients"
    configs = write_nodes(nodes, dealt, settings, catalogue=tmp_path / "items.jsonl", cache=tmp_path / "cache")
    write_configs(nodes, configs)
    for number, config in enumerate(configs):
        assert node_settings({"partition-id": number, "num-partitions": 3}, nodes) == config
        assert node_settings({"config": str(nodes / config["client"] / "node.json")}, Path("elsewhere")) == config
    assert [config["rank"] for config in configs] == ["2", "4", "2"]


def test_the_folder_of_a_node_may_move(tmp_path: Path) -> None:
    settings = SimulationSettings(clients=1, cohort=1)
    (config,) = write_nodes(tmp_path / "a", [{}], settings, catalogue=tmp_path / "items.jsonl", cache=tmp_path / "c")
    write_configs(tmp_path / "a", [config])
    (tmp_path / "a").rename(tmp_path / "b")
    moved = node_settings({"config": str(tmp_path / "b" / "node-00000" / "node.json")}, tmp_path)
    assert moved["ledger"] == str(tmp_path / "b" / "node-00000" / "ledger.sqlite")
    assert moved["catalogue"] == str(tmp_path / "items.jsonl")


def test_a_configuration_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "node.json"
    with pytest.raises(InvalidSetting, match=r"node\.json cannot be read"):
        node_settings({"config": str(path)}, tmp_path)
    path.write_text('{"rank": 4}')
    with pytest.raises(InvalidSetting, match="a JSON object of text values"):
        node_settings({"config": str(path)}, tmp_path)


def test_a_node_with_files_of_its_own_takes_none_from_a_simulation(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match="a node without 'catalogue'"):
        node_settings({"interactions": "mine.jsonl", "partition-id": 0, "num-partitions": 3}, tmp_path)


def test_the_roll_of_a_run_is_read_back(tmp_path: Path) -> None:
    assert read_roll(tmp_path) == ()
    (tmp_path / ROLL_NAME).write_text(json.dumps(["a", "b"]))
    assert read_roll(tmp_path) == ("a", "b")
    (tmp_path / ROLL_NAME).write_text("[")
    with pytest.raises(ArtifactCorrupt, match="holds no names"):
        read_roll(tmp_path)
