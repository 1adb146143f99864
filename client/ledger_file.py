"""The ledger as a file: its tables, its seals, and how an older format becomes the present one.

Every entry carries a seal, the SHA-256 of the seal before it and of all its own fields, and the file keeps the last
seal apart. An entry that was edited, removed or reordered breaks the chain and the file is refused. That finds damage
and careless hands; whoever rewrites all seals, or deletes the file, is not found here.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from common.errors import LedgerCorrupt
from common.privacy import PrivacySpend, PrivacyUnit

LEDGER_FORMAT = "2"
MECHANISM = "poisson-gaussian"
DEFAULT_EPOCH = "1"
UNITS: tuple[PrivacyUnit, ...] = ("user", "example", "client")
WAIT_S = 30.0
"""Patience with another process that charges the same ledger."""

_TABLES = (
    "CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    """CREATE TABLE charges (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        release TEXT NOT NULL UNIQUE, epoch TEXT NOT NULL,
        run TEXT NOT NULL, round INTEGER NOT NULL, strategy TEXT NOT NULL, charged_at INTEGER NOT NULL,
        unit TEXT NOT NULL, delta REAL NOT NULL, sigma REAL NOT NULL, rate REAL NOT NULL, steps INTEGER NOT NULL,
        budget REAL, seal TEXT NOT NULL
    )""",
    "CREATE TABLE members (person TEXT PRIMARY KEY, epoch TEXT NOT NULL)",
    "CREATE TABLE holdings (epoch TEXT NOT NULL, sha256 TEXT NOT NULL, PRIMARY KEY (epoch, sha256))",
)


@dataclass(frozen=True, slots=True)
class Purpose:
    """What a charge was for: name of the run, its round (from 1; 0 when unknown), and the aggregation strategy."""

    run: str
    round: int
    strategy: str = ""

    @classmethod
    def of_release(cls, release: str) -> "Purpose":
        """Read run and round out of a release's name, "run/round/hash"."""
        run, _, rest = release.partition("/")
        number = rest.partition("/")[0]
        return cls(run, int(number) if number.isdecimal() else 0)


@dataclass(frozen=True, slots=True)
class Entry:
    """One charge.

    Parameters
    ----------
    release
        Names what was released, and everything it was computed from.
    epoch
        The data that it was computed from; entries compose within it.
    purpose
        Run, round and strategy.
    charged_at
        Milliseconds since the epoch; 0 when unknown.
    spend
        One kind of step.
    budget
        Epsilon that could not be exceeded then; None when unknown.
    """

    release: str
    epoch: str
    purpose: Purpose
    charged_at: int
    spend: PrivacySpend
    budget: float | None

    def row(self) -> tuple[str | int | float | None, ...]:
        """Return the fields in the order of the table."""
        ((sigma, rate, steps),) = self.spend.steps
        why = self.purpose
        named = (self.release, self.epoch, why.run, why.round, why.strategy, self.charged_at)
        budget = None if self.budget is None else float(self.budget)
        return (*named, self.spend.unit, float(self.spend.delta), float(sigma), float(rate), steps, budget)

    def seal(self, before: str) -> str:
        """Return the seal of this entry after the one with the seal `before`."""
        return hashlib.sha256(json.dumps([before, *self.row()]).encode()).hexdigest()


def first_seal(client: str) -> str:
    """Return the seal before the first entry; it names format and client."""
    return hashlib.sha256(json.dumps(["anabranch-ledger", LEDGER_FORMAT, client]).encode()).hexdigest()


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what SQLite says of a damaged file into `LedgerCorrupt`."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise _corrupt(f"{path} is not a readable ledger ({error})") from error


def open_file(path: Path, client: str | None) -> sqlite3.Connection:
    """Open a ledger, made when `client` is given and it is missing, and check all of it.

    Parameters
    ----------
    path
        The file.
    client
        Whom it must belong to; None opens an existing file of anybody.

    Raises
    ------
    LedgerCorrupt
        When it is no ledger, damaged, of another format or mechanism, or another node's.
    """
    if client is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    with readable(path):
        mode = "rw" if client is None else "rwc"
        location = f"file:{quote(str(path.absolute()))}?mode={mode}"
        db = sqlite3.connect(location, uri=True, isolation_level=None, timeout=WAIT_S)
        try:
            # EXTRA also syncs the folder when the journal goes: without it a power cut may undo the last charge
            db.execute("PRAGMA synchronous=EXTRA")
            (found,) = db.execute("PRAGMA quick_check").fetchone()
            if found != "ok":
                raise sqlite3.DatabaseError(found)
            with transaction(db):
                _prepare(db, path, client)
        except BaseException:
            db.close()
            raise
    return db


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """Write all of it or nothing, with nobody else writing meanwhile."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")


def about(db: sqlite3.Connection, name: str) -> str | None:
    """Return what the file says of itself under a name."""
    row = db.execute("SELECT value FROM about WHERE name = ?", (name,)).fetchone()
    return None if row is None else str(row[0])


def append(db: sqlite3.Connection, entry: Entry) -> None:
    """Add an entry and seal it; call it within a transaction."""
    seal = entry.seal(about(db, "head") or "")
    db.execute(f"INSERT INTO charges VALUES (NULL{', ?' * 13})", (*entry.row(), seal))  # noqa: S608  placeholders
    db.execute("UPDATE about SET value = ? WHERE name = 'head'", (seal,))


def read_entries(db: sqlite3.Connection, path: Path) -> tuple[Entry, ...]:
    """Return all entries in their order; call it within a transaction.

    Raises
    ------
    LedgerCorrupt
        When an entry holds an impossible value, or its seal does not fit.
    """
    seal, entries = first_seal(about(db, "client") or ""), []
    for number, *fields, kept in db.execute("SELECT * FROM charges ORDER BY number"):
        entry = _entry(fields, f"entry {number} of {path}")
        seal = entry.seal(seal)
        if kept != seal:
            raise _corrupt(f"entry {number} of {path} was changed, or one before it is gone")
        entries.append(entry)
    if about(db, "head") != seal:
        raise _corrupt(f"the last entries of {path} are gone, {len(entries)} are left")
    return tuple(entries)


def _entry(fields: list[object], where: str) -> Entry:
    try:
        release, epoch, run, number, strategy, charged_at, unit, delta, sigma, rate, steps, budget = fields
        typed = (str(release), str(epoch), Purpose(str(run), _whole(number), str(strategy)), _whole(charged_at))
        known = next(each for each in UNITS if each == unit)
        spend = PrivacySpend(known, _real(delta), ((_real(sigma), _real(rate), _whole(steps)),))
        entry = Entry(*typed, spend, None if budget is None else _real(budget))
    except (ValueError, TypeError, StopIteration) as error:
        raise _corrupt(f"{where} holds a value of the wrong kind") from error
    ((found_sigma, found_rate, found_steps),) = spend.steps
    if not (0 < spend.delta < 1 and found_sigma > 0 and 0 < found_rate <= 1 and found_steps >= 1):
        raise _corrupt(f"{where} holds delta {delta}, sigma {sigma}, rate {rate}, steps {steps}")
    return entry


def _whole(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError(value)
    return value


def _real(value: object) -> float:
    if not isinstance(value, int | float):
        raise TypeError(value)
    return float(value)


def _prepare(db: sqlite3.Connection, path: Path, client: str | None) -> None:
    tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not tables and client is not None:
        _make(db, client)
    elif not {"about", "charges"} <= tables:
        raise _corrupt(f"{path} holds no ledger", expected="tables about and charges")
    if about(db, "format") == "1":
        _migrate_from_1(db, path)
    wanted = {"format": LEDGER_FORMAT, "mechanism": MECHANISM, **({} if client is None else {"client": client})}
    for name, value in wanted.items():
        if (found := about(db, name)) != value:
            raise _corrupt(f"ledger {path} has {name} {found!r}", expected=repr(value))
    read_entries(db, path)


def _make(db: sqlite3.Connection, client: str) -> None:
    for table in _TABLES:
        db.execute(table)
    told = {"format": LEDGER_FORMAT, "mechanism": MECHANISM, "client": client, "head": first_seal(client)}
    db.executemany("INSERT INTO about VALUES (?, ?)", told.items())


def _migrate_from_1(db: sqlite3.Connection, path: Path) -> None:
    """Bring a ledger of format 1 (no epochs, times, purposes or seals) to format 2; what was spent stays as it is."""
    rows = db.execute("SELECT release, unit, delta, sigma, rate, steps FROM charges ORDER BY number").fetchall()
    db.execute("DROP TABLE charges")
    for table in _TABLES[1:]:
        db.execute(table)
    client = about(db, "client") or ""
    told = {"format": LEDGER_FORMAT, "head": first_seal(client)}
    db.executemany("INSERT OR REPLACE INTO about VALUES (?, ?)", told.items())
    for release, *spend in rows:
        why = Purpose.of_release(str(release))
        fields = [release, DEFAULT_EPOCH, why.run, why.round, why.strategy, 0, *spend, None]
        append(db, _entry(fields, f"an entry of {path}"))


def _corrupt(found: str, expected: str = "") -> LedgerCorrupt:
    return LedgerCorrupt(
        found,
        expected=expected,
        consequence="nothing is trained, since what was spent is unknown",
        mend="restore the file from a backup; a new ledger is right only for people that no ledger has seen",
    )
