"""The node's privacy ledger: durable, append-only, charged before anything is released.

SQLite with full synchronisation. A charge is on disk before the update leaves; a crash between the two leaves epsilon
too high, never too low. A charge is named by everything that its release is computed from: the same release asked for
again, after a crash of the server, is the same bytes and is charged once. To that end the ledger also keeps the secret
from which the node's sampling and noise are derived.

Entries compose within their **data epoch**. Two epochs compose in parallel, that is, the larger epsilon counts, which
holds only when nobody is in both. So the ledger remembers, under keyed hashes, who belongs to which epoch, and refuses
an epoch that holds a person of another one. New clicks of the same people stay in their epoch and add up.
"""

import hashlib
import secrets
import sqlite3
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from client.ledger_file import (
    DEFAULT_EPOCH,
    LEDGER_FORMAT,
    Entry,
    Purpose,
    about,
    append,
    open_file,
    read_entries,
    readable,
    transaction,
)
from common.clock import Clock, wall_clock
from common.errors import BudgetExceeded, InvalidSetting, LedgerCorrupt, PrivacyError
from common.privacy import PrivacySpend

__all__ = [
    "DEFAULT_EPOCH",
    "LEDGER_FORMAT",
    "Accountant",
    "Entry",
    "Ledger",
    "LedgerContents",
    "LedgerState",
    "Purpose",
    "read_ledger",
]

Accountant = Callable[[PrivacySpend], float]


@dataclass(frozen=True, slots=True)
class LedgerState:
    """Everything charged so far in the epoch and how many entries it took."""

    spend: PrivacySpend
    entries: int


@dataclass(frozen=True, slots=True)
class LedgerContents:
    """A whole ledger, read and found intact; the secret is not in it."""

    client: str
    entries: tuple[Entry, ...]

    def spends(self) -> dict[str, PrivacySpend]:
        """Return what each epoch spent, composed, at the delta of the ledger's last entry (epsilon is the largest)."""
        totals: dict[str, PrivacySpend] = {}
        for entry in self.entries:
            like = PrivacySpend(entry.spend.unit, self.entries[-1].spend.delta)
            one = PrivacySpend(like.unit, like.delta, entry.spend.steps)
            totals[entry.epoch] = totals.get(entry.epoch, like) + one
        return totals


class Ledger:
    """One node's ledger file.

    Parameters
    ----------
    path
        Created when missing; a file of format 1 is brought to the present format, whole or not at all.
    client
        The node it belongs to; another one's file is refused.
    clock
        Wall clock of the entries.
    epoch
        Name of the data epoch that is charged. Everybody in it must be in no other one.

    Raises
    ------
    LedgerCorrupt
        When the file is no ledger, was tampered with, is of another format, or another node's.
    """

    def __init__(self, path: Path, client: str, *, clock: Clock = wall_clock, epoch: str = DEFAULT_EPOCH) -> None:
        if not epoch:
            raise InvalidSetting("a data epoch without a name", expected="some text, the same for the same people")
        self.path, self.epoch = path, epoch
        self._clock = clock
        self._db: sqlite3.Connection = open_file(path, client)

    def secret(self) -> int:
        """Return the node's secret seed, drawn from the operating system on first use and told to nobody."""
        with readable(self.path):
            drawn = str(secrets.randbits(63))
            self._db.execute("INSERT OR IGNORE INTO about VALUES ('secret', ?)", (drawn,))
            return int(about(self._db, "secret") or drawn)

    def hold(self, people: Iterable[str]) -> None:
        """Note who is in this epoch, as keyed hashes.

        Raises
        ------
        PrivacyError
            When somebody is in another epoch too: then the two would add up, and must be one epoch.
        """
        key = self.secret().to_bytes(8, "little")
        hashes = sorted(
            {hashlib.blake2b(person.encode("utf-8", "surrogatepass"), key=key).hexdigest() for person in people}
        )
        whole = hashlib.sha256("".join(hashes).encode()).hexdigest()
        with readable(self.path), transaction(self._db):
            known = "SELECT 1 FROM holdings WHERE epoch = ? AND sha256 = ?"
            if self._db.execute(known, (self.epoch, whole)).fetchone():
                return
            self._db.executemany("INSERT OR IGNORE INTO members VALUES (?, ?)", ((each, self.epoch) for each in hashes))
            for each in hashes:
                (found,) = self._db.execute("SELECT epoch FROM members WHERE person = ?", (each,)).fetchone()
                if found != self.epoch:
                    raise PrivacyError(
                        f"data epoch {self.epoch!r} holds a person of data epoch {found!r}",
                        expected="epochs without a person in common",
                        consequence="nothing is trained, since the two would add up",
                        mend=f"go on in data epoch {found!r}, or leave those people out",
                    )
            self._db.execute("INSERT INTO holdings VALUES (?, ?)", (self.epoch, whole))

    def state(self, like: PrivacySpend) -> LedgerState:
        """Return what was charged in the epoch, in the unit and at the delta of `like`.

        Raises
        ------
        LedgerCorrupt
            When the ledger holds charges of another unit: the two do not compose.
        """
        with readable(self.path):
            rows = self._db.execute(
                "SELECT unit, epoch, sigma, rate, SUM(steps), COUNT(*) FROM charges GROUP BY unit, epoch, sigma, rate"
            ).fetchall()
        total, entries = PrivacySpend(like.unit, like.delta), 0
        for unit, epoch, sigma, rate, steps, count in rows:
            if unit != like.unit:
                raise LedgerCorrupt(
                    f"ledger {self.path} holds charges of unit {unit!r}",
                    expected=f"unit {like.unit!r}",
                    consequence="nothing is trained, since guarantees of two units do not compose",
                    mend=f"use --privacy {unit}, or a new store",
                )
            if epoch == self.epoch:
                total += PrivacySpend(like.unit, like.delta, ((sigma, rate, steps),))
                entries += count
        return LedgerState(total, entries)

    def charge(
        self,
        release: str,
        spend: PrivacySpend,
        budget: float,
        accountant: Accountant,
        *,
        purpose: Purpose | None = None,
    ) -> LedgerState:
        """Put a charge on disk, unless it would exceed the budget, and return the epoch's new state.

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
        purpose
            Run, round and strategy, for readers; taken from the release's name when left out.

        Raises
        ------
        BudgetExceeded
            Nothing is charged; nothing may be trained.
        """
        if len(spend.steps) != 1:
            raise PrivacyError(
                f"a release of {len(spend.steps)} kinds of step", expected="one", consequence="nothing is trained"
            )
        # nobody else may charge between the check and the charge
        with readable(self.path), transaction(self._db):
            before = self.state(spend)
            if self._charged_before(release):
                return before
            _refuse_excess(before.spend, spend, budget, accountant)
            why = purpose or Purpose.of_release(release)
            append(self._db, Entry(release, self.epoch, why, self._clock(), spend, budget))
        return LedgerState(before.spend + spend, before.entries + 1)

    def _charged_before(self, release: str) -> bool:
        row = self._db.execute("SELECT epoch FROM charges WHERE release = ?", (release,)).fetchone()
        if row is not None and row[0] != self.epoch:
            raise PrivacyError(
                f"release {release[:60]!r} was charged in data epoch {row[0]!r}",
                expected=f"data epoch {row[0]!r} for the same data",
                consequence="nothing is trained",
            )
        return row is not None

    def close(self) -> None:
        """Close the file."""
        self._db.close()


def read_ledger(path: Path) -> LedgerContents:
    """Read an existing ledger of any client, checking every seal.

    Raises
    ------
    LedgerCorrupt
        When it is missing, no ledger, of another format, or was tampered with.
    """
    db = open_file(path, None)
    try:
        with readable(path), transaction(db):
            return LedgerContents(about(db, "client") or "", read_entries(db, path))
    finally:
        db.close()


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
