"""`anabranch ledger`: the worst first, and nothing believed that does not fit."""

import json
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from anabranch.accounting import LentAccountant
from anabranch.commands import ledger as command
from anabranch.independent import ORDERS, independent_epsilon
from anabranch.ledgers import PLD_SHORTFALL, PLD_SLACK, RDP_TOLERANCE
from client.dp import epsilon_of, lowest_epsilon, rdp_bound
from client.ledger import Ledger, Purpose
from common.errors import LedgerCorrupt, PrivacyError
from common.manifests import Manifest
from common.privacy import PrivacyClaim, PrivacySpend, PrivacyUnit
from server.registry import Registry
from tests.server.serving.conftest import board_store

app = typer.Typer(pretty_exceptions_enable=False)
app.add_typer(command.app, name="ledger")
SIGMAS = {"node-a": 3.0, "node-b": 1.5, "node-c": 6.0}


def run(*arguments: str) -> tuple[str, Exception | None]:
    """Run a command; return its stdout, and what it raised."""
    result = CliRunner().invoke(app, ["ledger", *arguments], env={"COLUMNS": "200"})
    error = result.exception if isinstance(result.exception, Exception) else None
    return result.stdout, error


def run_json(*arguments: str) -> dict[str, Any]:
    output, error = run(*arguments, "--json")
    assert error is None
    payload: dict[str, Any] = json.loads(output)
    return payload


def spend(sigma: float, steps: int, unit: PrivacyUnit = "user") -> PrivacySpend:
    return PrivacySpend(unit, 1e-4, ((sigma, 1.0, steps),))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Return a store with three clients, each charged twice."""
    for name, sigma in SIGMAS.items():
        ledger = Ledger(tmp_path / "clients" / name / "ledger.sqlite", name, clock=lambda: 1_000)
        for number in (1, 2):
            ledger.charge(f"run/{number}/x", spend(sigma, 1), 8.0, epsilon_of, purpose=Purpose("run", number, "fedsvd"))
        ledger.close()
    return tmp_path


def test_the_worst_is_shown_first(store: Path) -> None:
    clients = run_json("show", "--store", str(store))["clients"]
    assert list(clients) == ["node-b", "node-a", "node-c"]
    worst = clients["node-b"]
    assert worst["epsilon"] == LentAccountant().epsilon(spend(1.5, 2))
    assert (worst["delta"], worst["entries"], worst["budget"], worst["unit"]) == (1e-4, 2, 8.0, "user")
    assert worst["remaining"] == pytest.approx(8.0 - worst["epsilon"])
    assert worst["epochs"] == {"1": worst["epsilon"]}
    table, _ = run("show", "--store", str(store))
    assert table.index("node-b") < table.index("node-a") < table.index("node-c")


def test_one_client_is_shown_with_its_entries(store: Path) -> None:
    shown = run_json("show", "--store", str(store), "--client", "node-c")
    assert list(shown["clients"]) == ["node-c"]
    assert [(e["run"], e["round"], e["strategy"], e["charged_at"]) for e in shown["entries"]] == [
        ("run", 1, "fedsvd", 1_000),
        ("run", 2, "fedsvd", 1_000),
    ]
    assert "secret" not in json.dumps(shown)
    assert "1970-01-01" in run("show", "--store", str(store), "--client", "node-c")[0]
    _, error = run("show", "--store", str(store), "--client", "ghost")
    assert isinstance(error, PrivacyError)
    assert "no ledger of client 'ghost'" in str(error)


def test_a_deployed_nodes_file_is_a_store_of_one(store: Path) -> None:
    path = store / "clients" / "node-a" / "ledger.sqlite"
    assert list(run_json("show", "--store", str(path))["clients"]) == ["node-a"]
    assert run_json("verify", "--store", str(path))["ok"] is True


def test_a_ledger_without_entries_is_shown_and_verified(tmp_path: Path) -> None:
    Ledger(tmp_path / "clients" / "new" / "ledger.sqlite", "new").close()
    shown = run_json("show", "--store", str(tmp_path))["clients"]["new"]
    assert (shown["epsilon"], shown["entries"], shown["budget"], shown["unit"]) == (0.0, 0, None, None)
    assert "new" in run("show", "--store", str(tmp_path))[0]
    assert run_json("verify", "--store", str(tmp_path))["recomputed"] == {"new": 0.0}


@pytest.mark.parametrize("verb", ["show", "verify"])
def test_a_store_without_ledgers_is_said_to_be_one(tmp_path: Path, verb: str) -> None:
    _, error = run(verb, "--store", str(tmp_path))
    assert isinstance(error, PrivacyError)
    assert "no ledger under" in str(error)


def test_two_ledgers_of_one_client_are_not_believed(store: Path) -> None:
    (store / "clients" / "copy").mkdir()
    (store / "clients" / "copy" / "ledger.sqlite").write_bytes(
        (store / "clients" / "node-c" / "ledger.sqlite").read_bytes()
    )
    _, error = run("show", "--store", str(store))
    assert isinstance(error, LedgerCorrupt)
    output, error = run("verify", "--store", str(store), "--json")
    assert json.loads(output)["ok"] is False
    assert "a second ledger of client 'node-c'" in str(error)


# -- verification ----------------------------------------------------------------------------------------------------


def test_an_untouched_store_verifies(store: Path) -> None:
    verified = run_json("verify", "--store", str(store))
    assert verified["ok"] is True
    assert verified["problems"] == []
    assert verified["max_difference"] <= 1e-6
    assert 0 < verified["max_difference_pld"] <= PLD_SLACK
    shown = run_json("show", "--store", str(store))["clients"]
    assert verified["recomputed"] == {name: row["epsilon"] for name, row in shown.items()}
    assert "recomputed with dp-accounting" in run("verify", "--store", str(store))[0]


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("UPDATE charges SET sigma = 60 WHERE number = 1", "entry 1 of"),
        ("DELETE FROM charges WHERE number = 2", "the last entries of"),
    ],
)
def test_a_tampered_ledger_does_not_verify(store: Path, statement: str, found: str) -> None:
    db = sqlite3.connect(store / "clients" / "node-b" / "ledger.sqlite", isolation_level=None)
    db.execute(statement)
    db.close()
    output, error = run("verify", "--store", str(store), "--json")
    payload = json.loads(output)
    assert payload["ok"] is False
    assert found in payload["problems"][0]
    assert sorted(payload["recomputed"]) == ["node-a", "node-c"]
    assert isinstance(error, LedgerCorrupt)
    assert error.exit_code == 1
    assert found in str(error)
    assert "\n" not in str(error)


def test_a_client_over_its_budget_does_not_verify(store: Path) -> None:
    ledger = Ledger(store / "clients" / "node-b" / "ledger.sqlite", "node-b", clock=lambda: 2_000)
    ledger.charge("run/3/x", spend(1.5, 1), 2.0, lambda total: 0.0)  # an accountant that lies
    ledger.close()
    output, _ = run("verify", "--store", str(store), "--json")
    assert "client 'node-b' spent" in json.loads(output)["problems"][0]


def test_an_accountant_that_says_too_little_is_found_out(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anabranch.ledgers.rdp_bound", lambda total, orders: rdp_bound(total, orders) - 2e-6)
    problems = json.loads(run("verify", "--store", str(store), "--json")[0])["problems"]
    assert len(problems) == 3
    assert "the accountants differ by -2.00e-06" in problems[0]
    monkeypatch.undo()
    monkeypatch.setattr("anabranch.ledgers.lowest_epsilon", lambda total: 0.9 * lowest_epsilon(total))
    problems = json.loads(run("verify", "--store", str(store), "--json")[0])["problems"]
    assert len(problems) == 3
    assert "by PLD" in problems[0]


def test_without_the_other_accountant_nothing_is_verified(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "dp_accounting"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    output, error = run("verify", "--store", str(store))
    assert output == ""
    assert isinstance(error, PrivacyError)
    assert "dp-accounting is not installed" in str(error)
    assert "pip install" in str(error)


KINDS = [
    ((3.0, 1.0, 4),),
    ((20.0, 0.2, 12),),
    ((2.06, 0.2, 12),),
    ((1.0, 0.02, 300),),
    ((1.5, 0.3, 7), (2.0, 0.1, 40)),
    ((0.5, 0.9, 2),),
]


@pytest.mark.parametrize("steps", KINDS, ids=str)
def test_two_accountants_agree(steps: tuple[tuple[float, float, int], ...]) -> None:
    total = PrivacySpend("user", 1e-4, steps)
    other = independent_epsilon(total)
    assert rdp_bound(total, ORDERS) == pytest.approx(other.rdp, abs=RDP_TOLERANCE)
    ours = LentAccountant().epsilon(total)
    assert -PLD_SHORTFALL <= ours - other.pld <= PLD_SLACK


# -- claims ----------------------------------------------------------------------------------------------------------


def publish(store: Path, epsilon: float, *, version: str, created_at: int = 5_000, unit: PrivacyUnit = "user") -> None:
    """Publish a version with a claim into the store that holds the ledgers."""
    registry = Registry.open(store) if (store / "store.json").exists() else board_store(store)
    registry.publish(
        {},
        Manifest(
            "adapter",
            version,
            (),
            created_at,
            base_encoder=registry.info.encoder,
            base_sha256=registry.info.encoder_sha256,
            privacy=PrivacyClaim(unit, epsilon, 1e-4, 8.0, "prv"),
        ),
    )
    registry.point("current", version)


def worst() -> float:
    return LentAccountant().epsilon(spend(1.5, 2))


def test_a_true_claim_verifies(store: Path) -> None:
    publish(store, worst(), version="v000009")
    verified = run_json("verify", "--store", str(store))
    assert verified["claims"] == {"v000009": {"claimed": worst(), "ledgers": pytest.approx(worst(), abs=1e-9)}}
    assert "v000009 claims" in run("verify", "--store", str(store))[0]


@pytest.mark.parametrize(
    ("change", "found"), [(-1e-5, "the claim was lowered"), (1e-5, "a ledger is missing, or entries are")]
)
def test_a_claim_that_is_not_what_the_ledgers_say_does_not_verify(store: Path, change: float, found: str) -> None:
    publish(store, worst() + change, version="v000009")
    output, error = run("verify", "--store", str(store), "--json")
    assert json.loads(output)["ok"] is False
    assert found in str(error)


def test_a_claim_of_another_unit_does_not_verify(store: Path) -> None:
    publish(store, worst(), version="v000009", unit="example")
    assert (
        "claims unit 'example', not 'user'"
        in json.loads(run("verify", "--store", str(store), "--json")[0])["problems"][0]
    )


def test_what_was_charged_since_is_no_part_of_an_older_claim(store: Path) -> None:
    publish(store, worst(), version="v000009", created_at=5_000)
    ledger = Ledger(store / "clients" / "node-b" / "ledger.sqlite", "node-b", clock=lambda: 9_000)
    ledger.charge("run/3/x", spend(1.5, 1), 8.0, epsilon_of)
    ledger.close()
    verified = run_json("verify", "--store", str(store))
    assert verified["recomputed"]["node-b"] > verified["claims"]["v000009"]["claimed"]
    # the newest and the current version are checked, not those before
    publish(store, LentAccountant().epsilon(spend(1.5, 3)), version="v000010", created_at=10_000)
    assert list(run_json("verify", "--store", str(store))["claims"]) == ["v000010"]


def test_a_lost_ledger_shows_in_the_claim(store: Path) -> None:
    publish(store, worst(), version="v000009")
    (store / "clients" / "node-b" / "ledger.sqlite").unlink()
    assert "a ledger is missing" in str(run("verify", "--store", str(store))[1])


def test_a_round_that_asked_nobody_needs_no_entry(tmp_path: Path) -> None:
    Ledger(tmp_path / "clients" / "a" / "ledger.sqlite", "a").close()
    publish(tmp_path, 0.7, version="v000008", unit="client")
    assert run_json("verify", "--store", str(tmp_path))["ok"] is True
    publish(tmp_path, 0.7, version="v000009", unit="user", created_at=6_000)
    assert json.loads(run("verify", "--store", str(tmp_path), "--json")[0])["ok"] is False
