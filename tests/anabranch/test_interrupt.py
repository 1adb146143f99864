"""Ctrl-C: one line, exit 130, no process left, and a store that goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

DATA = "synthetic:users=60,items=80,events=2000"
WAIT_S = 120.0


@pytest.fixture
def _heard() -> Iterator[None]:
    """Let Ctrl-C be heard: a shell has what it runs in the background ignore it, and so would what that starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def _command(store: Path, *more: str) -> list[str]:
    options = ["--clients", "3", "--rounds", "4", "--sample-rate", "0.3", "--store", str(store), *more]
    return [sys.executable, "-m", "anabranch.cli", "simulate", "--data", DATA, *options]


def _children(parent: int) -> set[int]:
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            found.add(int(stat.parent.name))
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("_heard")
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the workers by /proc")
def test_ctrl_c_leaves_a_store_that_goes_on(tmp_path: Path) -> None:
    store, said = tmp_path / "store", tmp_path / "said"
    environment = {**os.environ, "ANABRANCH_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    with said.open("wb") as stderr:
        process = subprocess.Popen(_command(store), stdout=subprocess.DEVNULL, stderr=stderr, env=environment)
    try:
        deadline = time.monotonic() + WAIT_S
        while b"round 1/4" not in said.read_bytes():
            assert process.poll() is None, said.read_text()
            assert time.monotonic() < deadline, said.read_text()
            time.sleep(0.05)
        workers = _children(process.pid)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    finally:
        process.kill()
    assert said.read_text().splitlines()[-1].startswith("anabranch: interrupted")
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]

    again = subprocess.run(
        _command(store, "--resume", "--json"), capture_output=True, env=environment, timeout=WAIT_S, check=True
    )
    result = json.loads(again.stdout)
    assert result["rounds_run"] == 4
    assert result["resumed_from"] >= 1
