"""What the benchmark of the service serves: a store, the topic's first clicks, the program, its learner, swaps."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import numpy as np

from common.encoder.adapter import TextEncoder, initial_adapter
from common.encoder.spec import EncoderSpec
from common.events import Interaction
from common.items import Catalogue, Item
from common.manifests import Manifest, decode_manifest
from common.priority import SPARE_TIME
from common.store import MANIFEST_NAME, pack_arrays
from server.registry import Registry, StoreInfo
from server.serving.beside import rows_file
from server.serving.bundle import ADAPTER_FILE, VECTORS_FILE, VECTORS_TENSOR, snapshot_name, snapshots_folder
from stream.connect import Client, open_log
from stream.producer import produce

PROCESSES, FACTORS, USERS, FIRST_CLICKS = 2, 64, 2_000, 20_000
EVENTS_A_SECOND, SWAP_EVERY_S, VERSIONS = 2_000, 2.0, 6
DRAWN = 500
"""Clicks are drawn so many at a time."""
CHECKPOINT_EVENTS, CAUGHT_UP_WITHIN_S = 10_000, 60.0
WORDS = (
    "night sea love war city space train garden ghost king dark summer music island river star snow road life".split()
)
SENDER: Client = "librdkafka" if find_spec("confluent_kafka") else "kafka-python"
"""Sends the clicks: it stands for users who are elsewhere, so the less of this machine it takes the better."""
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
    """A running service: where it answers, its processes by role, and in how many seconds it started."""

    url: str
    pids: Mapping[str, int]
    started_s: float

    @property
    def ask(self) -> str:
        """Where questions go."""
        return f"{self.url}/v1/recommendations"

    def cpu_s(self) -> dict[str, float]:
        """Return the processor seconds of the processes that answer, together, and of each that reads for them."""
        used = dict.fromkeys(("servers", "loader", "tail"), 0.0)
        for role, pid in self.pids.items():
            ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
            used[role if role in used else "servers"] += sum(map(int, ticks)) / TICK
        return used

    def megabytes(self) -> dict[str, float]:
        """Return resident megabytes by role, what processes share counted once among them."""
        return {role: _resident(pid, "Pss") for role, pid in self.pids.items()}

    def own_megabytes(self) -> dict[str, float]:
        """Return, by role, what a process holds for itself: nothing that is mapped from a file."""
        return {role: _resident(pid, "Anonymous") for role, pid in self.pids.items()}


def _resident(pid: int, kind: str) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return round(next(int(line.split()[1]) for line in lines if line.startswith(f"{kind}:")) / 1e3, 1)


def a_store(root: Path, items: int) -> Registry:
    """Make a store of some versions, each with vectors of its own."""
    spec = EncoderSpec.default()
    encoder = TextEncoder.load(spec)
    shapes = {name: tensor.shape for name, tensor in encoder.adapter().items()}
    catalogue = Catalogue(
        Item(f"item {row}", f"Title {row}", " ".join(WORDS[(row + step) % len(WORDS)] for step in range(5)))
        for row in range(items)
    )
    registry = Registry.create(root, StoreInfo(spec.name, encoder.sha256, "benchmark", 1), catalogue)
    for number in range(1, VERSIONS + 1):
        vectors = np.random.default_rng(number).standard_normal((items, encoder.dimension)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        files = {
            "adapter/adapter_config.json": json.dumps({"peft_type": "LORA"}).encode(),
            ADAPTER_FILE: pack_arrays(initial_adapter(shapes, number)),
            VECTORS_FILE: pack_arrays({VECTORS_TENSOR: vectors}),
            **rows_file(vectors),
        }
        made = Manifest("adapter", f"v{number:06d}", (), number, base_encoder=spec.name, base_sha256=encoder.sha256)
        registry.publish(files, made)
    registry.point("current", "v000001")
    return registry


def clicks_from(number: int, items: int, rng: np.random.Generator) -> Iterator[Interaction]:
    """Give clicks without end, the first of this number; few items have many."""
    while True:
        users, liked = rng.integers(USERS, size=DRAWN), (items * rng.beta(0.6, 4.0, size=DRAWN)).astype(int)
        for user, item in zip(users.tolist(), liked.tolist(), strict=True):
            ts = 1_700_000_000_000 + number
            yield Interaction(f"event-{number}", f"user {user}", f"item {item}", "click", ts=ts)
            number += 1


def a_shop(root: Path, items: int, servers: str) -> Shop:
    """Make the store, send the first clicks, and let the learner learn them."""
    topic = f"clicks-{items}"
    a_store(root, items)
    first = list(islice(clicks_from(0, items, np.random.default_rng(0)), FIRST_CLICKS))
    produce(first, log=open_log(servers), topic=topic)
    subprocess.run(
        [*_learn(root, servers, topic), "--until-events", str(FIRST_CLICKS)], check=True, capture_output=True
    )
    pairs = np.array([(int(each.user_id.split()[1]), int(each.item_id.split()[1])) for each in first])
    return Shop(root, items, servers, topic, pairs[:, 0], pairs[:, 1])


def anabranch(*words: str) -> list[str]:
    return [sys.executable, "-m", "anabranch.cli", *words]


def _learn(root: Path, servers: str, topic: str) -> list[str]:
    where = ["--store", str(root), "--bootstrap-servers", servers, "--topic", topic]
    how = ["--evaluate-every", "0", "--checkpoint-every", f"{CHECKPOINT_EVENTS}", "--nice", f"{SPARE_TIME}"]
    return anabranch("stream", "learn", *where, *how, "--json")


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
    begun = time.monotonic()
    with subprocess.Popen(anabranch("serve", *options, *where), stdout=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stdout is not None
            told = json.loads(parent.stdout.readline())
            yield Service(told["url"], told["processes"], round(time.monotonic() - begun, 2))
        finally:
            parent.terminate()
            parent.wait(30)


@contextmanager
def learning(shop: Shop) -> Iterator[dict[str, float]]:
    """Send clicks at a constant rate, and learn them, while the block runs; afterwards what is given tells how many.

    The block begins once the learner has started and caught up with what was sent meanwhile, if it does in time.
    """
    over, told = threading.Event(), dict[str, float]()
    begun = time.monotonic()

    def clicks() -> Iterator[Interaction]:
        number = 0
        for each in clicks_from(FIRST_CLICKS, shop.items, np.random.default_rng(1)):
            if over.is_set():
                return
            yield each
            number += 1
            told["sent"] = number
            ahead = number / EVENTS_A_SECOND - (time.monotonic() - begun)
            if ahead > 0.005:
                time.sleep(ahead)

    sender = threading.Thread(
        target=lambda: produce(clicks(), log=open_log(shop.servers, client=SENDER), topic=shop.topic)
    )
    read_before = _learned(shop)
    # in a session of its own, as services have: the machine's time is shared by sessions
    worker = subprocess.Popen(
        _learn(shop.root, shop.servers, shop.topic),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    sender.start()
    try:
        deadline = begun + CAUGHT_UP_WITHIN_S
        while _learned(shop) - read_before < max(1, told.get("sent", 0) - CHECKPOINT_EVENTS):
            if time.monotonic() > deadline:
                break
            time.sleep(0.2)
        told["caught_up_after_s"] = round(time.monotonic() - begun, 1)
        yield told
    finally:
        over.set()
        sender.join()
        seconds = time.monotonic() - begun
        worker.terminate()
        said = worker.communicate(timeout=120)[0]
        # on a machine that is too busy it may be stopped before it has begun, and has learned nothing then
        report = json.loads(said) if said else {"events": 0, "resumed_from": 0}
        told["sent_a_second"] = round(told.pop("sent") / seconds, 1)
        told["learned_a_second"] = round((report["events"] - report["resumed_from"]) / seconds, 1)


def _learned(shop: Shop) -> int:
    """Return how many records the newest snapshot has read."""
    folder = snapshots_folder(shop.root)
    path = folder / (snapshot_name(folder) or "") / MANIFEST_NAME
    manifest = decode_manifest(path.read_bytes(), str(path))
    return sum(manifest.details["offsets"].get(shop.topic, {}).values())


@contextmanager
def swapping(registry: Registry) -> Iterator[list[str]]:
    """Move `current` to the next version again and again; gives the versions that it moved to."""
    over, moved = threading.Event(), list[str]()

    def swap() -> None:
        while not over.wait(SWAP_EVERY_S):
            moved.append(f"v{1 + (len(moved) + 1) % VERSIONS:06d}")
            registry.point("current", moved[-1])

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield moved
    finally:
        over.set()
        thread.join()
