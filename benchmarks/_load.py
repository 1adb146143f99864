"""Load at a constant rate: oha where it is found, each request with a body of its own, and what it tells."""

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

CONNECTIONS = 8
FIRST = -10
"""Niceness of the load generator, where that may be."""
_AUTOGROUP = "/proc/{}/autogroup"


@dataclass(frozen=True, slots=True)
class Told:
    """What one run of the load generator tells; milliseconds."""

    asked: int
    failed: int
    rate: float
    p50: float
    p99: float

    def row(self) -> dict[str, float]:
        """Return it as JSON values."""
        return {
            "answers_a_second": round(self.rate, 1), "p50_ms": round(self.p50, 2), "p99_ms": round(self.p99, 2),
            "asked": self.asked, "failed": self.failed,
        }  # fmt: skip


def oha() -> str | None:
    """Return the load generator: ANABRANCH_OHA, on the PATH, or in `shared/tools` beside the checkout."""
    named = os.environ.get("ANABRANCH_OHA")
    beside = Path(__file__).resolve().parents[2] / "shared" / "tools" / "oha"
    return named or shutil.which("oha") or (str(beside) if os.access(beside, os.X_OK) else None)


def write_bodies(path: Path, bodies: Sequence[dict[str, object]]) -> Path:
    """Write one body a line."""
    path.write_text("".join(json.dumps(body) + "\n" for body in bodies))
    return path


def goes_first() -> bool:
    """Return whether the load generator may have a core before all others."""
    return hasattr(os, "geteuid") and os.geteuid() == 0


def _told_by(command: Sequence[str]) -> str:
    """Run the load generator, and let it have a core first where that may be.

    It stands for users who are elsewhere: a question that it sends late, because the service's own machine is busy, is
    not one that was answered late. Linux shares a machine by session, so it has one of its own.
    """
    first = ["nice", "-n", f"{FIRST}"] if goes_first() else []
    with subprocess.Popen(
        [*first, *command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    ) as running:
        if first:
            with suppress(OSError):  # no Linux, or one that does not share by session
                Path(_AUTOGROUP.format(running.pid)).write_text(f"{FIRST}")
        told = running.communicate()[0]
    if running.returncode:
        raise subprocess.CalledProcessError(running.returncode, command, told)
    return told


def load(url: str, bodies: Path, seconds: float, rate: float | None, connections: int = CONNECTIONS) -> Told:
    """Ask for so long, at a rate, or as fast as it answers where there is none.

    Latency is counted from when a request was due, not from when it could be sent: a server that stalls is charged for
    all who would have asked meanwhile.
    """
    program = oha()
    assert program is not None
    pace = [] if rate is None else ["-q", f"{rate:g}", "--latency-correction"]
    command = [
        program, "-z", f"{seconds:g}s", "-w", "-c", str(connections), *pace, "--no-tui", "--output-format", "json",
        "-m", "POST", "-T", "application/json", "-Z", str(bodies), url,
    ]  # fmt: skip
    told = json.loads(_told_by(command))
    statuses = {code: int(count) for code, count in told["statusCodeDistribution"].items()}
    errors = sum(int(count) for count in (told.get("errorDistribution") or {}).values())
    percentiles = told["latencyPercentiles"]
    asked = sum(statuses.values()) + errors
    return Told(
        asked=asked,
        failed=asked - statuses.get("200", 0),
        rate=sum(statuses.values()) / float(told["summary"]["total"]),
        p50=1e3 * float(percentiles["p50"] or "nan"),
        p99=1e3 * float(percentiles["p99"] or "nan"),
    )
