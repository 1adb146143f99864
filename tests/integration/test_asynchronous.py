"""Without rounds, whole: real workers and ledgers, a straggler, a killed server, claims that the ledgers bear out."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict

from anabranch.engines import CLIENT_APP, OnGrid
from anabranch.ledgers import verify_store
from anabranch.simulation import Simulation, SimulationResult, SimulationSettings
from server.async_terms import AsyncTerms
from server.fleet.inprocess import InProcessGrid
from server.registry import Registry
from server.store_info import CATALOGUE_NAME
from tests.integration.test_federated import ledger_epsilons, make_dataset, not_lower, settings_for, simulate


def async_settings(bert: Path, **changes: object) -> SimulationSettings:
    usual = settings_for(bert, cohort=3, rounds=4, asynchronous=AsyncTerms(2, stragglers=0.3), evaluate_every=2)
    return replace(usual, **changes)  # type: ignore[arg-type]  # by name


@pytest.fixture(scope="module")
def straight(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SimulationResult]:
    """Run once without interruption; what others must equal."""
    store = tmp_path_factory.mktemp("straight") / "store"
    return store, simulate(store, async_settings(tiny_bert))


def test_a_straggler_is_waited_for_by_nobody_and_the_rest_is_told(straight: tuple[Path, SimulationResult]) -> None:
    told = straight[1].as_json()
    assert (told["mode"], told["rounds_run"], told["clients"]["failed"]) == ("async", 4, 0)
    assert len(told["staleness"]) == told["clients"]["replied"] == 8
    assert max(told["staleness"]) > 0
    # two quick nodes, eight answers: a straggler alone takes ten or more
    assert told["simulated_moment"] <= 4 * 1.5


def test_every_claim_is_what_the_ledgers_say(straight: tuple[Path, SimulationResult]) -> None:
    store, result = straight
    claims = [manifest.privacy.epsilon for manifest in Registry.open(store).versions() if manifest.privacy is not None]
    assert len(claims) == 2
    assert claims[-1] == pytest.approx(max(ledger_epsilons(store).values()), abs=1e-6)
    assert claims[-1] == result.as_json()["privacy"]["epsilon"]
    verdict = verify_store(store)
    assert verdict.ok, verdict.problems


KILLED = """
import os, signal, sys
from pathlib import Path
from anabranch.simulation import Simulation
from tests.integration.test_asynchronous import async_settings
from tests.integration.test_federated import make_dataset

def note(text):
    if text.startswith("version 2/4"):
        os.kill(os.getpid(), signal.SIGKILL)

Simulation(make_dataset(), Path(sys.argv[1]), async_settings(Path(sys.argv[2])), note=note).run()
"""


@pytest.mark.slow  # in little: tests/server/test_asynchronous.py, stopped after any version
def test_a_killed_server_goes_on_to_the_same_adapter_and_never_lowers_epsilon(
    straight: tuple[Path, SimulationResult], tiny_bert: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(each for each in sys.path if each)}
    child = subprocess.run([sys.executable, "-c", KILLED, str(store), str(tiny_bert)], env=environment, check=False)
    assert child.returncode == -signal.SIGKILL
    before = ledger_epsilons(store)
    resumed = simulate(store, async_settings(tiny_bert, workers=2, resume=True))
    assert resumed.resumed_from == 2
    assert resumed.state.adapter_sha256 == straight[1].state.adapter_sha256
    after = ledger_epsilons(store)
    assert not_lower(before, after)
    # what was under way when it died was charged once
    assert after == ledger_epsilons(straight[0])
    verdict = verify_store(store)
    assert verdict.ok, verdict.problems


def test_nodes_with_files_of_their_own_answer_as_they_come_in_8_bits(
    straight: tuple[Path, SimulationResult], tiny_bert: Path, tmp_path: Path
) -> None:
    """What a SuperLink would carry, carried by worker processes: roll call, order of arrival, nodes' own ledgers."""
    shared = {"catalogue": str(straight[0] / CATALOGUE_NAME), "cache": str(straight[0] / "cache")}
    nodes = [
        {
            "client": name,
            "interactions": str(straight[0] / "clients" / f"node-{number:05d}" / "interactions.jsonl"),
            "ledger": str(tmp_path / "clients" / name / "ledger.sqlite"),
            "encoder": str(tiny_bert),
            "device": "cpu",
            **shared,
        }
        for number, name in enumerate(("north", "south", "west"))
    ]
    for node in nodes:
        Path(node["ledger"]).parent.mkdir(parents=True)
    settings = async_settings(tiny_bert, rounds=2, evaluate_every=0, asynchronous=AsyncTerms(2), uplink="int8")
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    with InProcessGrid(CLIENT_APP, nodes, workers=1) as grid:
        engine = OnGrid(grid, context, len(nodes), simulated=False)
        result = Simulation(make_dataset(), tmp_path / "store", settings, engine=engine).run()
    told = result.as_json()
    assert (told["rounds_run"], told["clients"]["replied"], told["simulated_moment"]) == (2, 4, None)
    assert told["traffic"]["up"] < told["traffic"]["down"] / 4
    spent = ledger_epsilons(tmp_path)
    # those that are still at work have paid already; their updates are in no version
    assert 0 < told["privacy"]["epsilon"] <= max(spent.values()) + 1e-6
    assert max(spent.values()) <= 8.0
