"""Curve: what privacy costs over the number of users, with one noise for all nodes and with one of each node.

A curve over the number of users of the made-up data set: recall@10 of the global model without privacy and, at epsilon
8 and a delta of a tenth over the users, with the noise added by a trusted server, in shares under secure aggregation,
and by each of ten and of a hundred nodes. Everything else is the same in all rows: rounds, one step a round, expected
records a step (the sample rate falls as users are added), server rate, seed. The texts alone go far here, so the mark
is set on what training adds: a row reaches it where it gains 90% of what is gained over zero-shot without privacy. The
share of the whole recall is given too. With the records a step held fixed, more users help by the smaller sample rate
alone; that more users also allow more records a step, at the same privacy, is what brings the noise down, so --records
takes a number for each number of users.

    python benchmarks/federated_users.py --users 1000,10000,100000 --records 200,2000,4000
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from _record import write_result

from anabranch.simulation import Simulation, SimulationSettings, privacy_terms
from common.datasets.base import Dataset
from common.datasets.synthetic import SyntheticSpec, make_synthetic
from common.instructions import Objective

MARK, EPSILON = 0.9, 8.0
LEAST_GAIN = 0.005
"""Of recall: a share of less would be a share of chance."""
NAMES = ("off", "server", "shared", "local, 10 nodes", "local, 100 nodes")


@dataclass(frozen=True, slots=True)
class Curve:
    """What all rows have in common."""

    items: int = 500
    clicks: int = 12
    rounds: int = 12
    records: int = 200
    window: int = 5
    negatives: int = 4
    server_rate: float = 0.02
    seed: int = 0


def settings_of(name: str, users: int, curve: Curve) -> SimulationSettings:
    """Return the simulation of a row for so many users."""
    noise = name.partition(",")[0]
    nodes = 100 if name.endswith("100 nodes") else 10
    terms = privacy_terms(
        "off" if noise == "off" else "user",
        epsilon=EPSILON,
        delta=min(1e-4, 0.1 / users),
        sample_rate=min(1.0, curve.records / users),
        noise="local" if noise == "off" else noise,
    )
    return SimulationSettings(
        clients=nodes,
        cohort=nodes,
        rounds=curve.rounds,
        privacy=terms,
        objective=Objective(window=curve.window, negatives=curve.negatives),
        server_learning_rate=curve.server_rate,
        secure_aggregation=noise == "shared",
        seed=curve.seed,
    )


def measure(users: int, curve: Curve, names: Sequence[str], say: Callable[[str], None]) -> dict[str, object]:
    """Return the figures of one point of the curve: a row each, and the controls."""
    dataset = make_synthetic(SyntheticSpec(users, curve.items, curve.clicks * users), seed=curve.seed)
    rows: dict[str, object] = {}
    controls: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            began = time.monotonic()
            metrics, epsilon = _run(dataset, Path(folder), settings_of(name, users, curve))
            controls = {control: metrics[control]["recall@10"] for control in ("random", "popularity", "zero_shot")}
            recall = metrics["global"]["recall@10"]
            rows[name] = {"recall@10": round(recall, 4), "ci95": metrics["global"]["ci95"], "epsilon": epsilon}
            say(f"{users} users, {name}: recall@10 {recall:.4f}, epsilon {epsilon}, {time.monotonic() - began:.0f} s")
    whole, text = rows["off"]["recall@10"], controls["zero_shot"]
    for row in rows.values():
        row["share_of_recall"] = round(row["recall@10"] / whole, 3)
        gained = whole - text
        row["share_of_gain"] = round((row["recall@10"] - text) / gained, 3) if gained > LEAST_GAIN else None
    return {
        "users": users,
        "records": curve.records,
        "rows": rows,
        **{name: round(value, 4) for name, value in controls.items()},
    }


def _run(dataset: Dataset, folder: Path, settings: SimulationSettings) -> tuple[dict[str, dict[str, object]], object]:
    with tempfile.TemporaryDirectory(dir=folder) as store:
        result = Simulation(dataset, Path(store) / "store", settings, cache=folder / "cache").run().as_json()
    return result["metrics"], result["privacy"]["epsilon"]


def _first(points: Sequence[dict[str, object]], name: str) -> int | None:
    """Return the least number of users with which a row reaches the mark."""
    return next((each["users"] for each in points if (each["rows"][name]["share_of_gain"] or 0.0) >= MARK), None)


def main(arguments: Sequence[str]) -> int:
    """Measure, write, and print a line a row."""
    parser = argparse.ArgumentParser(description="recall over the number of users, by where the noise is added")
    parser.add_argument("--users", default="1000,10000", help="numbers of users, separated by commas")
    parser.add_argument("--rounds", type=int, default=Curve.rounds)
    parser.add_argument(
        "--records", default="200,2000", help="expected records a round, one number, or one for each number of users"
    )
    parser.add_argument("--rows", default="/".join(NAMES), help="rows to measure, separated by slashes")
    parser.add_argument("--print", action="store_true", help="print the figures as JSON and write nothing")
    given = parser.parse_args(arguments)
    counts = [int(users) for users in given.users.split(",")]
    records = [int(number) for number in given.records.split(",")]
    if len(records) not in (1, len(counts)):
        parser.error(f"{len(records)} numbers of records for {len(counts)} numbers of users; give one, or one for each")
    curves = [Curve(rounds=given.rounds, records=number) for number in records * (len(counts) // len(records))]
    names = ["off", *(name for name in given.rows.split("/") if name != "off")]

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    points = [measure(users, curve, names, say) for users, curve in zip(counts, curves, strict=True)]
    reached = {name: _first(points, name) for name in names}
    common = {field: getattr(curves[0], field) for field in Curve.__slots__ if field != "records"}
    figures = {"epsilon_budget": EPSILON, "mark": MARK, **common, "points": points, "users_to_reach_mark": reached}
    if given.print:
        print(json.dumps(figures))
        return 0
    path = write_result("federated_users", figures, ("torch", "opacus", "peft", "transformers", "flwr"))
    for name, users in reached.items():
        print(f"{name}: {f'{MARK:.0%} of the gain with {users} users' if users else f'below {MARK:.0%} of the gain'}")
    print(path.name)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
