"""Claim: a thousand adapters become one within half a second on two cores.

The adapters are those of the default encoder: rank 16 on five matrices of MiniLM's top layer, 10 tensors, 79,872
numbers. `fedsvd` sums B and re-factors; it gets arrays, as the round loop has them. Beside it, on the same
numbers, Flower's `FedAvg.aggregate_train`, which gets the Messages that clients answer with, and our strategies on the
same Messages through `FlowerStrategy`: `fedit` does the same work as FedAvg (it averages A and B), `fedsvd` reads B
alone. Most of what Messages cost is reading arrays out of them, which no strategy can avoid.

All take turns, so that a slow spell of the machine meets each. Ratios are of processor time, which other processes do
not lengthen; the wall clock is given because the claim is about it.
"""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import torch
from _record import write_result
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity

from common.encoder.adapter import initial_adapter
from common.updates import AdapterUpdate, UpdateMeta
from server.aggregate import aggregate_arrays, strategy_named
from server.aggregate.base import RowAdam
from server.fleet.inprocess import InProcessGrid
from server.flower_strategy import FlowerStrategy

CLIENTS, WIDTH, RANK, LAYERS, TURNS = 1_000, 384, 16, 2, 7
SHAPES = {
    f"base_model.model.encoder.layer.{layer}.attention.self.{part}.lora_{half}.weight": (
        (RANK, WIDTH) if half == "A" else (WIDTH, RANK)
    )
    for layer in range(LAYERS)
    for part in ("query", "value")
    for half in "AB"
}
Arrays = dict[str, np.ndarray]


class _Nodes(InProcessGrid):
    """A grid that nobody asks anything: only its list of nodes is read."""

    def __init__(self) -> None:
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1

    def get_node_ids(self) -> list[int]:
        return list(range(2, CLIENTS + 2))


def _record(arrays: Arrays) -> ArrayRecord:
    return ArrayRecord(OrderedDict((name, Array(array)) for name, array in arrays.items()))


def _reply(message: Message, arrays: Arrays) -> Message:
    content = RecordDict({"arrays": _record(arrays), "metrics": MetricRecord({"num-examples": 1, "loss": 0.5})})
    return Message(content, reply_to=message)


def _begun(name: str, base: Arrays) -> tuple[FlowerStrategy, list[Message]]:
    """Return our strategy in Flower's loop, and what it has just asked the nodes."""
    made = FlowerStrategy(strategy_named(name, RowAdam()))
    return made, list(made.configure_train(1, _record(base), ConfigRecord(), _Nodes()))


def _ways(base: Arrays, clients: list[Arrays]) -> dict[str, Callable[[], object]]:
    (in_loop, asked), (alike, _) = _begun("fedsvd", base), _begun("fedit", base)
    replies = [_reply(message, arrays) for message, arrays in zip(asked, clients, strict=True)]
    updates = [
        AdapterUpdate(UpdateMeta(str(number), "base", "fedsvd", 1, 1.0), {n: a - base[n] for n, a in arrays.items()})
        for number, arrays in enumerate(clients)
    ]
    fedsvd = strategy_named("fedsvd", RowAdam())
    return {
        "fedsvd": lambda: aggregate_arrays(fedsvd, base, {}, updates),
        "fedsvd, from Messages": lambda: in_loop.aggregate_train(1, replies),
        "fedit, from Messages": lambda: alike.aggregate_train(1, replies),
        "flwr FedAvg, from Messages": lambda: FedAvg().aggregate_train(1, replies),
    }


def _measure(ways: dict[str, Callable[[], object]]) -> dict[str, np.ndarray]:
    """Return (processor seconds, wall seconds) of each turn, float64 [turns, 2], by way."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(TURNS):
        for name, run in ways.items():
            began, used = time.perf_counter(), time.process_time()
            run()
            times[name].append((time.process_time() - used, time.perf_counter() - began))
    return {name: np.array(turns) for name, turns in times.items()}


def _ratio(above: np.ndarray, below: np.ndarray) -> dict[str, float]:
    ratios = above[:, 0] / below[:, 0]
    spread = {"median": np.median(ratios), "least": ratios.min(), "most": ratios.max()}
    return {name: round(float(value), 1) for name, value in spread.items()}


def main() -> None:
    """Measure, write, and print one line."""
    logging.getLogger("flwr").setLevel(logging.WARNING)
    rng = np.random.default_rng(0)
    base = initial_adapter(SHAPES, 0)
    clients = [
        {name: (array + 0.01 * rng.standard_normal(array.shape)).astype(np.float32) for name, array in base.items()}
        for _ in range(CLIENTS)
    ]
    times = _measure(_ways(base, clients))
    flower, ours = times["flwr FedAvg, from Messages"], times["fedsvd"]
    ratio = {name: _ratio(flower, turns) for name, turns in times.items() if turns is not flower}
    figures = {
        "adapters": CLIENTS,
        "tensors": len(SHAPES),
        "numbers": int(sum(np.prod(shape) for shape in SHAPES.values())),
        "turns": TURNS,
        "torch_threads": torch.get_num_threads(),
        "rows": {
            name: {
                "cpu_s_median": round(float(np.median(turns[:, 0])), 4),
                "wall_s_median": round(float(np.median(turns[:, 1])), 4),
                "wall_s_most": round(float(turns[:, 1].max()), 4),
            }
            for name, turns in times.items()
        },
        "target_wall_s": 0.5,
        "ratio": ratio,
    }
    path = write_result("aggregate", figures, ("flwr", "torch", "numpy"))
    print(
        f"{CLIENTS} adapters: fedsvd {np.median(ours[:, 1]):.3f} s ({ours[:, 1].max():.3f} at most), "
        f"FedAvg {np.median(flower[:, 1]):.2f} s; processor time {ratio['fedsvd']['median']} times, "
        f"{ratio['fedit, from Messages']['median']} times for the same work on the same Messages; {path.name}"
    )


if __name__ == "__main__":
    main()
