"""The ledger: charged before anything leaves, once a release, never lower after any death."""

import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.ledger import Ledger
from common.errors import BudgetExceeded, LedgerCorrupt, PrivacyError
from common.privacy import PrivacySpend

ONE = PrivacySpend("user", 1e-4, ((1.0, 0.2, 5),))
NOTHING = PrivacySpend("user", 1e-4)


def count_steps(spend: PrivacySpend) -> float:
    """Account for tests: one a step."""
    return float(sum(count for _, _, count in spend.steps))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "ledger.sqlite"


def charged(path: Path, client: str = "me") -> float:
    ledger = Ledger(path, client)
    try:
        return count_steps(ledger.state(NOTHING).spend)
    finally:
        ledger.close()


def test_a_charge_is_there_after_reopening(path: Path) -> None:
    ledger = Ledger(path, "me")
    state = ledger.charge("r/1/a", ONE, 100, count_steps)
    assert (count_steps(state.spend), state.entries) == (5, 1)
    ledger.close()
    assert charged(path) == 5


def test_the_same_release_is_charged_once_and_another_again(path: Path) -> None:
    ledger = Ledger(path, "me")
    for release, total in (("r/1/a", 5), ("r/1/a", 5), ("r/1/b", 10), ("r/2/a", 15), ("r/1/a", 15)):
        assert count_steps(ledger.charge(release, ONE, 100, count_steps).spend) == total
    assert charged(path) == 15


def test_the_same_release_is_free_even_when_the_budget_is_gone(path: Path) -> None:
    ledger = Ledger(path, "me")
    ledger.charge("r/1/a", ONE, 5, count_steps)
    assert ledger.charge("r/1/a", ONE, 5, count_steps).entries == 1


def test_beyond_the_budget_nothing_is_charged(path: Path) -> None:
    ledger = Ledger(path, "me")
    ledger.charge("r/1/a", ONE, 9, count_steps)
    with pytest.raises(
        BudgetExceeded,
        match=re.escape("from 5.000 to 10.000; expected at most 9.000 (4.000 remain); the node does not train"),
    ):
        ledger.charge("r/2/a", ONE, 9, count_steps)
    assert charged(path) == 5


@pytest.mark.parametrize("answer", [float("nan"), float("inf")])
def test_an_epsilon_that_is_no_number_is_beyond_any_budget(path: Path, answer: float) -> None:
    with pytest.raises(BudgetExceeded):
        Ledger(path, "me").charge("r/1/a", ONE, 1e9, lambda spend: answer)
    assert charged(path) == 0


@settings(max_examples=25)
@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 9)), max_size=12))
def test_epsilon_is_never_lower_and_never_beyond(asked: list[tuple[str, int]]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder) / "ledger.sqlite", "me")
        before = 0.0
        for release, steps in asked:
            try:
                ledger.charge(release, PrivacySpend("user", 1e-4, ((1.0, 0.2, steps),)), 20, count_steps)
            except BudgetExceeded:
                assert before + steps > 20
            now = count_steps(ledger.state(NOTHING).spend)
            assert before <= now <= 20
            before = now
        ledger.close()


@pytest.mark.parametrize("steps", [(), ((1.0, 0.2, 5), (2.0, 0.2, 5))])
def test_a_release_is_one_kind_of_step(path: Path, steps: tuple[tuple[float, float, int], ...]) -> None:
    with pytest.raises(PrivacyError, match="nothing is trained"):
        Ledger(path, "me").charge("r", PrivacySpend("user", 1e-4, steps), 100, count_steps)
    assert charged(path) == 0


def test_another_nodes_ledger_is_refused(path: Path) -> None:
    Ledger(path, "me").close()
    with pytest.raises(LedgerCorrupt, match="has client 'me'; expected 'you'; nothing is trained"):
        Ledger(path, "you")


def test_another_unit_is_refused(path: Path) -> None:
    ledger = Ledger(path, "me")
    ledger.charge("r/1/a", ONE, 100, count_steps)
    example = PrivacySpend("example", 1e-4, ((1.0, 0.2, 5),))
    with pytest.raises(LedgerCorrupt, match=r"holds charges of unit 'user'; expected unit 'example'"):
        ledger.charge("r/2/a", example, 100, count_steps)
    assert charged(path) == 5


def test_another_delta_restates_the_same_steps(path: Path) -> None:
    ledger = Ledger(path, "me")
    ledger.charge("r/1/a", ONE, 100, count_steps)
    assert ledger.state(PrivacySpend("user", 1e-6)).spend == PrivacySpend("user", 1e-6, ONE.steps)


def test_another_format_is_refused(path: Path) -> None:
    Ledger(path, "me").close()
    with sqlite3.connect(path) as db:
        db.execute("UPDATE about SET value = '3' WHERE name = 'format'")
    db.close()
    with pytest.raises(LedgerCorrupt, match="has format '3'; expected '2'"):
        Ledger(path, "me")


@pytest.mark.parametrize("start", [0, 100, 4096, 8192])
def test_a_corrupt_file_is_refused(path: Path, start: int) -> None:
    ledger = Ledger(path, "me")
    for number in range(40):
        ledger.charge(f"release-{number:0300}", ONE, 1e9, count_steps)
    ledger.close()
    raw = bytearray(path.read_bytes())
    raw[start : start + 2000] = b"\xa5" * 2000
    path.write_bytes(raw)
    with pytest.raises(LedgerCorrupt, match=r"is not a readable ledger.*nothing is trained") as caught:
        Ledger(path, "me").state(NOTHING)
    assert "\n" not in str(caught.value)


def test_a_text_file_is_refused(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("epsilon = 0\n" * 500)
    with pytest.raises(LedgerCorrupt, match="is not a readable ledger"):
        Ledger(path, "me")


def test_two_processes_cannot_both_take_the_last_of_the_budget(path: Path) -> None:
    Ledger(path, "me").close()

    def ask(number: int) -> bool:
        ledger = Ledger(path, "me")
        try:
            ledger.charge(f"r/{number}", ONE, 25, slow_count)
        except BudgetExceeded:
            return False
        finally:
            ledger.close()
        return True

    def slow_count(spend: PrivacySpend) -> float:
        time.sleep(0.02)
        return count_steps(spend)

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(ask, range(12))) == 5
    assert charged(path) == 25


def test_the_secret_is_kept_and_each_nodes_own(path: Path, tmp_path: Path) -> None:
    first, again = Ledger(path, "me"), Ledger(path, "me")
    assert first.secret() == again.secret() == Ledger(path, "me").secret()
    assert first.secret() != Ledger(tmp_path / "other.sqlite", "other").secret()
    assert 0 <= first.secret() < 2**63


CHARGE_AND_RELEASE = """
import sys
from pathlib import Path
from client.ledger import Ledger
from common.privacy import PrivacySpend

ledger = Ledger(Path(sys.argv[1]), "me")
released = open(sys.argv[2], "a", buffering=1)
number = int(sys.argv[3])
while True:
    ledger.charge(f"r/{number}", PrivacySpend("user", 1e-4, ((1.0, 0.2, 1),)), 1e9, lambda spend: 0.0)
    released.write(f"{number}\\n")
    number += 1
"""


def test_killed_at_any_moment_what_was_released_is_charged(path: Path, tmp_path: Path) -> None:
    released = tmp_path / "released"
    released.touch()
    charged_before = 0.0
    for attempt in range(12):
        process = subprocess.Popen(
            [sys.executable, "-c", CHARGE_AND_RELEASE, str(path), str(released), str(attempt * 1_000_000)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(each for each in sys.path if each)},
        )
        began = released.stat().st_size
        while released.stat().st_size == began:
            assert process.poll() is None
            time.sleep(0.002)
        time.sleep(0.003 * attempt)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        total = charged(path)
        assert total >= len(released.read_text().splitlines())
        assert total >= charged_before
        charged_before = total
    assert charged_before >= 12


def test_a_torn_transaction_is_undone_whole(path: Path) -> None:
    ledger = Ledger(path, "me")
    ledger.charge("r/1", ONE, 100, count_steps)
    with pytest.raises(RuntimeError, match="accountant fell over"):
        ledger.charge("r/2", ONE, 100, falls_over)
    assert charged(path) == 5
    assert count_steps(ledger.charge("r/3", ONE, 100, count_steps).spend) == 10


def falls_over(spend: PrivacySpend) -> float:
    raise RuntimeError("accountant fell over")
