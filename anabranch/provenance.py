"""Where a figure comes from: which commit, on which kind of machine. No name of a machine or of a person."""

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from anabranch.version import PROGRAM

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("flwr", "torch", "transformers", "peft", "opacus", "numpy")


def commit() -> str:
    """Return the checkout's commit, marked where files differ from it; "unknown" outside of a checkout."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        return "unknown"
    asked = [git, "-C", str(ROOT), "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)  # noqa: S603  fixed words, no input
    return done.stdout.strip() or "unknown"


def machine(device: str) -> Mapping[str, object]:
    """Return what a reader needs to judge times: system, processor, cores, Python, where tensors were."""
    return {
        "system": platform.system(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "device": device,
        "program": PROGRAM,
        "packages": {name: metadata.version(name) for name in PACKAGES},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
