"""The gate inside a run: a version that is worse waits in the store, and patience ends what gets no better."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from anabranch.parts import Parts
from anabranch.simulation import Simulation, SimulationSettings
from common.datasets.synthetic import SyntheticSpec, make_synthetic
from common.instructions import Objective, PrivacyTerms
from common.manifests import Manifest
from common.store import pack_arrays
from server.artifact import ITEM_VECTORS
from server.registry import CURRENT, Registry

DATA = make_synthetic(SyntheticSpec(users=40, items=40, events=1000), 0)


def settings_for(bert: Path) -> SimulationSettings:
    return SimulationSettings(
        clients=2,
        cohort=2,
        rounds=1,
        privacy=PrivacyTerms("off", float("inf"), 1e-3, 0.3),
        objective=Objective(window=4, negatives=3),
        encoder=str(bert),
        device="cpu",
        workers=1,
        evaluate_every=1,
    )


def foresee(store: Path) -> None:
    """Make a version current that cheats: its vectors know who will click what."""
    registry = Registry.open(store)
    events = Parts.of(DATA, 0.0, 0).events(DATA.catalogue)
    clicks = np.zeros((len(events.users), len(DATA.catalogue)), dtype=np.float32)
    clicks[events.user, events.candidates[events.target]] = 3.0
    for history, user in zip(events.history, events.user, strict=True):
        clicks[user, history[history >= 0]] = 1.0
    _, sizes, right = np.linalg.svd(clicks, full_matrices=False)
    vectors = np.ascontiguousarray((right * sizes[:, None])[:32].T, dtype=np.float32)
    before = registry.current()
    cheat = Manifest("adapter", "cheat", (), before.created_at + 1, "tiny", before.base_sha256)
    registry.publish({ITEM_VECTORS: pack_arrays({"item_vectors": vectors})}, cheat)
    registry.point(CURRENT, "cheat")


@pytest.mark.slow
def test_versions_that_are_worse_wait_and_patience_ends_the_run(tiny_bert: Path, tmp_path: Path) -> None:
    store, notes = tmp_path / "store", list[str]()
    settings = settings_for(tiny_bert)
    first = Simulation(DATA, store, settings).run().as_json()
    assert first["gate"]["promoted"] is True
    foresee(store)
    more = replace(settings, rounds=5, patience=2, resume=True)
    told = Simulation(DATA, store, more, note=notes.append).run().as_json()
    assert told["rounds_run"] == 3  # the second and third version are held back
    assert told["stopped"] == "the quality gate held back the last 2 versions"
    assert told["gate"]["promoted"] is False
    assert "worse than that of cheat" in told["gate"]["reason"]
    registry = Registry.open(store)
    assert registry.pointer(CURRENT) == "cheat"
    assert registry.names() == ("cheat", "v000001", "v000002", "v000003")
    assert any("v000003 is kept but not promoted" in note for note in notes)

    again = Simulation(DATA, store, more, note=notes.append).run().as_json()  # patience is exhausted from the start
    assert (again["rounds_run"], again["stopped"]) == (3, told["stopped"])
    on = Simulation(DATA, store, replace(more, patience=0, rounds=4), note=notes.append).run().as_json()
    assert (on["rounds_run"], on["stopped"]) == (4, None)
    assert Registry.open(store).pointer(CURRENT) == "cheat"
    finished = Simulation(DATA, store, replace(more, patience=0, rounds=4)).run().as_json()
    assert finished["gate"] == on["gate"]  # a finished run does not promote what it held back
