"""The node's privacy ledger: durable, append-only, charged before anything is released.

SQLite with full synchronisation. A charge is on disk before the update leaves; a crash between the two leaves epsilon
too high, never too low. A charge is named by everything that its release is computed from: the same release asked for
again, after a crash of the server, is the same bytes and is charged once. To that end the ledger also keeps the secret
from which the node's sampling and noise are derived.
"""

import secrets
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from common.errors import BudgetExceeded, LedgerCorrupt, PrivacyError
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

WAIT_S = 30.0
"""Patience with another process that charges the same ledger."""

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
        with self._readable():
            self._db = sqlite3.connect(path, isolation_level=None, timeout=WAIT_S)
            # EXTRA also syncs the folder when the journal goes: without it a power cut may undo the last charge
            self._db.execute("PRAGMA synchronous=EXTRA")
            self._db.executescript(_SCHEMA)
            (found,) = self._db.execute("PRAGMA quick_check").fetchone()
            if found != "ok":
                raise sqlite3.DatabaseError(found)
            for name, value in {"format": LEDGER_FORMAT, "client": client, "mechanism": "poisson-gaussian"}.items():
                self._db.execute("INSERT OR IGNORE INTO about VALUES (?, ?)", (name, value))
                self._check_about(name, value)

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise LedgerCorrupt(
                f"{self.path} is not a readable ledger ({error})",
                consequence="nothing is trained, since what was spent is unknown",
                mend="restore the file from a backup, or start a new data epoch with a new ledger",
            ) from error

    def secret(self) -> int:
        """Return the node's secret seed, drawn from the operating system on first use and told to nobody."""
        with self._readable():
            drawn = str(secrets.randbits(63))
            self._db.execute("INSERT OR IGNORE INTO about VALUES ('secret', ?)", (drawn,))
            (kept,) = self._db.execute("SELECT value FROM about WHERE name = 'secret'").fetchone()
        return int(kept)

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
        with self._readable():
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
        if len(spend.steps) != 1:
            raise PrivacyError(
                f"a release of {len(spend.steps)} kinds of step", expected="one", consequence="nothing is trained"
            )
        with self._transaction():
            before = self.state(spend)
            if self._db.execute("SELECT 1 FROM charges WHERE release = ?", (release,)).fetchone():
                return before
            _refuse_excess(before.spend, spend, budget, accountant)
            ((sigma, rate, steps),) = spend.steps
            self._db.execute(
                "INSERT INTO charges (release, unit, delta, sigma, rate, steps) VALUES (?, ?, ?, ?, ?, ?)",
                (release, spend.unit, spend.delta, sigma, rate, steps),
            )
        return LedgerState(before.spend + spend, before.entries + 1)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Keep others from charging between the check and the charge."""
        with self._readable():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")

    def close(self) -> None:
        """Close the file."""
        self._db.close()


def _refuse_excess(before: PrivacySpend, spend: PrivacySpend, budget: float, accountant: Accountant) -> None:
    projected = accountant(before + spend)
    if not projected <= budget:  # NaN is refused too
        spent = accountant(before)
        raise BudgetExceeded(
            f"this round would bring epsilon from {spent:.3f} to {projected:.3f}",
            expected=f"at most {budget:.3f} ({max(0.0, budget - spent):.3f} remain)",
            consequence="the node does not train",
            mend="raise the budget knowingly, or start with new data",
        )
