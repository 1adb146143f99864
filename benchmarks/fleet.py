"""Claim: a simulated round costs little beside the training, and no more memory with more clients.

The step of each client is nothing (`_trivial.py`: zeros for the adapter of the default encoder), so a round is all
overhead: it is what a round takes beyond training, and per client that divided by the clients. Ways to run the same
round take turns, so that a slow spell of the machine meets each:

- in process: our worker processes, real ClientApp, real Flower Messages, one worker a core;
- Ray: Flower's own simulation of the same ClientApp, one CPU a client, where the extra `ray` is installed;
- pfl: pfl-research's simulated backend, which has no apps and no messages, where it is installed;
- plain: FedAvg as a loop over clients in this process, without apps, messages or processes: what nothing can beat.

Wanted: in process at least 10 times less overhead than Ray at 100 clients; 1,000 clients in at most 2 seconds on two
cores; a peak of memory with 10,000 clients within 10% of that with 1,000 (measured in processes of their own, the
largest worker with it). Wall clocks: the work is spread over processes. On a machine with other work they are upper
bounds, and the ratio says more than the seconds.
"""

import importlib.util
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from _record import write_result
from aggregate import SHAPES
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from anabranch.engines import AHEAD, start_ray
from common.encoder.adapter import initial_adapter
from common.errors import RoundError
from common.ids import arrays_sha256
from common.instructions import Objective, PrivacyTerms, TrainRequest
from common.updates import AdapterUpdate
from server.fleet.flower import GridFleet
from server.fleet.inprocess import InProcessGrid

APP = "_trivial:app"
FEW, MANY, VERY_MANY, TURNS = 100, 1_000, 10_000, 5
WORKERS = os.cpu_count() or 1
Round = Callable[[], float]


def adapter() -> dict[str, np.ndarray]:
    """Return the adapter that a round starts from."""
    return initial_adapter(SHAPES, 0)


def request(base: Mapping[str, np.ndarray]) -> TrainRequest:
    """Return what every client is asked: to train B."""
    trained = tuple(name for name in base if ".lora_B." in name)
    sha256 = arrays_sha256(base.items())
    return TrainRequest("run", 1, sha256, "fedsvd", trained, "e", 1, Objective(), PrivacyTerms("off", float("inf")))


def one_round(fleet: GridFleet, clients: int) -> float:
    """Ask clients, sum their updates, and return the seconds that it took."""
    base = adapter()
    asked, nodes = request(base), fleet.nodes()[:clients]
    total = {name: np.zeros_like(base[name]) for name in asked.trained}
    usable, began = 0, time.perf_counter()
    for reply in fleet.train(dict.fromkeys(nodes, asked), base, timeout_s=600.0, answered=lambda count: None):
        assert isinstance(reply.outcome, AdapterUpdate), reply.outcome
        usable += 1
        for name, array in reply.outcome.arrays.items():
            total[name] += array
    seconds = time.perf_counter() - began
    assert usable == clients
    return seconds


def plain_round(clients: int) -> float:
    """Return the seconds of FedAvg as a loop."""
    base = adapter()
    trained = request(base).trained
    began = time.perf_counter()
    total = {name: np.zeros_like(base[name]) for name in trained}
    for _ in range(clients):
        for name in trained:
            total[name] += np.zeros_like(base[name])
    return time.perf_counter() - began


def workers(nodes: int) -> InProcessGrid:
    """Start the worker processes, and wait until they have loaded their libraries."""
    grid = InProcessGrid(APP, [{"client": f"n{number}"} for number in range(nodes)], workers=WORKERS)
    one_round(GridFleet(grid), WORKERS)
    return grid


def take_turns(rounds: Mapping[str, Round]) -> dict[str, list[float]]:
    """Return the seconds of each way in each turn."""
    times: dict[str, list[float]] = {name: [] for name in rounds}
    for _ in range(TURNS):
        for name, run in rounds.items():
            times[name].append(run())
    return times


def compare(ours: InProcessGrid) -> dict[str, list[float]]:
    """Return the seconds of rounds of few clients, Ray beside ours where it is installed."""
    fleet = GridFleet(ours, ahead=AHEAD)
    rounds: dict[str, Round] = {
        "in process": lambda: one_round(fleet, FEW),
        "plain": lambda: plain_round(FEW),
    }
    if importlib.util.find_spec("pfl") is not None:
        from _pfl_peer import PflRounds

        base = adapter()
        rounds["pfl"] = PflRounds(FEW, {name: base[name].shape for name in request(base).trained})
    if importlib.util.find_spec("ray") is None:
        return take_turns(rounds)
    from _trivial import app as trivial
    from flwr.simulation import run_simulation

    found: dict[str, list[float]] = {}
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        theirs = GridFleet(grid)
        while len(theirs.nodes()) < FEW:  # they are registered while the ServerApp starts
            time.sleep(0.1)
        one_round(theirs, FEW)  # its actors load their libraries
        found.update(take_turns({**rounds, "Ray": lambda: one_round(theirs, FEW)}))

    try:
        start_ray(WORKERS)
    except RoundError as error:  # a machine with much other work: ours alone is measured then
        print(error, file=sys.stderr)
        return take_turns(rounds)
    run_simulation(server, trivial, FEW, backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}})
    return found


def peak(clients: int) -> dict[str, float]:
    """Return the peak of resident memory, in MB, of one round in a process of its own and of its largest worker."""
    done = subprocess.run(
        [sys.executable, __file__, "--memory", str(clients)], capture_output=True, text=True, check=True
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure_memory(clients: int) -> None:
    """Print the peak of this process and of its largest worker after two rounds (Linux)."""
    with workers(clients) as grid:
        fleet = GridFleet(grid, ahead=AHEAD)
        for _ in range(2):
            one_round(fleet, clients)
        tasks = Path("/proc/self/task").iterdir()
        children = [pid for task in tasks for pid in (task / "children").read_text().split()]
        print(json.dumps({"server": _peak_mb("self"), "largest worker": max(map(_peak_mb, children))}))


def _peak_mb(process: str) -> float:
    """Return the peak of a process; the kernel's resource usage would count what its parent held when it began."""
    lines = Path("/proc", process, "status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6


def told(seconds: list[float], clients: int) -> dict[str, float]:
    """Return what is reported of some rounds."""
    median = float(np.median(seconds))
    return {
        "clients": clients,
        "round_s_median": round(median, 3),
        "round_s_least": round(min(seconds), 3),
        "round_s_most": round(max(seconds), 3),
        "overhead_ms_a_client": round(1e3 * median / clients, 3),
    }


def main() -> None:
    """Measure, write, and print one line."""
    if sys.argv[1:2] == ["--memory"]:
        measure_memory(int(sys.argv[2]))
        return
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    with workers(MANY) as grid:
        times = compare(grid)
        fleet = GridFleet(grid, ahead=AHEAD)
        many = [one_round(fleet, MANY) for _ in range(TURNS)]
    memory = {str(clients): peak(clients) for clients in (MANY, VERY_MANY)}
    total = [sum(each.values()) for each in memory.values()]
    rows = {**{name: told(seconds, FEW) for name, seconds in times.items()}, "in process, many": told(many, MANY)}
    ratio = np.array(times["Ray"]) / np.array(times["in process"]) if "Ray" in times else None
    figures: dict[str, object] = {
        "workers": WORKERS,
        "turns": TURNS,
        "rows": rows,
        "target_ratio_to_ray": 10,
        "ratio_to_ray": None if ratio is None else round(float(np.median(ratio)), 1),
        "target_many_s": 2.0,
        "peak_mb": memory,
        "target_peak_growth": 1.1,
        "peak_growth": round(total[1] / total[0], 3),
    }
    path = write_result(
        "fleet", figures, ("flwr", "numpy", *(name for name in ("ray", "pfl") if importlib.util.find_spec(name)))
    )
    print(
        f"{FEW} clients: in process {np.median(times['in process']):.2f} s a round, "
        + (f"Ray {figures['ratio_to_ray']} times as long; " if ratio is not None else "Ray is not installed; ")
        + f"{MANY} clients {np.median(many):.2f} s (least {min(many):.2f}); "
        f"memory with {VERY_MANY} clients {figures['peak_growth']} times that with {MANY}; {path.name}"
    )


if __name__ == "__main__":
    main()
