"""The import contracts hold, and each of them bites."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house.tree import PACKAGES, ROOT

# a module that breaks the contract, and the line that does it
PLANTS = {
    "client-server": ("client/planted.py", "import server.validate"),
    "stream-client": ("stream/planted.py", "import client.dataset"),
    "server-stream": ("server/planted.py", "import stream.learner.mf"),
    "common-client": ("common/planted.py", "import client.dataset"),
    "common-anabranch": ("common/planted.py", "import anabranch.output"),
    "server-anabranch": ("server/planted.py", "import anabranch.output"),
    "opacus": ("client/planted.py", "from opacus import PrivacyEngine"),
    "dp-accounting": ("client/planted.py", "import dp_accounting"),
    "kafka": ("stream/planted.py", "import kafka"),
    "river": ("stream/planted.py", "from river import reco"),
    "numba": ("server/planted.py", "import numba"),
    "flwr": ("server/serving/planted.py", "import flwr"),
    "cryptography": ("server/planted.py", "from cryptography.fernet import Fernet"),
    "fastapi": ("server/planted.py", "import fastapi"),
    "torch-in-common": ("common/planted.py", "import torch"),
    "torch-in-the-open": ("anabranch/commands/planted.py", "def f() -> None:\n    import torch"),
    "torch-through-the-encoder": ("stream/planted.py", "import common.encoder.adapter"),
    "peft": ("client/planted.py", "import peft"),
    "typer": ("stream/planted.py", "import typer"),
    "cycle": ("common/errors.py", "import common.store"),
}


def _lint(folder: Path) -> subprocess.CompletedProcess[str]:
    # the copy's packages must win over the installed ones
    script = "import sys; sys.path.insert(0, ''); from importlinter.cli import lint_imports_command as c; c()"
    command = [sys.executable, "-c", script, "--no-logo", "--no-cache"]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Return a copy of the packages and their contracts."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_contracts_hold(copy: Path) -> None:
    done = _lint(copy)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.mark.parametrize("plant", sorted(PLANTS))
def test_a_contract_bites(copy: Path, plant: str) -> None:
    name, line = PLANTS[plant]
    path = copy / name
    before = path.read_text() if path.exists() else '"""Planted."""\n'
    path.write_text(f"{before}\n{line}\n")
    done = _lint(copy)
    assert done.returncode == 1
    assert "BROKEN" in done.stdout, done.stdout + done.stderr


def test_the_stream_side_loads_no_torch() -> None:
    script = (
        "import importlib, pkgutil, sys, stream\n"
        "for found in pkgutil.walk_packages(stream.__path__, 'stream.'):\n"
        "    importlib.import_module(found.name)\n"
        "sys.exit(sorted({'torch', 'transformers', 'opacus', 'flwr'} & set(sys.modules)).__repr__() if "
        "{'torch', 'transformers', 'opacus', 'flwr'} & set(sys.modules) else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("what", "modules", "without"),
    [
        (
            "starts the others",
            "anabranch.commands.serve, anabranch.serving, anabranch.serving_process",
            {"numpy", "numba", "fastapi", "uvicorn", "kafka"},
        ),
        ("reads the store", "server.serving.reload, server.serving.shared", {"fastapi", "uvicorn", "kafka", "torch"}),
        (
            "reads the topic",
            "stream.tail, stream.click_table, stream.connect",
            {"fastapi", "uvicorn", "numba", "torch"},
        ),
    ],
)
def test_a_process_of_a_service_loads_what_it_needs(what: str, modules: str, without: set[str]) -> None:
    script = f"import sys, {modules}\nsys.exit(' '.join(sorted({without!r} & set(sys.modules))) or 0)\n"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, f"the one that {what} loads {done.stderr}"
