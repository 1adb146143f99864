"""No claim, a forecast: rounds of a million clients, in simulated time, with the real planner, messages and accountant.

`RunPlan` draws the cohorts, by chance and client by client, which is what amplifies a client's privacy; the fleet's own
order holds replies back; messages are as long as real ones of the default encoder, written out here; sigma and epsilon
are those of the accountant that runs use. Seconds of work are figures of this folder's results (`calibration`), the
habits of clients are assumptions (`_crowd.Habits`). Flower's SuperLink is not in it: no figure of one under such a load
exists here.

    python benchmarks/scale.py            # a million clients, 24 rounds over a day for each row
    python benchmarks/scale.py --quick    # a tenth of the clients, 4 rounds; prints JSON and writes nothing

All but the figures of planning are the same for the same seed and results.
"""

import argparse
import json
import sys
import time
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from _crowd import DAY_S, Crowd, Habits, Round, Server, Told, Work
from _record import write_result
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL, HEARTBEAT_PATIENCE
from flwr.common.serde import message_to_proto
from flwr.supercore.task_identity import TaskIdentity

from anabranch.accounting import LentAccountant
from client.app import encode
from common.array_record import to_record
from common.encoder.adapter import TextEncoder
from common.encoder.spec import EncoderSpec
from common.ids import arrays_sha256, rng_for
from common.instructions import Objective, PrivacyTerms
from common.privacy import PrivacySpend
from common.updates import AdapterUpdate, UpdateMeta
from server.aggregate import strategy_named
from server.aggregate.base import RowAdam
from server.fleet.inprocess import FIRST_NODE
from server.plan import RunPlan

RESULTS = Path(__file__).resolve().parent / "results"
CLIENTS, ROUNDS, PLANNED = 1_000_000, 24, 1_000
QUICK_CLIENTS, QUICK_ROUNDS = 100_000, 4
EPSILON, DELTA = 8.0, 1e-7
CATALOGUE_TEXTS = 1_682
"""MovieLens-100K: a client runs the frozen layers over all texts once, before its first round."""
START_S = 5.0
"""An assumption: a client that is asked starts a Python and loads torch and the encoder."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: what differs from the first."""

    name: str
    cohort: int
    timeout_s: float = 600.0
    link_gbit: float = 1.0
    caches_kept: bool = False
    habits: Habits = field(default_factory=Habits)


ROWS = (
    Row("1,000", 1_000),
    Row("3,000", 3_000),
    Row("10,000", 10_000),
    Row("10,000, deadline 120 s", 10_000, timeout_s=120.0),
    Row("10,000, deadline 60 s", 10_000, timeout_s=60.0),
    Row("10,000, link of 100 Mbit/s", 10_000, link_gbit=0.1),
    Row("10,000, link of 10 Mbit/s", 10_000, link_gbit=0.01),
    Row("10,000, caches come along", 10_000, caches_kept=True),
    Row("10,000, clients' links a tenth", 10_000, habits=Habits(down_mbit=2.0, up_mbit=0.5)),
    Row("10,000, all always there", 10_000, habits=Habits(awake_h=48.0, awake_spread=0.0, quits_per_h=0.0)),
)


def calibration() -> dict[str, float]:
    """Return the seconds that were measured: files of `results/`, with how each figure follows from them."""
    federated = json.loads((RESULTS / "federated.json").read_text())
    aggregate = json.loads((RESULTS / "aggregate.json").read_text())
    step = federated["rows"]["B"]["cpu_s_median"]
    sums = aggregate["rows"]["fedsvd"]["cpu_s_median"] / aggregate["adapters"]
    whole = aggregate["rows"]["fedsvd, from Messages"]["cpu_s_median"] / aggregate["adapters"]
    lower = step["forward, all layers"] - step["forward"]
    return {
        # federated.json: a private step over 16 records, of which a client that is one person has one
        "train_s": step["private"] / federated["records"],
        # federated.json: all layers less those above the cache, a text
        "first_s": lower / federated["texts"] * CATALOGUE_TEXTS,
        # aggregate.json: a thousand adapters out of Messages, and the part of it that is the sum
        "read_s": whole - sums,
        "sum_s": sums,
    }


def plan_of(clients: int, cohort: int, timeout_s: float, seed: int) -> RunPlan:
    """Return the plan of a run whose clients are drawn by chance, each of them what is protected."""
    terms = PrivacyTerms("client", EPSILON, DELTA, 1.0, "server", cohort / clients)
    return RunPlan(
        "scale", seed, PLANNED, cohort, "fedsvd", 0.02, "0" * 64, Objective(), terms, timeout_s=timeout_s
    )  # fmt: skip


def message_bytes(plan: RunPlan, adapter: Mapping[str, np.ndarray], sigma: float) -> tuple[int, int, int]:
    """Return how long the message to a client and its reply are, written out, and the arrays of a reply in memory."""
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
    trained = strategy_named(plan.strategy, RowAdam(0.02)).trained(adapter, {})
    request = plan.request(1, arrays_sha256(adapter.items()), tuple(trained), PLANNED, sigma)
    content = RecordDict({"adapter": to_record(adapter), "request": ConfigRecord(request.flat())})
    sent = Message(content, dst_node_id=FIRST_NODE, message_type="train", group_id="1")
    sent.metadata.__dict__["_message_id"] = "0" * 64
    noise = rng_for("an update", plan.seed)
    arrays = {name: noise.standard_normal(adapter[name].shape).astype(np.float32) for name in trained}
    meta = UpdateMeta("node-00000", request.base_version, plan.strategy, 1, 1.0)
    reply = Message(encode(AdapterUpdate(meta, arrays)), reply_to=sent)
    held = sum(array.nbytes for array in arrays.values())
    down, up = (len(message_to_proto(message).SerializeToString()) for message in (sent, reply))
    return down, up, held


def play(row: Row, crowd: Crowd, plan: RunPlan, work: Work, cost: Mapping[str, float], rounds: int) -> list[Told]:
    """Return what came of rounds that begin at even distances over a day."""
    link = row.link_gbit * 1e9 / 8
    server = Server(
        link, link, cost["read_s"], cost["sum_s"], plan.timeout_s, HEARTBEAT_PATIENCE * HEARTBEAT_DEFAULT_INTERVAL
    )  # fmt: skip
    nodes = tuple(range(crowd.first, crowd.first + crowd.size))
    told = []
    for number in range(1, rounds + 1):
        rng = rng_for("a round of the crowd", plan.seed, row.name, number)
        cohort = plan.cohort_of(number, nodes)
        told.append(Round(crowd, server, work, cohort, DAY_S * number / rounds, rng).play())
    return told


def summed(row: Row, told: Sequence[Told], work: Work, held_bytes: int) -> dict[str, object]:
    """Return the figures of a row."""
    asked = sum(each.asked for each in told)
    replied = sum(each.replied for each in told)
    seconds = np.array([each.seconds for each in told])
    return {
        "cohort": row.cohort,
        "timeout_s": row.timeout_s,
        "link_gbit": row.link_gbit,
        "round_s": {"p50": round(float(np.median(seconds)), 1), "p95": round(float(np.quantile(seconds, 0.95)), 1)},
        "nine_tenths_s_p50": round(float(np.median([each.most_s for each in told])), 1),
        "replies": {"least": min(each.replied for each in told), "most": max(each.replied for each in told)},
        "asked_for_one_reply": round(asked / max(1, replied), 2),
        "lost_share": {
            why: round(sum(each.lost[why] for each in told) / asked, 4) for why in ("offline", "left", "late")
        },
        "down_mb_a_round": round(float(np.mean([each.down_bytes for each in told])) / 1e6, 1),
        "up_mb_a_round": round(float(np.mean([each.up_bytes for each in told])) / 1e6, 1),
        "down_bytes_a_client": work.down_bytes,
        "up_bytes_a_client": work.up_bytes,
        "held_mb_most": round(max(each.held for each in told) * held_bytes / 1e6, 1),
        "link_in_busy_share": round(max(each.in_busy_s / each.seconds for each in told), 4),
        "reading_busy_share": round(max(each.thread_busy_s / each.seconds for each in told), 4),
    }


def measure_planning(clients: int, cohort: int, seed: int) -> dict[str, float]:
    """Return what the planner takes on this machine: processor time of a cohort, and memory of the planned steps."""
    plan, nodes = plan_of(clients, cohort, 600.0, seed), tuple(range(FIRST_NODE, FIRST_NODE + clients))
    began = time.process_time()
    for number in range(1, 11):
        plan.cohort_of(number, nodes)
    took = (time.process_time() - began) / 10
    tracemalloc.start()
    planned = plan.planned_steps(nodes)
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return {"cohort_ms": round(1e3 * took, 1), "planned_steps_mb": round(size / 1e6, 1), "nodes": len(planned)}


def privacy(clients: int, cohorts: Sequence[int], numbers: int, share: float) -> list[dict[str, float]]:
    """Return noise and epsilon for cohorts and budgets.

    ``noise_over_signal`` is the expected norm of the noise in the mean, over the norm that the mean has when all
    updates that come (a share of those asked) agree and reach the clip: below 1 the noise cannot hide them.
    """
    accountant, rows = LentAccountant(), []
    for cohort in cohorts:
        rate = cohort / clients
        for budget in (0.5, 1.0, 2.0, 8.0):
            sigma = accountant.sigma(budget, DELTA, rate, PLANNED)
            spent = accountant.epsilon(PrivacySpend("client", DELTA, ((sigma, rate, PLANNED),)))
            ratio = sigma * numbers**0.5 / (cohort * share)
            rows.append({
                "cohort": cohort, "budget": budget, "rounds": PLANNED, "sigma": round(sigma, 3),
                "epsilon": round(spent, 4), "noise_over_signal": round(ratio, 4),
            })  # fmt: skip
    return rows


def measured_quality(numbers: int) -> list[dict[str, float]]:
    """Return what noise cost where it was measured: `federated_users.json`, a trusted server's noise over records."""
    curve = json.loads((RESULTS / "federated_users.json").read_text())
    accountant, rows = LentAccountant(), []
    for point in curve["points"]:
        users, records = point["users"], point["records"]
        sigma = accountant.sigma(
            curve["epsilon_budget"], min(1e-4, 0.1 / users), min(1.0, records / users), curve["rounds"]
        )  # fmt: skip
        kept = point["rows"]["server"]["share_of_gain"]
        rows.append({"records": records, "noise_over_signal": round(sigma * numbers**0.5 / records, 4), "kept": kept})
    return rows


def forecast(clients: int, rounds: int, seed: int, say: Callable[[str], None]) -> dict[str, object]:
    """Return all figures."""
    adapter, cost = TextEncoder.load(EncoderSpec.default()).adapter(), calibration()
    rows: dict[str, object] = {}
    share = 1.0
    for row in ROWS:
        plan = plan_of(clients, row.cohort, row.timeout_s, seed)
        down, up, held = message_bytes(plan, adapter, 1.0)
        work = Work(down, up, START_S, 0.0 if row.caches_kept else cost["first_s"], cost["train_s"])
        crowd = Crowd(clients, FIRST_NODE, row.habits, seed)
        told = play(row, crowd, plan, work, cost, rounds)
        # the round loop's own rule; a plan that draws by chance takes no other number than 1
        found = summed(row, told, work, held) | {
            "failed_rounds": sum(each.replied < min(plan.min_replies, each.asked) for each in told)
        }
        rows[row.name] = found
        if row == ROWS[2]:
            share = 1 / found["asked_for_one_reply"]
        say(f"{row.name}: {json.dumps(found)}")
    numbers = sum(adapter[name].size for name in strategy_named("fedsvd", RowAdam(0.02)).trained(adapter, {}))
    return {
        "clients": clients,
        "rounds_simulated": rounds,
        "seed": seed,
        "measured_s": {name: round(value, 6) for name, value in cost.items()},
        "assumed": {"start_s": START_S, **asdict(Habits())},
        "notice_s": HEARTBEAT_PATIENCE * HEARTBEAT_DEFAULT_INTERVAL,
        "trained_numbers": numbers,
        "rows": rows,
        "privacy": privacy(clients, (1_000, 3_000, 10_000), numbers, share),
        "quality_measured": measured_quality(numbers),
    }


def main(arguments: Sequence[str]) -> int:
    """Simulate, write, and print a line a row."""
    parser = argparse.ArgumentParser(description="rounds of a million clients in simulated time")
    parser.add_argument("--quick", action="store_true", help="a tenth of the clients and few rounds; writes nothing")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    clients, rounds = (QUICK_CLIENTS, QUICK_ROUNDS) if given.quick else (CLIENTS, ROUNDS)
    figures = forecast(clients, rounds, given.seed, lambda line: print(line, file=sys.stderr, flush=True))
    if given.quick:
        print(json.dumps(figures))
        return 0
    figures["planning"] = {
        str(cohort): measure_planning(clients, cohort, given.seed) for cohort in (ROWS[0].cohort, ROWS[2].cohort)
    }
    path = write_result("scale", figures, ("flwr", "numpy", "opacus"))
    for name, row in figures["rows"].items():
        print(f"{name}: a round {row['round_s']['p50']} s (p95 {row['round_s']['p95']}), {row['lost_share']} lost")
    print(path.name)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
