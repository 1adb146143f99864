"""A real federation on loopback: Flower's SuperLink and SuperNodes as `anabranch deploy` writes them, by process id."""

import inspect
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from anabranch.commands.simulate import settings_of, simulate
from anabranch.deployment import write_rehearsal
from anabranch.simulation import Simulation, SimulationSettings
from common.datasets.base import Dataset
from common.datasets.registry import load_dataset
from server.intake import RoundRecord
from server.registry import Registry
from tests.house.tree import ROOT

DATA = "synthetic:users=30,items=40"
NODES = 3
ROUNDS = 3
START_S = 300.0
RUN_S = 1500.0


def free_ports(count: int) -> list[int]:
    """Return ports that were free a moment ago."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


def options(bert: Path, **changes: object) -> dict[str, Any]:
    """Return options of `anabranch simulate` for a small run under user-level privacy."""
    usual = {name: parameter.default for name, parameter in inspect.signature(simulate).parameters.items()}
    small = {"data": DATA, "clients": NODES, "rounds": ROUNDS, "encoder": str(bert), "device": "cpu"}
    return usual | small | {"window": 4, "negatives": 3, "delta": 1e-3, "sample_rate": 0.5} | changes


def dataset() -> Dataset:
    """Return the data that is dealt to the nodes."""
    return load_dataset(DATA, seed=0, notice=lambda text: None)


def environment() -> dict[str, str]:
    """Return the environment of Flower's programs: ours on the PATH, one thread each, quick to take up work."""
    programs = str(Path(sys.executable).parent)
    more = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1"}
    return {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "PYTHONDONTWRITEBYTECODE": "1", **more}


def answers(url: str, trust: ssl.SSLContext | None = None) -> bool:
    """Tell whether a server answers a request."""
    try:
        with urllib.request.urlopen(url, timeout=5, context=trust):  # noqa: S310  loopback
            return True
    except OSError:
        return False


def family(pid: int) -> list[int]:
    """Return a process and all that it started: Flower starts some in sessions of their own, which outlive it."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            with suppress(FileNotFoundError, ProcessLookupError):
                found += map(int, task.read_text().split())
    return found


def wait_until(
    what: Callable[[], bool],
    within_s: float,
    log: Callable[[], str],
    process: subprocess.Popen[bytes] | None = None,
) -> None:
    """Wait until something holds; fail with the logs when it does not, or when a process ends first."""
    deadline = time.monotonic() + within_s
    while not what():
        assert process is None or process.poll() is None, log()
        assert time.monotonic() < deadline, log()
        time.sleep(0.1)


def in_process(bert: Path, store: Path, workers: int) -> str:
    """Return the hash of the adapter that worker processes come to."""
    settings = settings_of(options(bert, workers=workers))
    return Simulation(dataset(), store, settings).run().state.adapter_sha256


class Federation:
    """The processes of one federation, all of them started here and ended here.

    Parameters
    ----------
    folder
        Where its folders are written.
    bert
        The nodes' encoder.
    """

    def __init__(self, folder: Path, bert: Path) -> None:
        self.port, *self.node_ports = free_ports(1 + NODES)
        given = options(bert)
        self.settings: SimulationSettings = settings_of(given)
        keys = ("data", "clients", "rounds", "encoder", "device", "window", "negatives", "delta", "sample_rate")
        run = {"simulated": False, "wait": 600.0, **{key.replace("_", "-"): given[key] for key in keys}}
        self.superlink, self.nodes = write_rehearsal(
            folder, dataset(), self.settings, run, port=self.port, node_ports=self.node_ports
        )
        self._running: dict[Path, subprocess.Popen[bytes]] = {}
        self._run = ""

    def __enter__(self) -> "Federation":
        return self

    def __exit__(self, *details: object) -> None:
        for home in list(self._running):
            self.kill(home)

    def start(self, home: Path) -> subprocess.Popen[bytes]:
        """Start the SuperLink or a SuperNode by its script."""
        with (home / "log.txt").open("ab") as log:
            process = subprocess.Popen(
                [str(home / "start.sh")], env=environment(), stdout=log, stderr=log, start_new_session=True
            )
        self._running[home] = process
        return process

    def start_superlink(self) -> None:
        """Start the SuperLink and wait until it answers."""
        process = self.start(self.superlink)
        trust = ssl.create_default_context(cafile=self.superlink / "ca.pem")
        wait_until(lambda: answers(f"https://127.0.0.1:{self.port}/health", trust), START_S, self.log, process)

    def start_missing(self) -> None:
        """Start those SuperNodes that do not run."""
        for home in self.nodes:
            if home not in self._running:
                self.start(home)

    def kill(self, home: Path) -> None:
        """Kill a process and all that it started; what they keep survives that."""
        process = self._running.pop(home)
        for pid in family(process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()

    def flwr(self, *words: str) -> str:
        """Run a command of Flower's against the SuperLink."""
        done = subprocess.run(
            [str(self.superlink / "flwr.sh"), *words],
            env=environment(), capture_output=True, text=True, timeout=START_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def run(self, store: str, **changes: object) -> None:
        """Submit a run into a store of the SuperLink."""
        settings = (self.superlink / "run.toml").read_text() + f'store = "{store}"\n'
        settings += "".join(f"{key} = {value}\n" for key, value in changes.items())
        (self.superlink / f"{store}.toml").write_text(settings)
        told = self.flwr("run", str(ROOT), "--run-config", str(self.superlink / f"{store}.toml"))
        self._run = told.partition("Successfully started run ")[2].split()[0]

    def wait_until(self, what: Callable[[], bool]) -> None:
        """Wait until something of the run holds; fail when the run ends before."""

        def ended() -> bool:
            lines = (self.superlink / "log.txt").read_text().splitlines()
            return any("Finished task" in line and f"of run {self._run}" in line for line in lines)

        wait_until(lambda: what() or ended(), RUN_S, self.log)
        assert what(), self.flwr("log", self._run, "--show")

    def history(self, store: str) -> tuple[RoundRecord, ...]:
        """Return what happened in each round of a store so far."""
        rounds = sorted((self.superlink / store / "rounds").glob("round-*"))
        if not rounds:
            return ()
        try:
            raw = (rounds[-1] / "history.json").read_bytes()
        except FileNotFoundError:
            return ()  # being replaced by the next round
        return msgspec.json.decode(raw, type=tuple[RoundRecord, ...])

    def wait_for_round(self, store: str, number: int) -> None:
        """Wait until a round is on disk."""
        self.wait_until(lambda: len(self.history(store)) >= number)

    def wait_for_version(self, store: str) -> str:
        """Wait until the last round is published and return its adapter's hash."""
        path = self.superlink / store
        self.wait_until((path / "pointers" / "current").exists)
        return str(Registry.open(path).current().details["adapter_sha256"])

    def log(self) -> str:
        """Return the end of every log."""
        return "\n".join(f"{home.name}: {(home / 'log.txt').read_text()[-3000:]}" for home in self._running)

    def forget(self) -> None:
        """Delete the nodes' ledgers, as only a test may."""
        for home in self.nodes:
            (home / "ledger.sqlite").unlink(missing_ok=True)
