"""The service under load while the learner learns: latency, throughput, swaps, texts, clicks to answers; and peers.

Everything is the program itself: `anabranch serve --processes 2` follows a topic, `anabranch stream learn` learns the
blend from it at 2,000 events a second (nothing is evaluated), checkpoints and snapshots with it, and oha asks at a
constant rate, each request with a body of its own; latency counts from when a request was due. Where it may, oha has a
core before all others, whoever answers: it stands for users who are elsewhere. Item texts' vectors are random unit rows
of the default encoder's length, so only times mean anything. A swap moves `current` to another version every 2 seconds.
The peers answer the same question behind the same HTTP server, in two processes too, from the same first clicks:
implicit's ALS by its own `recommend`, river's BiasedMF by `rank`; they follow no topic and swap nothing. The control
knows no model and always answers the same: what it takes, server, machine and load take of all.

Windows without and with swaps take turns, five each of 500 questions or more: told are their medians, and the p99 of
each. Texts are 300. ``--quick`` has one window of 6 seconds each. ``--soak SECONDS`` asks at half the rate of the
largest population that long and tells memory before and after. ``--memory`` tells what the service holds for a million
users and 100,000 items.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import httpx
import numpy as np
from _kafka import broker
from _load import Told, goes_first, load, oha, write_bodies
from _record import write_result
from _serve_shop import (
    EVENTS_A_SECOND,
    FACTORS,
    PROCESSES,
    USERS,
    WORDS,
    Service,
    Shop,
    a_shop,
    a_store,
    anabranch,
    learning,
    serving,
    swapping,
)

from server.registry import Registry
from server.serving.listening import bind, url_of

TEXTS_A_SECOND, CLICKS_SEEN = 5.0, 60
RATES = {1_700: 100.0, 10_000: 100.0, 100_000: 40.0}
RIVER_RATES = {1_700: 4.0, 10_000: 1.0}
"""river's `rank` goes through all items in Python; of 100,000 one answer takes longer than the whole measurement."""
TARGETS = {"p99_ms": {"10000": 5.0, "100000": 10.0}, "texts_p99_ms": 50.0, "swap_extra_p99": 0.2}


@dataclass(frozen=True, slots=True)
class Windows:
    """How long is measured, in seconds.

    Parameters
    ----------
    short
        To warm up, and to ask as fast as there are answers.
    least, questions
        Of each window at a constant rate at least, and so many questions in each at least.
    turns
        So many windows of a kind, in turns with another kind: the host stops all programs for a tenth of a second now
        and then, and of one window that decides the p99.
    texts
        For questions by text, which come one by one.
    """

    short: float
    least: float
    questions: int
    turns: int
    texts: float

    def of(self, rate: float) -> float:
        """Return how long is asked at so many a second."""
        return max(self.least, self.questions / rate)


WHOLE, QUICK = Windows(7.0, 8.0, 500, 5, 60.0), Windows(3.0, 6.0, 0, 1, 5.0)


def in_the_middle(windows: Sequence[Told]) -> dict[str, object]:
    """Return medians over windows, and the p99 of each."""
    rows = [each.row() for each in windows]
    middle: dict[str, object] = {
        name: round(median(row[name] for row in rows), 2) for name in ("answers_a_second", "p50_ms", "p99_ms")
    }
    together = {name: sum(row[name] for row in rows) for name in ("asked", "failed")}
    return {**middle, "p99_ms_of_each_window": [row["p99_ms"] for row in rows], **together}


# --- what is measured -----------------------------------------------------------------------------------------------


def questions(shop: Shop, folder: Path) -> Path:
    """Write questions for a user with one more liked item; no two are the same."""
    rng = np.random.default_rng(2)
    bodies = [
        {"user_id": f"user {rng.integers(USERS)}", "history": [f"item {row % shop.items}"], "k": 10}
        for row in range(20_000)
    ]
    return write_bodies(folder / f"questions-{shop.items}", bodies)


def texts(folder: Path) -> Path:
    """Write questions by text; no two are the same."""
    rng = np.random.default_rng(3)
    bodies = [{"query": f"{' '.join(rng.choice(WORDS, 6))} {number}", "k": 10} for number in range(5_000)]
    return write_bodies(folder / "texts", bodies)


def until_visible(service: Service, clicks: int) -> dict[str, float]:
    """Send clicks of new users; return milliseconds from the broker's acknowledgement to an answer that knows them."""
    waited = []
    with httpx.Client(base_url=service.url, timeout=30.0) as client:
        for number in range(clicks):
            user = f"new-{time.monotonic_ns()}"
            sent = {"user_id": user, "item_id": f"item {number}", "action": "click"}
            client.post("/v1/events", json=sent).raise_for_status()
            acknowledged = time.perf_counter()
            while not client.post("/v1/recommendations", json={"user_id": user, "k": 1}).json()["known_user"]:
                time.sleep(0.001)
            waited.append(1e3 * (time.perf_counter() - acknowledged))
    half, most = (round(float(np.percentile(waited, share)), 1) for share in (50, 99))
    return {"clicks": clicks, "p50_ms": half, "p99_ms": most}


def first_text(service: Service) -> float:
    """Ask by text at once; return how many seconds after the service was started the answer came."""
    begun = time.monotonic()
    httpx.post(service.ask, json={"query": "night train", "k": 10}, timeout=60.0).raise_for_status()
    return round(service.started_s + time.monotonic() - begun, 2)


def ours(shop: Shop, folder: Path, windows: Windows) -> dict[str, object]:
    """Return all figures of our service for one population."""
    asked, rate, registry = questions(shop, folder), RATES[shop.items], Registry.open(shop.root)
    with serving(shop):
        pass  # the first one ever compiles
    with serving(shop) as service, ExitStack() as stack:
        by_text_after = first_text(service)
        events = stack.enter_context(learning(shop))
        load(service.ask, asked, windows.short, rate)  # warm
        window, steady, swapped, swaps = windows.of(rate), list[Told](), list[Told](), 0
        used = dict.fromkeys(service.cpu_s(), 0.0)
        for _ in range(windows.turns):
            before = service.cpu_s()
            steady.append(load(service.ask, asked, window, rate))
            used = {role: used[role] + spent - before[role] for role, spent in service.cpu_s().items()}
            with swapping(registry) as moved:
                swapped.append(load(service.ask, asked, window, rate))
            swaps += len(moved)
        by_text = load(service.ask, texts(folder), windows.texts, TEXTS_A_SECOND)
        most = load(service.ask, asked, windows.short, None)
        seen = until_visible(service, CLICKS_SEEN)
        megabytes = service.megabytes()
    return {
        "rate": rate,
        "seconds_to_start": service.started_s,
        "seconds_to_the_first_text": by_text_after,
        "events": events,
        "while_learning": in_the_middle(steady),
        "cpu_ms_an_answer": round(1e3 * used["servers"] / sum(each.asked for each in steady), 2),
        "cpu_share": {role: round(spent / window / windows.turns, 3) for role, spent in used.items()},
        "with_a_swap_every_2_s": {**in_the_middle(swapped), "swaps": swaps},
        "swap_extra_p99": round(median(each.p99 for each in swapped) / median(each.p99 for each in steady) - 1.0, 3),
        "texts_uncached": by_text.row(),
        "as_fast_as_it_answers": most.row(),
        "click_to_answer": seen,
        "megabytes": megabytes,
    }


@contextmanager
def peer_serving(kind: str, shop: Shop, folder: Path) -> Iterator[str]:
    """Run a peer in as many processes; gives the URL."""
    clicks = folder / f"clicks-{shop.items}.npz"
    np.savez(clicks, users=shop.users, items=shop.liked)
    script = str(Path(__file__).with_name("_serve_peer.py"))
    with ExitStack() as stack:
        listener = stack.enter_context(bind("127.0.0.1", 0))
        command = [sys.executable, script, kind, str(listener.fileno()), str(clicks), str(shop.items), str(FACTORS)]
        started = [
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True, pass_fds=[listener.fileno()])
            for _ in range(PROCESSES)
        ]
        try:
            for each in started:
                assert each.stdout is not None
                if each.stdout.readline() != "ready\n":
                    raise SystemExit(f"{kind} did not start")
            yield f"{url_of(listener)}/v1/recommendations"
        finally:
            for each in started:
                each.terminate()
            for each in started:
                each.wait(30)


def peer(kind: str, shop: Shop, folder: Path, windows: Windows, rate: float) -> dict[str, object]:
    """Return a peer's figures, while the learner learns beside it as well."""
    asked = questions(shop, folder)
    with peer_serving(kind, shop, folder) as url, learning(shop):
        load(url, asked, windows.short, rate)
        # river answers so few that it would take half an hour to ask as many
        window = windows.of(rate) if rate == RATES[shop.items] else windows.least
        found = [load(url, asked, window, rate) for _ in range(windows.turns)]
        most = load(url, asked, windows.short, None)
    return {"rate": rate, "while_learning": in_the_middle(found), "as_fast_as_it_answers": most.row()}


def has_implicit() -> bool:
    """Tell whether implicit is installed."""
    return find_spec("implicit") is not None


def measure(sizes: list[int], windows: Windows) -> dict[str, object]:
    """Return the figures of all populations."""
    rows: dict[str, object] = {}
    with TemporaryDirectory() as folder, broker() as (kind, servers):
        for items in sizes:
            shop = a_shop(Path(folder) / f"store-{items}", items, servers)
            row: dict[str, object] = {"anabranch": ours(shop, Path(folder), windows)}
            row["no model, the control"] = peer("nothing", shop, Path(folder), windows, RATES[items])
            if has_implicit():
                row["implicit ALS"] = peer("implicit", shop, Path(folder), windows, RATES[items])
            if items in RIVER_RATES:
                row["river BiasedMF"] = peer("river", shop, Path(folder), windows, RIVER_RATES[items])
            rows[str(items)] = row
            print(items, json.dumps(row, indent=1), flush=True)
    return {"broker": kind, "items": rows}


# --- memory and soak ------------------------------------------------------------------------------------------------


def soak(seconds: float) -> dict[str, object]:
    """Ask at half the rate for so long; return memory before and after, and what failed."""
    items = max(RATES)
    with TemporaryDirectory() as folder, broker() as (kind, servers):
        shop = a_shop(Path(folder) / "store", items, servers)
        asked, found = questions(shop, Path(folder)), []
        with serving(shop) as service, learning(shop):
            load(service.ask, asked, 20.0, RATES[items] / 2)
            marks, own = [service.megabytes()], [service.own_megabytes()]
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                found.append(load(service.ask, asked, min(60.0, seconds), RATES[items] / 2))
                marks.append(service.megabytes())
                own.append(service.own_megabytes())
                print(json.dumps({**found[-1].row(), "megabytes": marks[-1]}), flush=True)
    total = [round(sum(mark.values()), 1) for mark in marks]
    return {
        "broker": kind, "items": items, "rate": RATES[items] / 2, "asked": sum(each.asked for each in found),
        "failed": sum(each.failed for each in found), "p99_ms_by_minute": [round(each.p99, 2) for each in found],
        "megabytes_before": marks[0], "megabytes_after": marks[-1], "megabytes_by_minute": total,
        "own_megabytes_by_minute": {role: [mark[role] for mark in own] for role in own[0]},
    }  # fmt: skip


def memory(users: int, items: int) -> dict[str, object]:
    """Return what the service holds for a population that a learner would take an hour to meet."""
    from _population import a_snapshot

    with TemporaryDirectory() as folder:
        root = Path(folder) / "store"
        registry = a_store(root, items)
        a_snapshot(root, registry.catalogue.ids, users, FACTORS)
        shop = Shop(root, items, "", "clicks", np.empty(0), np.empty(0))
        bodies = [{"user_id": f"user {row}", "k": 10} for row in range(0, users, max(1, users // 5_000))]
        asked = write_bodies(Path(folder) / "questions", bodies)
        options = ["--store", str(root), "--port", "0", "--processes", str(PROCESSES), "--json"]
        with subprocess.Popen(anabranch("serve", *options), stdout=subprocess.PIPE, text=True) as parent:
            try:
                assert parent.stdout is not None
                begun = time.monotonic()
                told = json.loads(parent.stdout.readline())
                service = Service(told["url"], told["processes"], round(time.monotonic() - begun, 2))
                said = load(service.ask, asked, 10.0, RATES[100_000])
                load(service.ask, texts(Path(folder)), 3.0, TEXTS_A_SECOND)
                held = service.megabytes()
            finally:
                parent.terminate()
                parent.wait(30)
    assert shop.items == items
    return {"users": users, "items": items, "seconds_to_start": service.started_s, **said.row(), "megabytes": held,
            "megabytes_together": round(sum(held.values()), 1)}  # fmt: skip


def main() -> None:
    """Measure, write, and say where."""
    options = argparse.ArgumentParser()
    options.add_argument("--quick", action="store_true")
    options.add_argument("--items", type=int, action="append", choices=list(RATES))
    options.add_argument("--soak", type=float, default=0.0)
    options.add_argument("--memory", action="store_true")
    given = options.parse_args()
    if oha() is None:
        print("skipped: oha, the load generator, is neither on the PATH nor named by ANABRANCH_OHA")
        return
    packages = ("fastapi", "uvicorn", "httptools", "numpy", "river", "torch")
    load_before = os.getloadavg()[0]
    claim: str
    figures: Callable[[], dict[str, object]]
    if given.soak:
        claim, figures = "serve_soak", lambda: soak(given.soak)
    elif given.memory:
        claim, figures = "serve_memory", lambda: memory(1_000_000, 100_000)
    else:
        claim = "serve"
        figures = partial(measure, given.items or list(RATES), QUICK if given.quick else WHOLE)
        if not has_implicit():
            print("implicit is not installed: pip install implicit; its rows are left out")
    found = {
        "processes": PROCESSES, "factors": FACTORS, "users": USERS, "events_a_second": EVENTS_A_SECOND,
        "load_average_before": round(load_before, 2), "targets": TARGETS,
        "load_generator_goes_first": goes_first(), **figures(),
    }  # fmt: skip
    if has_implicit():
        packages = (*packages, "implicit")
    print(json.dumps(found, indent=1))
    if not given.quick:
        print(write_result(claim, found, packages).name)


if __name__ == "__main__":
    main()
