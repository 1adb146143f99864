"""The ledger's file: epochs, seals, the older format, and what a power cut leaves."""

import contextlib
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.ledger import Ledger, Purpose, read_ledger
from client.ledger_file import open_file, transaction
from common.errors import BudgetExceeded, InvalidSetting, LedgerCorrupt, PrivacyError
from common.privacy import PrivacySpend

ONE = PrivacySpend("user", 1e-4, ((1.0, 0.2, 5),))
NOTHING = PrivacySpend("user", 1e-4)
FORMAT_1 = """
CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE charges (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    release TEXT NOT NULL UNIQUE,
    unit TEXT NOT NULL, delta REAL NOT NULL, sigma REAL NOT NULL, rate REAL NOT NULL, steps INTEGER NOT NULL
);
INSERT INTO about VALUES ('format', '1'), ('client', 'me'), ('mechanism', 'poisson-gaussian'), ('secret', '77');
INSERT INTO charges (release, unit, delta, sigma, rate, steps) VALUES
    ('run-a/1/0f', 'user', 1e-4, 1.5, 0.2, 4), ('run-a/2/1e', 'user', 1e-4, 1.5, 0.2, 4),
    ('odd', 'user', 1e-4, 2.5, 1.0, 1);
"""


def count_steps(spend: PrivacySpend) -> float:
    """Account for tests: one a step."""
    return float(sum(count for _, _, count in spend.steps))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@contextlib.contextmanager
def opened(path: Path, epoch: str = "1", now: int = 1_000) -> Iterator[Ledger]:
    ledger = Ledger(path, "me", clock=lambda: now, epoch=epoch)
    try:
        yield ledger
    finally:
        ledger.close()


def fill(path: Path, count: int = 4) -> None:
    with opened(path) as ledger:
        for number in range(count):
            ledger.charge(f"run/{number + 1}/{number}", ONE, 1e9, count_steps)


def edit(path: Path, statement: str) -> None:
    db = sqlite3.connect(path, isolation_level=None)
    db.execute(statement)
    db.close()


# -- what an entry says ----------------------------------------------------------------------------------------------


def test_an_entry_names_run_round_strategy_epoch_budget_and_time(path: Path) -> None:
    with opened(path, epoch="spring", now=123_456) as ledger:
        ledger.charge("run-a/3/ff", ONE, 8, count_steps, purpose=Purpose("run-a", 3, "fedsvd"))
        ledger.charge("run-b/1/ee", ONE, 20.5, count_steps)
    contents = read_ledger(path)
    assert contents.client == "me"
    first, second = contents.entries
    assert (first.release, first.epoch, first.charged_at, first.budget) == ("run-a/3/ff", "spring", 123_456, 8.0)
    assert first.purpose == Purpose("run-a", 3, "fedsvd")
    assert first.spend == ONE
    assert second.purpose == Purpose("run-b", 1, "")


@pytest.mark.parametrize(
    ("release", "run", "number"),
    [("r/12/ab", "r", 12), ("r", "r", 0), ("r/all 12 rounds at 1.5, 0.2", "r", 0), ("r/-1/x", "r", 0)],
)
def test_run_and_round_are_read_from_the_release(release: str, run: str, number: int) -> None:
    assert Purpose.of_release(release) == Purpose(run, number)


def test_equal_entries_are_merged_before_they_are_accounted(path: Path) -> None:
    seen: list[PrivacySpend] = []

    def look(spend: PrivacySpend) -> float:
        seen.append(spend)
        return 0.0

    with opened(path) as ledger:
        for number in range(9):
            ledger.charge(f"r/{number}", PrivacySpend("user", 1e-4, ((1.0 + number % 2, 0.2, 5),)), 1e9, look)
    assert seen[-1].steps == ((1.0, 0.2, 25), (2.0, 0.2, 20))
    assert read_ledger(path).spends() == {"1": seen[-1]}


def test_reading_a_ledger_that_is_not_there_makes_none(path: Path) -> None:
    with pytest.raises(LedgerCorrupt, match="is not a readable ledger"):
        read_ledger(path)
    assert not path.exists()


# -- epochs ----------------------------------------------------------------------------------------------------------


def test_epochs_of_other_people_are_charged_apart(path: Path) -> None:
    with opened(path, "spring") as ledger:
        ledger.hold(["ann", "bob"])
        ledger.charge("r/1/a", ONE, 9, count_steps)
    with opened(path, "summer") as ledger:
        ledger.hold(["cid"])
        assert ledger.state(NOTHING).spend == NOTHING
        ledger.charge("r/1/b", ONE, 9, count_steps)
        with pytest.raises(BudgetExceeded, match=r"from 5.000 to 10.000"):
            ledger.charge("r/2/b", ONE, 9, count_steps)
    assert read_ledger(path).spends() == {"spring": ONE, "summer": ONE}


def test_nobody_is_in_two_epochs(path: Path) -> None:
    with opened(path, "spring") as ledger:
        ledger.hold(["ann", "bob"])
        ledger.hold(["bob", "ann"])
        ledger.hold(["ann", "dan"])  # new people and new clicks may join
    with opened(path, "summer") as ledger:
        with pytest.raises(PrivacyError, match="data epoch 'summer' holds a person of data epoch 'spring'"):
            ledger.hold(["cid", "dan"])
        ledger.hold(["cid"])
    with opened(path, "spring") as ledger, pytest.raises(PrivacyError, match="person of data epoch 'summer'"):
        ledger.hold(["cid"])


@settings(max_examples=20)
@given(st.lists(st.tuples(st.sampled_from("xyz"), st.sets(st.sampled_from("abcdef"), min_size=1)), max_size=8))
def test_whatever_is_held_no_person_counts_twice(asked: list[tuple[str, set[str]]]) -> None:
    import tempfile

    owner: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for epoch, people in asked:
            with opened(Path(folder) / "ledger.sqlite", epoch) as ledger:
                if any(owner.get(each, epoch) != epoch for each in people):
                    with pytest.raises(PrivacyError):
                        ledger.hold(people)
                else:
                    ledger.hold(people)
                    owner |= dict.fromkeys(people, epoch)


def test_the_file_names_nobody(path: Path) -> None:
    with opened(path) as ledger:
        ledger.hold(["a-user-with-a-name"])
    assert b"a-user-with-a-name" not in path.read_bytes()


def test_a_release_keeps_its_epoch(path: Path) -> None:
    with opened(path, "spring") as ledger:
        ledger.charge("r/1/a", ONE, 9, count_steps)
    with opened(path, "summer") as ledger, pytest.raises(PrivacyError, match="was charged in data epoch 'spring'"):
        ledger.charge("r/1/a", ONE, 9, count_steps)


def test_an_epoch_has_a_name(path: Path) -> None:
    with pytest.raises(InvalidSetting, match="without a name"):
        Ledger(path, "me", epoch="")


# -- tampering -------------------------------------------------------------------------------------------------------

EDITS = {
    "less noise hidden": "UPDATE charges SET sigma = 50.0 WHERE number = 2",
    "fewer steps": "UPDATE charges SET steps = 1 WHERE number = 3",
    "a smaller rate": "UPDATE charges SET rate = 0.01",
    "another epoch": "UPDATE charges SET epoch = 'elsewhere' WHERE number = 1",
    "another budget": "UPDATE charges SET budget = 99.0 WHERE number = 1",
    "another time": "UPDATE charges SET charged_at = 5 WHERE number = 4",
    "another release": "UPDATE charges SET release = 'x' WHERE number = 1",
    "one taken out": "DELETE FROM charges WHERE number = 2",
    "the last taken out": "DELETE FROM charges WHERE number = 4",
    "all taken out": "DELETE FROM charges",
    "two swapped": "UPDATE charges SET number = CASE number WHEN 1 THEN -1 ELSE number END",
    "one written in": "INSERT INTO charges SELECT 9, 'y', epoch, run, round, strategy, charged_at, unit, delta, sigma, "
    "rate, steps, budget, seal FROM charges WHERE number = 1",
    "another client": "UPDATE about SET value = 'you' WHERE name = 'client'",
    "words for numbers": "UPDATE charges SET sigma = 'much'",
    "no sigma": "UPDATE charges SET sigma = 0",
    "a negative count": "UPDATE charges SET steps = -5",
    "an impossible unit": "UPDATE charges SET unit = 'nothing'",
    "another mechanism": "UPDATE about SET value = 'laplace' WHERE name = 'mechanism'",
    "no tables": "DROP TABLE charges",
}


@pytest.mark.parametrize("name", [name for name in EDITS if name != "two swapped"])
def test_a_ledger_that_was_tampered_with_is_refused_by_reader_and_node(path: Path, name: str) -> None:
    fill(path)
    edit(path, EDITS[name])
    with pytest.raises(LedgerCorrupt, match="nothing is trained") as caught:
        read_ledger(path)
    assert str(path) in str(caught.value)
    with pytest.raises(LedgerCorrupt, match="nothing is trained"):
        Ledger(path, "me")


def test_a_mechanism_of_another_kind_is_named(path: Path) -> None:
    fill(path)
    edit(path, EDITS["another mechanism"])
    with pytest.raises(LedgerCorrupt, match="has mechanism 'laplace'; expected 'poisson-gaussian'"):
        Ledger(path, "me")


def test_entries_that_changed_places_are_found(path: Path) -> None:
    fill(path)
    edit(path, EDITS["two swapped"])  # the first is now -1: still first, and intact
    assert len(read_ledger(path).entries) == 4
    edit(path, "UPDATE charges SET number = 9 WHERE number = -1")
    with pytest.raises(LedgerCorrupt, match=r"entry 2 of .* was changed, or one before it is gone"):
        read_ledger(path)


# -- the older format ------------------------------------------------------------------------------------------------


def write_format_1(path: Path) -> None:
    db = sqlite3.connect(path)
    db.executescript(FORMAT_1)
    db.close()


def test_a_ledger_of_format_1_keeps_what_it_spent(path: Path) -> None:
    write_format_1(path)
    with opened(path) as ledger:
        assert ledger.secret() == 77
        assert ledger.state(NOTHING).spend.steps == ((1.5, 0.2, 8), (2.5, 1.0, 1))
        again = ledger.charge("run-a/2/1e", PrivacySpend("user", 1e-4, ((1.5, 0.2, 4),)), 1, count_steps)
        assert again.entries == 3
        ledger.charge("run-a/3/2d", ONE, 100, count_steps)
    entries = read_ledger(path).entries
    assert [entry.purpose for entry in entries] == [Purpose("run-a", n) for n in (1, 2)] + [
        Purpose("odd", 0),
        Purpose("run-a", 3),
    ]
    assert [entry.epoch for entry in entries] == ["1"] * 4
    assert [entry.charged_at for entry in entries] == [0, 0, 0, 1_000]
    assert [entry.budget for entry in entries] == [None, None, None, 100.0]


def test_a_ledger_of_format_1_with_nonsense_is_left_as_it_is(path: Path) -> None:
    write_format_1(path)
    edit(path, "UPDATE charges SET rate = 7 WHERE number = 3")
    before = path.read_bytes()
    for _ in range(2):
        with pytest.raises(LedgerCorrupt, match="rate 7"):
            Ledger(path, "me")
    assert path.read_bytes() == before


# -- power cuts ------------------------------------------------------------------------------------------------------


def test_a_commit_waits_for_the_disk(path: Path) -> None:
    with opened(path) as ledger:
        assert ledger._db.execute("PRAGMA synchronous").fetchone() == (3,)  # EXTRA
        assert ledger._db.execute("PRAGMA journal_mode").fetchone() == ("delete",)


def cut_off(path: Path, folder: Path) -> Path:
    """Return a copy of the ledger as the disk has it in the middle of a transaction's writing."""
    with opened(path) as ledger:
        ledger._db.execute("PRAGMA cache_size = 2")  # pages go to disk before the commit
        with contextlib.suppress(KeyboardInterrupt), transaction(ledger._db):
            for number in range(500):
                ledger._db.execute(
                    "INSERT INTO charges SELECT NULL, ?, epoch, run, round, strategy, charged_at, unit, delta, sigma, "
                    "rate, steps, budget, seal FROM charges WHERE number = 1",
                    (f"half/{number}",),
                )
            for file in path.parent.glob(f"{path.name}*"):
                shutil.copy(file, folder / file.name)
            raise KeyboardInterrupt
    assert (folder / f"{path.name}-journal").stat().st_size > 0
    assert (folder / path.name).read_bytes() != path.read_bytes()
    return folder / path.name


@pytest.mark.parametrize("seed", range(6))
def test_after_a_power_cut_the_ledger_is_the_one_before(path: Path, tmp_path: Path, seed: int) -> None:
    fill(path, 60)
    before = read_ledger(path)
    whole = path.read_bytes()
    copy = tmp_path / "disk"
    copy.mkdir()
    torn = cut_off(path, copy)
    # of the sectors that were on their way any may have arrived, and any may be rubbish
    new, rng = bytearray(torn.read_bytes()), random.Random(seed)  # noqa: S311  no secret
    for start in range(0, len(new), 512):
        arrived = rng.choice(("new", "old", "rubbish"))
        old = whole[start : start + 512]
        if bytes(new[start : start + 512]) != old and arrived != "new":
            new[start : start + 512] = old.ljust(512, b"\0") if arrived == "old" else rng.randbytes(512)
    torn.write_bytes(new)
    assert read_ledger(torn) == before


MIGRATE = """
import sys
from pathlib import Path
from client.ledger import Ledger

print("ready", flush=True)
Ledger(Path(sys.argv[1]), "me")
"""


def test_killed_while_it_changes_format_it_is_one_or_the_other(path: Path) -> None:
    write_format_1(path)
    db = sqlite3.connect(path)
    db.executemany(
        "INSERT INTO charges (release, unit, delta, sigma, rate, steps) VALUES (?, 'user', 1e-4, 1.5, 0.2, 1)",
        ((f"more/{number}/x",) for number in range(3_000)),
    )
    db.commit()
    db.close()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(each for each in sys.path if each)}
    for wait in (0.0, 0.01, 0.03):
        process = subprocess.Popen(
            [sys.executable, "-c", MIGRATE, str(path)], env=environment, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        with process.stdout:
            assert process.stdout.readline() == "ready\n"
            try:
                process.wait(wait)
            except subprocess.TimeoutExpired:
                process.kill()
            process.wait()
    with opened(path) as ledger:
        assert ledger.state(NOTHING).spend.steps == ((1.5, 0.2, 3_008), (2.5, 1.0, 1))


def test_two_may_open_at_once_what_is_not_there_yet(path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def make(_: int) -> None:
        open_file(path, "me").close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(make, range(16)))
    assert read_ledger(path).entries == ()
