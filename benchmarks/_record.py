"""Where and with what a figure was measured."""

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).resolve().parent


def _commit() -> str:
    """Return the commit, marked where the tree differs from it; "unknown" without git.

    Where the files were copied without git, MEASURED_COMMIT says which commit they are.
    """
    if named := os.environ.get("MEASURED_COMMIT"):
        return named
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"],
            cwd=HERE,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _instructions() -> str:
    """Return the widest vector instructions of the processor: the last digits of a float32 sum depend on them."""
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return "unknown"
    return next((name for name in ("avx512f", "avx2") if name in flags), "neither AVX-512 nor AVX2")


def write_result(claim: str, figures: Mapping[str, object], packages: tuple[str, ...]) -> Path:
    """Write `results/<claim>.json` and return its path."""
    result = {
        "claim": claim,
        **figures,
        "commit": _commit(),
        "machine": {
            "system": platform.system(),
            "processor": _processor(),
            "instructions": _instructions(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "threads": os.environ.get("OMP_NUM_THREADS", "unset"),
        },
        "versions": {name: metadata.version(name) for name in packages},
    }
    path = HERE / "results" / f"{claim}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    return path
