"""One store, run after run: each starts from a version, ledgers go on, parents and claims follow."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from anabranch.ledgers import verify_store
from anabranch.simulation import Simulation, SimulationSettings
from client.ledger import DEFAULT_EPOCH
from common.datasets.base import Dataset
from common.datasets.synthetic import SyntheticSpec, make_synthetic
from common.encoder.spec import EncoderSpec
from common.errors import InvalidSetting, NoModel, PrivacyError, StoreMismatch
from common.instructions import Objective, PrivacyTerms
from server.artifact import ADAPTER_WEIGHTS
from server.registry import Registry

DATA = make_synthetic(SyntheticSpec(users=40, items=40, events=1000), 0)
OTHER = make_synthetic(SyntheticSpec(users=41, items=40, events=1000), 1)
OFF = PrivacyTerms("off", float("inf"), 1e-3, 0.3)
PRIVATE = PrivacyTerms("user", 8.0, 1e-3, 1.0)


def settings_for(bert: Path, **changes: object) -> SimulationSettings:
    settings = SimulationSettings(
        clients=2,
        cohort=2,
        rounds=1,
        privacy=OFF,
        objective=Objective(window=4, negatives=3),
        encoder=str(bert),
        device="cpu",
        workers=1,
    )
    return replace(settings, **changes)  # type: ignore[arg-type]  # by name


def simulate(store: Path, settings: SimulationSettings, data: Dataset = DATA) -> dict[str, object]:
    return Simulation(data, store, settings).run().as_json()


def test_windows_of_time_run_after_run_with_replay(tiny_bert: Path, tmp_path: Path) -> None:
    """Two runs under one budget: the second holds later clicks, remembers earlier ones, and ledgers add up."""
    store = tmp_path / "store"
    goal = Objective(window=4, negatives=3, replay=0.5)
    first = settings_for(tiny_bert, privacy=PRIVATE, objective=goal, until=0.5)
    one = simulate(store, first)
    assert (one["version"], one["started_from"]) == ("v000001", None)
    second = replace(
        first, since=0.5, until=1.0, from_version="current", privacy=replace(PRIVATE, epsilon=20.0), rounds=3
    )
    two = simulate(store, second)
    registry = Registry.open(store)
    # its noise is sized for the whole budget, of which a part was spent, so the ledgers end it early
    rounds = two["rounds_run"]
    assert rounds in (1, 2)
    assert "epsilon" in str(two["stopped"])
    newest = f"v{1 + rounds:06d}"
    manifest = registry.manifest(newest)
    assert (two["version"], manifest.parents) == (newest, ("v000001",))
    assert two["started_from"] == manifest.details["started_from"]
    assert manifest.details["started_from"]["version"] == "v000001"
    claims = [registry.manifest(name).privacy for name in ("v000001", newest)]
    assert claims[0] is not None
    assert claims[1] is not None
    assert claims[0].epsilon is not None
    assert claims[1].epsilon is not None
    assert claims[0].epsilon < claims[1].epsilon <= 20
    assert verify_store(store).problems == ()
    for node in ("node-00000", "node-00001"):
        kept = json.loads((store / "clients" / node / "replay.json").read_bytes())
        assert any(kept["epochs"][DEFAULT_EPOCH]["older"].values())
    # the same again is refused, and resumed it is known as done
    with pytest.raises(StoreMismatch, match=f"already holds {rounds} rounds"):
        simulate(store, replace(second, from_version="v000001"))
    done = replace(second, resume=True, rounds=rounds)
    assert simulate(store, done)["adapter_sha256"] == two["adapter_sha256"]


class Killed(Exception):
    """Ends a run from outside."""


@pytest.mark.slow
def test_interrupted_a_started_run_goes_on_to_the_same_adapter(tiny_bert: Path, tmp_path: Path) -> None:
    def killing(text: str) -> None:
        if text.startswith("round 1/2"):
            raise Killed

    found = []
    for name in ("straight", "stopped"):
        store = tmp_path / name
        simulate(store, settings_for(tiny_bert))
        later = settings_for(tiny_bert, from_version="current", rounds=2, evaluate_every=1, seed=1)
        if name == "stopped":
            with pytest.raises(Killed):
                Simulation(DATA, store, later, note=killing).run()
            later = replace(later, resume=True)
        found.append(simulate(store, later))
    assert found[0]["adapter_sha256"] == found[1]["adapter_sha256"]
    assert found[1]["resumed_from"] == 1
    registry = Registry.open(tmp_path / "stopped")
    assert [registry.manifest(name).parents for name in registry.names()] == [(), ("v000001",), ("v000002",)]


@pytest.mark.slow
def test_a_start_from_another_store_or_without_one(tiny_bert: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    asked = settings_for(tiny_bert, from_version="current", from_store=source)
    with pytest.raises(NoModel):
        simulate(target, asked)
    assert not target.exists()
    simulate(source, settings_for(tiny_bert))
    with pytest.raises(PrivacyError, match="cannot promise more"):
        simulate(target, replace(asked, privacy=PRIVATE))
    result = simulate(target, asked, OTHER)
    manifest = Registry.open(target).manifest("v000001")
    assert manifest.parents == ()
    assert manifest.details["started_from"]["elsewhere"] is True
    base = Registry.open(source).manifest("v000001").details["adapter_sha256"]
    assert manifest.details["started_from"]["adapter_sha256"] == base != result["adapter_sha256"]
    with pytest.raises(InvalidSetting, match="without a version"):
        replace(asked, from_version=None)


def test_nodes_of_several_ranks_through_the_real_app(tiny_bert: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    # everybody takes part: by chance a node of sixteen users may have nobody to train on
    several = settings_for(tiny_bert, ranks=(2, 4), privacy=replace(OFF, sample_rate=1.0))
    mixed = simulate(store, several)
    clients = mixed["clients"]
    assert isinstance(clients, dict)
    assert (clients["replied"], clients["quarantined"]) == (2, [])
    arrays = Registry.open(store).arrays("v000001", ADAPTER_WEIGHTS)
    b = next(array for name, array in arrays.items() if "lora_B" in name)
    full = EncoderSpec.from_name(str(tiny_bert)).rank
    assert b.shape[1] == full > 4
    # by falling singular value, and no node trained more than four columns
    assert (abs(b[:, :4]) > 1e-6).any(axis=0).all()
    assert abs(b[:, 4:]).max() < 1e-6
    with pytest.raises(StoreMismatch, match="ranks="):
        simulate(store, replace(several, ranks=(2, 3), resume=True))
    with pytest.raises(InvalidSetting, match=f"at most {full}"):
        simulate(tmp_path / "none", replace(several, ranks=(full + 1,)))
    assert not (tmp_path / "none").exists()
