"""The federated path whole: real workers, real messages, real ledgers; killed anywhere, it ends the same."""

import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from anabranch.simulation import Simulation, SimulationResult, SimulationSettings
from client.dp import epsilon_of
from client.ledger import Ledger
from common.datasets.base import Dataset, in_time_order
from common.errors import StoreMismatch
from common.events import Interaction
from common.ids import rng_for
from common.instructions import Objective, PrivacyTerms
from common.items import Catalogue, Item
from common.privacy import PrivacySpend
from server.registry import Registry
from tests.encoders import WORDS

ITEMS, USERS, CLICKS = 20, 9, 8
DELTA = 1e-3


def make_dataset() -> Dataset:
    """Return nine users with eight clicks each on twenty items with short titles."""
    rng = rng_for("integration")
    catalogue = Catalogue(
        Item(f"i{row}", title, title)
        for row, title in enumerate(" ".join(rng.choice(WORDS, size=3)) for _ in range(ITEMS))
    )
    clicks = [
        Interaction(f"e{user}-{number}", f"u{user}", f"i{int(row)}", "click", 1000 * number + user)
        for user in range(USERS)
        for number, row in enumerate(rng.permutation(ITEMS)[:CLICKS])
    ]
    return Dataset("tiny", catalogue, in_time_order(clicks), "made up")


def settings_for(bert: Path, **changes: object) -> SimulationSettings:
    settings = SimulationSettings(
        clients=3,
        cohort=2,
        rounds=2,
        privacy=PrivacyTerms("user", 8.0, DELTA, 1.0),
        objective=Objective(window=4, negatives=3, local_steps=2),
        encoder=str(bert),
        device="cpu",
        workers=1,
    )
    return replace(settings, **changes)  # type: ignore[arg-type]  # by name


def simulate(store: Path, settings: SimulationSettings) -> SimulationResult:
    return Simulation(make_dataset(), store, settings).run()


@pytest.fixture(scope="module")
def straight(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SimulationResult]:
    """Run once without interruption; what others must equal."""
    store = tmp_path_factory.mktemp("straight") / "store"
    return store, simulate(store, settings_for(tiny_bert))


def ledger_epsilons(store: Path) -> dict[str, float]:
    """Recompute every node's epsilon from the bare rows of its ledger."""
    found = {}
    for path in sorted(store.glob("clients/*/ledger.sqlite")):
        Ledger(path, path.parent.name).close()  # rolls back what a death left half written
        db = sqlite3.connect(path)
        rows = db.execute("SELECT unit, delta, sigma, rate, steps FROM charges").fetchall()
        db.close()
        total = PrivacySpend("user", DELTA)
        for unit, delta, sigma, rate, steps in rows:
            total += PrivacySpend(unit, delta, ((sigma, rate, steps),))
        found[path.parent.name] = epsilon_of(total)
    return found


def not_lower(before: Mapping[str, float], after: Mapping[str, float]) -> bool:
    return all(after.get(node, -1.0) >= epsilon - 1e-9 for node, epsilon in before.items())


def test_a_run_publishes_a_model_with_its_claim(straight: tuple[Path, SimulationResult]) -> None:
    store, result = straight
    told = result.as_json()
    assert told["clients"] == {"planned": 4, "replied": 4, "failed": 0, "failures": [], "quarantined": []}
    manifest = Registry.open(store).verify("current")
    assert manifest.details["adapter_sha256"] == told["adapter_sha256"]
    assert manifest.privacy is not None
    assert manifest.privacy.epsilon == told["privacy"]["epsilon"]
    assert {"random", "popularity", "zero_shot", "global"} <= set(manifest.metrics)


def test_the_claim_is_what_the_ledgers_say(straight: tuple[Path, SimulationResult]) -> None:
    store, result = straight
    claimed = result.as_json()["privacy"]["epsilon"]
    epsilons = ledger_epsilons(store)
    assert claimed == pytest.approx(max(epsilons.values()), abs=1e-6)
    assert 0.8 * 8.0 < claimed <= 8.0


def test_nothing_of_the_data_is_in_what_is_published(straight: tuple[Path, SimulationResult]) -> None:
    store, _ = straight
    for folder in ("versions", "rounds", "pointers"):
        for path in (store / folder).rglob("*"):
            if path.is_file():
                assert b'"u1"' not in path.read_bytes(), path


@pytest.mark.parametrize("workers", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_the_same_seed_gives_the_same_adapter(
    straight: tuple[Path, SimulationResult], tiny_bert: Path, tmp_path: Path, workers: int
) -> None:
    again = simulate(tmp_path / "store", settings_for(tiny_bert, workers=workers))
    assert again.state.adapter_sha256 == straight[1].state.adapter_sha256
    assert ledger_epsilons(tmp_path / "store") == ledger_epsilons(straight[0])


@pytest.mark.slow
def test_another_seed_gives_another_adapter(
    straight: tuple[Path, SimulationResult], tiny_bert: Path, tmp_path: Path
) -> None:
    other = simulate(tmp_path / "store", settings_for(tiny_bert, seed=1))
    assert other.state.adapter_sha256 != straight[1].state.adapter_sha256


def test_a_store_in_use_is_not_overwritten(straight: tuple[Path, SimulationResult], tiny_bert: Path) -> None:
    store, result = straight
    with pytest.raises(StoreMismatch, match="already holds 2 rounds of this run"):
        simulate(store, settings_for(tiny_bert))
    with pytest.raises(StoreMismatch, match="holds a run with cohort=2"):
        simulate(store, settings_for(tiny_bert, cohort=3, resume=True))
    resumed = simulate(store, settings_for(tiny_bert, resume=True))
    assert (resumed.resumed_from, resumed.state.adapter_sha256) == (2, result.state.adapter_sha256)


@pytest.mark.slow
def test_a_spent_budget_ends_the_run_and_the_model_stays(
    straight: tuple[Path, SimulationResult], tiny_bert: Path, tmp_path: Path
) -> None:
    """Noise of the first two rounds was sized for two; asked for six, the ledger says how many more fit."""
    store = tmp_path / "store"
    shutil.copytree(straight[0], store)
    before = ledger_epsilons(store)
    ended = simulate(store, settings_for(tiny_bert, rounds=6, resume=True)).as_json()
    refused = re.search(r"round (\d) was refused by \d of 2 nodes.*at most 8\.000", ended["stopped"])
    assert refused is not None
    whole = int(refused[1]) - 1
    assert 2 <= whole < 6
    assert (ended["rounds_run"], ended["version"]) == (whole, f"v{whole:06d}")
    after = ledger_epsilons(store)
    assert not_lower(before, after)
    assert 7.0 < max(after.values()) <= 8.0
    assert Registry.open(store).current().details["adapter_sha256"] == ended["adapter_sha256"]


@pytest.mark.slow
def test_learning_without_noise_helps(tiny_bert: Path, tmp_path: Path) -> None:
    off = PrivacyTerms("off", float("inf"), DELTA, 1.0)
    result = simulate(tmp_path / "store", settings_for(tiny_bert, privacy=off, rounds=6, cohort=3))
    losses = [record.loss for record in result.state.history]
    assert losses[0] is not None
    assert losses[-1] is not None
    assert losses[-1] < losses[0]
    assert result.as_json()["privacy"] == {
        "unit": "off",
        "epsilon": None,
        "delta": None,
        "budget": None,
        "accountant": "none",
    }
    assert not list(tmp_path.glob("store/clients/*/ledger.sqlite"))


CHILD = """
import sys
from pathlib import Path
from tests.integration.test_federated import settings_for, simulate

print(simulate(Path(sys.argv[1]), settings_for(Path(sys.argv[2]), rounds=3, resume=True)).state.adapter_sha256)
"""


def start(store: Path, bert: Path) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(each for each in sys.path if each),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(store), str(bert)], env=environment, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_killed_at_random_it_ends_the_same_and_epsilon_never_falls(tiny_bert: Path, tmp_path: Path) -> None:
    expected = simulate(tmp_path / "straight", settings_for(tiny_bert, rounds=3)).state.adapter_sha256
    store, chance = tmp_path / "killed", random.Random(7)  # noqa: S311  instants of death, no secret
    before: dict[str, float] = {}
    killed = 0
    for _ in range(12):
        with start(store, tiny_bert) as child:
            deadline = time.monotonic() + chance.uniform(0.0, 12.0)
            # the first ledger tells that rounds are under way; before, there is little to tear
            while not list(store.glob("clients/*/ledger.sqlite")) and child.poll() is None:
                time.sleep(0.01)
            while child.poll() is None and time.monotonic() < deadline:
                time.sleep(0.005)
            if child.poll() is None:
                os.kill(child.pid, signal.SIGKILL)
                killed += 1
        time.sleep(0.5)  # the workers see that their parent is gone
        now = ledger_epsilons(store)
        assert not_lower(before, now)
        before = now
    with start(store, tiny_bert) as child:
        told, _ = child.communicate(timeout=200)
    assert killed >= 3
    assert told.split()[-1] == expected
    assert not_lower(before, ledger_epsilons(store))
    assert ledger_epsilons(store) == ledger_epsilons(tmp_path / "straight")  # what was asked twice is charged once


def test_the_check_of_ledgers_sees_a_lower_one() -> None:
    assert not_lower({"a": 1.0}, {"a": 1.0, "b": 0.5})
    assert not not_lower({"a": 1.0}, {"a": 0.9})
    assert not not_lower({"a": 1.0}, {})
    assert np.isclose(epsilon_of(PrivacySpend("user", DELTA)), 0.0)
