"""The service under load while the learner learns: latency, throughput, swaps, texts, clicks to answers; and peers.

Everything is the program itself: `anabranch serve --processes 2` follows a topic, `anabranch stream learn` learns the
blend from it at 2,000 events a second (nothing is evaluated), checkpoints and snapshots with it, and oha asks at a
constant rate, each request with a body of its own; latency counts from when a request was due. Item texts' vectors are
random unit rows of the default encoder's length, so only times mean anything. A swap moves `current` to another version
every 2 seconds. The peers answer the same question behind the same HTTP server, in two processes too, from the same
first clicks: implicit's ALS by its own `recommend`, river's BiasedMF by `rank`; they follow no topic and swap nothing.

``--quick`` takes a third of the time. ``--soak SECONDS`` asks at half the rate of the largest population that long and
tells memory before and after. ``--memory`` tells what the service holds for a million users and 100,000 items.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import numpy as np
from _kafka import broker
from _load import load, oha, write_bodies
from _record import write_result

from common.encoder.adapter import TextEncoder, initial_adapter
from common.encoder.spec import EncoderSpec
from common.events import Interaction
from common.items import Catalogue, Item
from common.manifests import Manifest
from common.store import pack_arrays
from server.registry import Registry
from server.serving.bundle import ADAPTER_FILE, VECTORS_FILE, VECTORS_TENSOR
from server.serving.run import bind, url_of
from server.store_info import StoreInfo
from stream.connect import open_log
from stream.producer import produce

PROCESSES, FACTORS, USERS, FIRST_CLICKS = 2, 64, 2_000, 20_000
EVENTS_A_SECOND, SWAP_EVERY_S, TEXTS_A_SECOND, CLICKS_SEEN = 2_000, 2.0, 5.0, 60
RATES = {1_700: 100.0, 10_000: 100.0, 100_000: 40.0}
RIVER_RATES = {1_700: 4.0, 10_000: 1.0}
"""river's `rank` goes through all items in Python; of 100,000 one answer takes longer than the whole measurement."""
TARGETS = {"p99_ms": {"10000": 5.0, "100000": 10.0}, "texts_p99_ms": 50.0, "swap_extra_p99": 0.2}
WORDS = (
    "night sea love war city space train garden ghost king dark summer music island river star snow road life".split()
)
TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Shop:
    """A store, its topic's first clicks, and where both are."""

    root: Path
    items: int
    servers: str
    topic: str
    users: np.ndarray
    liked: np.ndarray


@dataclass(frozen=True, slots=True)
class Service:
    """A running service: where it answers, and its processes by role."""

    url: str
    pids: Mapping[str, int]

    @property
    def ask(self) -> str:
        """Where questions go."""
        return f"{self.url}/v1/recommendations"

    def cpu_s(self) -> float:
        """Return the processor seconds of the processes that answer."""
        stats = (Path(f"/proc/{pid}/stat").read_text() for role, pid in self.pids.items() if role != "loader")
        return sum(sum(map(int, stat.rpartition(")")[2].split()[11:13])) for stat in stats) / TICK

    def megabytes(self) -> dict[str, float]:
        """Return resident megabytes by role, what processes share counted once among them."""
        return {role: _proportional(pid) for role, pid in self.pids.items()}


def _proportional(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return round(next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1e3, 1)


# --- what is served -------------------------------------------------------------------------------------------------


def a_store(root: Path, items: int) -> Registry:
    """Make a store of two versions."""
    spec = EncoderSpec.default()
    encoder = TextEncoder.load(spec)
    shapes = {name: tensor.shape for name, tensor in encoder.adapter().items()}
    catalogue = Catalogue(
        Item(f"item {row}", f"Title {row}", " ".join(WORDS[(row + step) % len(WORDS)] for step in range(5)))
        for row in range(items)
    )
    registry = Registry.create(root, StoreInfo(spec.name, encoder.sha256, "benchmark", 1), catalogue)
    for number in (1, 2):
        vectors = np.random.default_rng(number).standard_normal((items, encoder.dimension)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        files = {
            "adapter/adapter_config.json": json.dumps({"peft_type": "LORA"}).encode(),
            ADAPTER_FILE: pack_arrays(initial_adapter(shapes, number)),
            VECTORS_FILE: pack_arrays({VECTORS_TENSOR: vectors}),
        }
        made = Manifest("adapter", f"v{number:06d}", (), number, base_encoder=spec.name, base_sha256=encoder.sha256)
        registry.publish(files, made)
    registry.point("current", "v000001")
    return registry


def click(number: int, items: int, rng: np.random.Generator) -> Interaction:
    """Return a click; few items have many."""
    user, item = int(rng.integers(USERS)), int(items * rng.beta(0.6, 4.0))
    return Interaction(f"event-{number}", f"user {user}", f"item {item}", "click", ts=1_700_000_000_000 + number)


def a_shop(root: Path, items: int, servers: str) -> Shop:
    """Make the store, send the first clicks, and let the learner learn them."""
    topic, rng = f"clicks-{items}", np.random.default_rng(0)
    a_store(root, items)
    first = [click(number, items, rng) for number in range(FIRST_CLICKS)]
    produce(first, log=open_log(servers), topic=topic)
    subprocess.run(
        [*_learn(root, servers, topic), "--until-events", str(FIRST_CLICKS)], check=True, capture_output=True
    )
    pairs = np.array([(int(each.user_id.split()[1]), int(each.item_id.split()[1])) for each in first])
    return Shop(root, items, servers, topic, pairs[:, 0], pairs[:, 1])


def _anabranch(*words: str) -> list[str]:
    return [sys.executable, "-m", "anabranch.cli", *words]


def _learn(root: Path, servers: str, topic: str) -> list[str]:
    where = ["--store", str(root), "--bootstrap-servers", servers, "--topic", topic]
    return _anabranch("stream", "learn", *where, "--evaluate-every", "0", "--checkpoint-every", "10000", "--json")


@contextmanager
def serving(shop: Shop) -> Iterator[Service]:
    """Run the service."""
    options = [
        "--store",
        str(shop.root),
        "--port",
        "0",
        "--processes",
        str(PROCESSES),
        "--reload-every",
        "0.2",
        "--json",
    ]
    where = ["--bootstrap-servers", shop.servers, "--topic", shop.topic]
    with subprocess.Popen(_anabranch("serve", *options, *where), stdout=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stdout is not None
            told = json.loads(parent.stdout.readline())
            yield Service(told["url"], told["processes"])
        finally:
            parent.terminate()
            parent.wait(30)


@contextmanager
def learning(shop: Shop) -> Iterator[dict[str, float]]:
    """Send clicks at a constant rate, and learn them, while the block runs; afterwards what is given tells how many."""
    over, told = threading.Event(), dict[str, float]()
    begun = time.monotonic()

    def clicks() -> Iterator[Interaction]:
        rng, number = np.random.default_rng(1), 0
        while not over.is_set():
            yield click(FIRST_CLICKS + number, shop.items, rng)
            number += 1
            told["sent"] = number
            ahead = number / EVENTS_A_SECOND - (time.monotonic() - begun)
            if ahead > 0.02:
                time.sleep(ahead)

    sender = threading.Thread(target=lambda: produce(clicks(), log=open_log(shop.servers), topic=shop.topic))
    worker = subprocess.Popen(
        _learn(shop.root, shop.servers, shop.topic), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    sender.start()
    try:
        yield told
    finally:
        over.set()
        sender.join()
        seconds = time.monotonic() - begun
        worker.terminate()
        report = json.loads(worker.communicate(timeout=120)[0])
        told["sent_a_second"] = round(told.pop("sent") / seconds, 1)
        told["learned_a_second"] = round((report["events"] - report["resumed_from"]) / seconds, 1)


@contextmanager
def swapping(registry: Registry) -> Iterator[list[str]]:
    """Move `current` to the other version again and again; gives the versions that it moved to."""
    over, moved = threading.Event(), list[str]()

    def swap() -> None:
        while not over.wait(SWAP_EVERY_S):
            moved.append(f"v{2 - (len(moved) % 2):06d}")
            registry.point("current", moved[-1])

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield moved
    finally:
        over.set()
        thread.join()


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


def ours(shop: Shop, folder: Path, seconds: float) -> dict[str, object]:
    """Return all figures of our service for one population."""
    asked, rate, registry = questions(shop, folder), RATES[shop.items], Registry.open(shop.root)
    with serving(shop) as service, learning(shop) as events:
        load(service.ask, asked, max(2.0, seconds / 3), rate)  # warm
        before = service.cpu_s()
        steady = load(service.ask, asked, seconds, rate)
        used = service.cpu_s() - before
        with swapping(registry) as moved:
            swapped = load(service.ask, asked, max(seconds, 3 * SWAP_EVERY_S), rate)
        by_text = load(service.ask, texts(folder), seconds, TEXTS_A_SECOND)
        most = load(service.ask, asked, seconds / 2, None)
        seen = until_visible(service, CLICKS_SEEN)
        megabytes = service.megabytes()
    return {
        "rate": rate,
        "events": events,
        "while_learning": steady.row(),
        "cpu_ms_an_answer": round(1e3 * used / steady.asked, 2),
        "with_a_swap_every_2_s": {**swapped.row(), "swaps": len(moved)},
        "swap_extra_p99": round(swapped.p99 / steady.p99 - 1.0, 3),
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


def peer(kind: str, shop: Shop, folder: Path, seconds: float, rate: float) -> dict[str, object]:
    """Return a peer's figures, while the learner learns beside it as well."""
    asked = questions(shop, folder)
    with peer_serving(kind, shop, folder) as url, learning(shop):
        load(url, asked, max(2.0, seconds / 3), rate)
        found = load(url, asked, seconds, rate)
        most = load(url, asked, seconds / 2, None)
    return {"rate": rate, "while_learning": found.row(), "as_fast_as_it_answers": most.row()}


def has_implicit() -> bool:
    """Tell whether implicit is installed."""
    return find_spec("implicit") is not None


def measure(sizes: list[int], seconds: float) -> dict[str, object]:
    """Return the figures of all populations."""
    rows: dict[str, object] = {}
    with TemporaryDirectory() as folder, broker() as (kind, servers):
        for items in sizes:
            shop = a_shop(Path(folder) / f"store-{items}", items, servers)
            row: dict[str, object] = {"anabranch": ours(shop, Path(folder), seconds)}
            if has_implicit():
                row["implicit ALS"] = peer("implicit", shop, Path(folder), seconds, RATES[items])
            if items in RIVER_RATES:
                row["river BiasedMF"] = peer("river", shop, Path(folder), seconds, RIVER_RATES[items])
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
            before = service.megabytes()
            end, marks = time.monotonic() + seconds, [before]
            while time.monotonic() < end:
                found.append(load(service.ask, asked, min(60.0, seconds), RATES[items] / 2))
                marks.append(service.megabytes())
                print(json.dumps({**found[-1].row(), "megabytes": marks[-1]}), flush=True)
    total = [round(sum(mark.values()), 1) for mark in marks]
    return {
        "broker": kind, "items": items, "rate": RATES[items] / 2, "asked": sum(each.asked for each in found),
        "failed": sum(each.failed for each in found), "p99_ms_by_minute": [round(each.p99, 2) for each in found],
        "megabytes_before": before, "megabytes_after": marks[-1], "megabytes_by_minute": total,
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
        with subprocess.Popen(_anabranch("serve", *options), stdout=subprocess.PIPE, text=True) as parent:
            try:
                assert parent.stdout is not None
                begun = time.monotonic()
                told = json.loads(parent.stdout.readline())
                service = Service(told["url"], told["processes"])
                started = time.monotonic() - begun
                said = load(service.ask, asked, 10.0, RATES[100_000])
                load(service.ask, texts(Path(folder)), 3.0, TEXTS_A_SECOND)
                held = service.megabytes()
            finally:
                parent.terminate()
                parent.wait(30)
    assert shop.items == items
    return {"users": users, "items": items, "seconds_to_start": round(started, 1), **said.row(), "megabytes": held,
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
        figures = partial(measure, given.items or list(RATES), 3.0 if given.quick else 7.0)
        if not has_implicit():
            print("implicit is not installed: pip install implicit; its rows are left out")
    found = {
        "processes": PROCESSES, "factors": FACTORS, "users": USERS, "events_a_second": EVENTS_A_SECOND,
        "load_average_before": round(load_before, 2), "targets": TARGETS, **figures(),
    }  # fmt: skip
    if has_implicit():
        packages = (*packages, "implicit")
    print(json.dumps(found, indent=1))
    if not given.quick:
        print(write_result(claim, found, packages).name)


if __name__ == "__main__":
    main()
