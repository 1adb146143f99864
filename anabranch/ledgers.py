"""The ledgers of a store: what each client spent, and whether all of it can be believed.

A store is verified when every ledger is intact, an independent accountant agrees with ours on every one of them, no
client is over its budget, and what a published version claims is what its clients' ledgers say.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from anabranch.accounting import LentAccountant
from anabranch.independent import ORDERS, independent_epsilon
from client.dp import lowest_epsilon, rdp_bound
from client.ledger import LedgerContents, read_ledger
from common.errors import LedgerCorrupt, PrivacyError
from common.manifests import Manifest
from common.privacy import PrivacySpend
from common.progress import Progress, silent
from server.registry import CURRENT, Registry
from server.store_info import STORE_NAME

LEDGER_NAME = "ledger.sqlite"
RDP_TOLERANCE = 1e-6
"""Two accountants on the same Renyi orders, and a claim against the ledgers."""

PLD_SLACK = 0.02
"""Most that our epsilon may lie above the other accountant's PLD: Opacus' PRV adds 0.01 to its estimate, and what its
error in delta makes; 0.0100 to 0.0136 was seen for epsilon from 0.1 to 130."""

PLD_SHORTFALL = 1e-3
"""Most that our epsilon may lie below it: the grids differ."""


@dataclass(frozen=True, slots=True)
class Account:
    """One client's ledger in one line.

    Parameters
    ----------
    client
        Its id.
    contents
        The ledger.
    epsilon
        The largest over its data epochs, each composed; 0 for an empty ledger.
    epochs
        Epsilon of each data epoch.
    """

    client: str
    contents: LedgerContents
    epsilon: float
    epochs: Mapping[str, float]

    @property
    def budget(self) -> float | None:
        """Epsilon that the last entry could not exceed; None for an empty ledger, or where it is unknown."""
        return self.contents.entries[-1].budget if self.contents.entries else None

    @property
    def unit(self) -> str | None:
        """What is protected; None for an empty ledger."""
        return self.contents.entries[-1].spend.unit if self.contents.entries else None

    @property
    def delta(self) -> float | None:
        """At which epsilon is stated; None for an empty ledger."""
        return self.contents.entries[-1].spend.delta if self.contents.entries else None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a verification found.

    Parameters
    ----------
    recomputed
        Client id to epsilon, composed anew from the entries.
    independent_rdp, independent_pld
        Client id to epsilon by the other accountant.
    max_difference
        Largest difference of the two accountants on the same Renyi orders.
    max_difference_pld
        Largest difference, of either sign, of our epsilon and the other's PLD.
    claims
        Version to (claimed epsilon, the ledgers' largest at that time).
    problems
        Everything that does not fit, in words.
    """

    recomputed: Mapping[str, float]
    independent_rdp: Mapping[str, float]
    independent_pld: Mapping[str, float]
    max_difference: float
    max_difference_pld: float
    claims: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing was found wrong."""
        return not self.problems


def find_ledgers(store: Path) -> list[Path]:
    """Return the ledger files of a store, or the one file that `store` is.

    Raises
    ------
    PrivacyError
        When there is none.
    """
    found = [store] if store.is_file() else sorted((store / "clients").glob(f"*/{LEDGER_NAME}"))
    if not found:
        raise PrivacyError(
            f"no ledger under {store}",
            expected=f"{store / 'clients'} with a {LEDGER_NAME} a client, or a ledger file",
            mend="a run with --privacy off keeps none; a deployed node's ledger is on the node: give its path",
        )
    return found


def read_accounts(paths: Iterable[Path], client: str | None = None) -> list[Account]:
    """Read ledgers and return their accounts, the largest epsilon first.

    Parameters
    ----------
    paths
        Of the ledgers.
    client
        Only this one's.

    Raises
    ------
    LedgerCorrupt
        When one is damaged, or two are of one client.
    PrivacyError
        When `client` has none.
    """
    accounts: dict[str, Account] = {}
    for path in paths:
        contents = read_ledger(path)
        if contents.client in accounts:
            raise LedgerCorrupt(
                f"{path} is a second ledger of client {contents.client!r}",
                expected="one a client",
                consequence="what it spent is unknown",
            )
        if client in (None, contents.client):
            accounts[contents.client] = account_of(contents)
    if client is not None and not accounts:
        raise PrivacyError(f"no ledger of client {client!r}", mend="anabranch ledger show lists the clients")
    return sorted(accounts.values(), key=lambda account: (-account.epsilon, account.client))


def account_of(contents: LedgerContents) -> Account:
    """Return a ledger's account: epsilon is the lower of two upper bounds, as the node reports it."""
    epsilon = LentAccountant().epsilon
    epochs = {name: epsilon(spend) for name, spend in contents.spends().items()}
    return Account(contents.client, contents, max(epochs.values(), default=0.0), epochs)


def verify_store(store: Path, progress: Progress = silent) -> Verdict:
    """Verify a store's ledgers and its versions' claims; see the module.

    Raises
    ------
    PrivacyError
        When there is no ledger, or dp-accounting is not installed.
    """
    paths = find_ledgers(store)
    checks = _Checks()
    for number, path in enumerate(paths, start=1):
        checks.ledger(path)
        progress("verify ledgers", number, len(paths))
    if (store / STORE_NAME).exists():
        for manifest in _claiming(Registry.open(store)):
            checks.claim(manifest)
    return checks.verdict()


def _claiming(registry: Registry) -> list[Manifest]:
    """Return the newest version and the current one, where they claim anything."""
    versions = registry.versions()
    current = registry.pointer(CURRENT)
    chosen = [manifest for manifest in versions if manifest is versions[-1] or manifest.version == current]
    return [manifest for manifest in chosen if manifest.privacy is not None and manifest.privacy.epsilon is not None]


class _Checks:
    """What was looked at so far; each distinct spend is accounted once, since a simulation's clients spend alike."""

    def __init__(self) -> None:
        self._contents: dict[str, LedgerContents] = {}
        self._seen: dict[PrivacySpend, tuple[float, float, float, float]] = {}
        self._recomputed: dict[str, float] = {}
        self._rdp: dict[str, float] = {}
        self._pld: dict[str, float] = {}
        self._claims: dict[str, tuple[float, float]] = {}
        self._problems: list[str] = []

    def ledger(self, path: Path) -> None:
        """Check one ledger on its own."""
        try:
            contents = read_ledger(path)
        except LedgerCorrupt as error:
            self._problems.append(error.found)
            return
        client = contents.client
        if client in self._contents:
            self._problems.append(f"{path} is a second ledger of client {client!r}")
            return
        self._contents[client] = contents
        figures = [self._account(client, spend) for spend in contents.spends().values()] or [(0.0, 0.0, 0.0)]
        self._recomputed[client], self._rdp[client], self._pld[client] = (
            max(column) for column in zip(*figures, strict=True)
        )
        if contents.entries:
            last = contents.entries[-1]
            spent, _, _ = self._account(client, contents.spends()[last.epoch])
            if last.budget is not None and not spent <= last.budget + RDP_TOLERANCE:
                self._problems.append(f"client {client!r} spent {spent:.6f} of a budget of {last.budget:.6f}")

    def _account(self, client: str, spend: PrivacySpend) -> tuple[float, float, float]:
        if spend not in self._seen:
            other = independent_epsilon(spend)
            self._seen[spend] = (lowest_epsilon(spend), rdp_bound(spend, ORDERS) - other.rdp, other.rdp, other.pld)
        ours, difference, rdp, pld = self._seen[spend]
        if not abs(difference) <= RDP_TOLERANCE:
            self._problems.append(f"client {client!r}: the accountants differ by {difference:.2e} on the same orders")
        if not -PLD_SHORTFALL <= ours - pld <= PLD_SLACK:
            self._problems.append(f"client {client!r}: epsilon {ours:.6f} against {pld:.6f} by PLD")
        return ours, rdp, pld

    def claim(self, manifest: Manifest) -> None:
        """Check a version's claim against all that was charged until it was made."""
        claim = manifest.privacy
        if claim is None or claim.epsilon is None or claim.delta is None:
            return
        largest = 0.0
        for client, contents in self._contents.items():
            until = tuple(entry for entry in contents.entries if entry.charged_at <= manifest.created_at)
            for spend in LedgerContents(client, until).spends().values():
                if spend.unit != claim.unit:
                    self._problems.append(f"version {manifest.version} claims unit {claim.unit!r}, not {spend.unit!r}")
                restated = PrivacySpend(spend.unit, claim.delta, spend.steps)
                largest = max(largest, self._account(client, restated)[0])
        self._claims[manifest.version] = claim.epsilon, largest
        if claim.epsilon < largest - RDP_TOLERANCE:
            self._problems.append(
                f"version {manifest.version} claims epsilon {claim.epsilon:.6f}, below {largest:.6f} in the ledgers:"
                " the claim was lowered, or a node was charged for an answer that never arrived"
            )
        # cohorts drawn by chance cost a node that was not asked yet, and has no entry yet, all the same
        nobody_asked = claim.unit == "client" and largest == 0.0
        if claim.epsilon > largest + RDP_TOLERANCE and not nobody_asked:
            self._problems.append(
                f"version {manifest.version} claims epsilon {claim.epsilon:.6f}, above {largest:.6f} in the ledgers:"
                " a ledger is missing, or entries are"
            )

    def verdict(self) -> Verdict:
        """Return what was found."""
        return Verdict(
            recomputed=self._recomputed,
            independent_rdp=self._rdp,
            independent_pld=self._pld,
            max_difference=max((abs(difference) for _, difference, _, _ in self._seen.values()), default=0.0),
            max_difference_pld=max((abs(ours - pld) for ours, _, _, pld in self._seen.values()), default=0.0),
            claims=self._claims,
            problems=tuple(dict.fromkeys(self._problems)),
        )
