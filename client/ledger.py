"""The node's privacy ledger: durable, append-only, charged before anything is released.

SQLite with full synchronisation. A charge is on disk before the update leaves; a crash between the two leaves epsilon
too high, never too low. A charge is named by (run, round, base adapter): the same release asked for again, after a
crash of the server, is the same bytes and is charged once.
"""

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from common.errors import BudgetExceeded, LedgerCorrupt
from common.privacy import PrivacySpend

LEDGER_FORMAT = "1"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS charges (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    release TEXT NOT NULL UNIQUE,
    unit TEXT NOT NULL, delta REAL NOT NULL, sigma REAL NOT NULL, rate REAL NOT NULL, steps INTEGER NOT NULL
);
"""

Accountant = Callable[[PrivacySpend], float]


@dataclass(frozen=True, slots=True)
class LedgerState:
    """Everything charged so far and how many entries it took."""

    spend: PrivacySpend
    entries: int


class Ledger:
    """One node's ledger file.

    Parameters
    ----------
    path
        Created when missing.
    client
        The node it belongs to; another one's file is refused.

    Raises
    ------
    LedgerCorrupt
        When the file is no ledger, of another format, or another node's.
    """

    def __init__(self, path: Path, client: str) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = sqlite3.connect(path, isolation_level=None)
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_SCHEMA)
            for name, value in {"format": LEDGER_FORMAT, "client": client, "mechanism": "poisson-gaussian"}.items():
                self._db.execute("INSERT OR IGNORE INTO about VALUES (?, ?)", (name, value))
                self._check_about(name, value)
        except sqlite3.DatabaseError as error:
            raise LedgerCorrupt(
                f"{path} is not a readable ledger ({error})",
                consequence="nothing is trained, since what was spent is unknown",
                mend="restore the file from a backup, or start a new data epoch with a new ledger",
            ) from error

    def _check_about(self, name: str, expected: str) -> None:
        (found,) = self._db.execute("SELECT value FROM about WHERE name = ?", (name,)).fetchone()
        if found != expected:
            raise LedgerCorrupt(
                f"ledger {self.path} has {name} {found!r}", expected=repr(expected), consequence="nothing is trained"
            )

    def state(self, like: PrivacySpend) -> LedgerState:
        """Return what was charged, in the unit and at the delta of `like`.

        Raises
        ------
        LedgerCorrupt
            When the ledger holds charges of another unit: the two do not compose.
        """
        rows = self._db.execute("SELECT unit, sigma, rate, steps FROM charges ORDER BY number").fetchall()
        total = PrivacySpend(like.unit, like.delta)
        for unit, sigma, rate, steps in rows:
            if unit != like.unit:
                raise LedgerCorrupt(
                    f"ledger {self.path} holds charges of unit {unit!r}",
                    expected=f"unit {like.unit!r}",
                    consequence="nothing is trained, since guarantees of two units do not compose",
                    mend=f"use --privacy {unit}, or a new store",
                )
            total += PrivacySpend(like.unit, like.delta, ((sigma, rate, steps),))
        return LedgerState(total, len(rows))

    def charge(self, release: str, spend: PrivacySpend, budget: float, accountant: Accountant) -> LedgerState:
        """Put a charge on disk, unless it would exceed the budget, and return the new state.

        Parameters
        ----------
        release
            Names what is released; a name charged before is not charged again.
        spend
            What the release costs, one kind of step.
        budget
            Epsilon that may not be exceeded.
        accountant
            Computes epsilon of a composed spend.

        Raises
        ------
        BudgetExceeded
            Nothing is charged; nothing may be trained.
        """
        before = self.state(spend)
        if self._db.execute("SELECT 1 FROM charges WHERE release = ?", (release,)).fetchone():
            return before
        projected = accountant(before.spend + spend)
        if projected > budget:
            spent = accountant(before.spend)
            raise BudgetExceeded(
                f"this round would bring epsilon from {spent:.3f} to {projected:.3f}",
                expected=f"at most {budget:.3f} ({max(0.0, budget - spent):.3f} remain)",
                consequence="the node does not train",
                mend="raise the budget knowingly, or start with new data",
            )
        for sigma, rate, steps in spend.steps:
            self._db.execute(
                "INSERT INTO charges (release, unit, delta, sigma, rate, steps) VALUES (?, ?, ?, ?, ?, ?)",
                (release, spend.unit, spend.delta, sigma, rate, steps),
            )
        return LedgerState(before.spend + spend, before.entries + 1)

    def close(self) -> None:
        """Close the file."""
        self._db.close()
