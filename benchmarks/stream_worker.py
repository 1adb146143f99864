"""What the streaming worker does: events a second beside two peers, the time of a checkpoint, memory over a million.

Speed: one partition, the same clicks for all, each reading it from its beginning, in turns. The real `StreamWorker`
decodes, checks, drops duplicates, learns and stores a synced checkpoint and a snapshot every 5,000 events; nothing is
evaluated. The peers decode JSON and call `learn_one` of river's BiasedMF: one in a plain loop around kafka-python, one
in Quix Streams, installed with pip into an environment in a temporary folder. They store no model. Processor time of
the reading process is what is compared, the broker's is not in it; wall time is told too. Where the extra `fast` is
installed, the worker reads with librdkafka as well.

Checkpoint: `CheckpointStore.write` of 160,000 rows of 64 float32, synced, and its parts alone on the same bytes. What
is hashed is hashed while it is written and synced, so the whole is less than the sum on an idle machine. The library's
own packing, which copies twice, is told beside ours; `--checkpoint` prints this part alone and stores nothing.

Memory: resident megabytes of a child process that applies a million records to `StreamState` for a fixed population,
and then the first quarter of them again under new ids, pairs of user and item that all came before. What a learner
keeps of a pair is 12 bytes, of a second event of it nothing: so memory grows with pairs, and with the same pairs not.
`--memory` prints this part alone and stores nothing.
"""

import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
import uuid
import venv
from collections.abc import Callable, Sequence
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from _kafka import broker
from _record import write_result
from kafka import KafkaConsumer, TopicPartition
from river import optim, reco
from safetensors.numpy import save

from common.events import Interaction, encode_event
from common.store import pack_arrays
from stream.checkpoint import CheckpointStore
from stream.connect import Client, open_log
from stream.consumer import StreamWorker
from stream.kafka_log import FETCH_BYTES, POLL_RECORDS
from stream.learner.blend import Blend
from stream.learner.mf import MF
from stream.learner.pointwise import PointwiseMF
from stream.producer import produce
from stream.settings import WorkerSettings
from stream.state import Served, StreamState

EVENTS, WARM, ROUNDS = 20_000, 500, 3
USERS, ITEMS, FACTORS, EVERY = 1_000, 1_700, 64, 5_000
ROWS, WRITES, TARGET_MS = 160_000, 9, 100.0
MARKS = (250_000, 500_000, 1_000_000)
AGAIN = "the first again"
LEARNERS: dict[str, Callable[[], Served]] = {
    "blend": lambda: Blend(n_factors=FACTORS),
    "mf": lambda: MF(n_factors=FACTORS),
    "pointwise": lambda: PointwiseMF(n_factors=FACTORS),
}
RIVER, QUIX = "kafka-python + json + river.BiasedMF", "Quix Streams + river.BiasedMF"
Timed = tuple[float, float]
"""Wall and processor seconds."""


def click(number: int, rng: np.random.Generator) -> Interaction:
    """Return a click of a random user; few items have many."""
    user, item = int(rng.integers(USERS)), int(rng.zipf(1.3)) % ITEMS
    return Interaction(f"event-{number}", f"user {user}", f"item {item}", "click", ts=1_700_000_000_000 + number)


# --- speed ----------------------------------------------------------------------------------------------------------


def ours(name: str, client: Client, servers: str, topic: str, events: int) -> Timed:
    """Learn the topic with the worker into a fresh store."""
    with TemporaryDirectory() as folder:
        settings = WorkerSettings(
            servers, topic, Path(folder), checkpoint_events=EVERY, until_events=events, evaluate_every=0,
            group=uuid.uuid4().hex, client=client,
        )  # fmt: skip
        worker = StreamWorker(settings, LEARNERS[name]())
        wall, cpu = time.perf_counter(), time.process_time()
        report = worker.run()
        spent = time.perf_counter() - wall, time.process_time() - cpu
    assert report.learned == events
    return spent


def plain(servers: str, topic: str, events: int) -> Timed:
    """Learn the topic as one would by hand."""
    initial = optim.initializers.Normal(mu=0.0, sigma=0.1, seed=0)
    learner = reco.BiasedMF(n_factors=FACTORS, latent_initializer=initial, seed=0)
    wall, cpu = time.perf_counter(), time.process_time()
    consumer = KafkaConsumer(
        bootstrap_servers=servers, enable_auto_commit=False, max_poll_records=POLL_RECORDS,
        max_partition_fetch_bytes=FETCH_BYTES,
    )  # fmt: skip
    part = TopicPartition(topic, 0)
    consumer.assign([part])
    consumer.seek_to_beginning(part)
    done = 0
    while done < events:
        for record in consumer.poll(timeout_ms=200).get(part, []):
            value = json.loads(record.value)
            learner.learn_one(user=value["user_id"], item=value["item_id"], y=1.0)
            done += 1
    consumer.close()
    return time.perf_counter() - wall, time.process_time() - cpu


def quix(python: Path, servers: str, topic: str, events: int) -> Timed:
    """Learn the topic with Quix Streams, in the other environment."""
    script = Path(__file__).with_name("_quix_peer.py")
    numbers = [str(events), str(FACTORS), str(EVERY)]
    child = [str(python), "-W", "ignore", str(script), servers, topic, uuid.uuid4().hex, *numbers]
    done, wall, cpu = json.loads(subprocess.run(child, capture_output=True, text=True, check=True).stdout)
    assert done == events
    return wall, cpu


def quix_python(folder: Path) -> tuple[Path | None, str]:
    """Install Quix Streams and our river; return the environment's Python, or None, and the version or the reason.

    ANABRANCH_QUIX_PYTHON names one that is there already.
    """
    named = os.environ.get("ANABRANCH_QUIX_PYTHON")
    python = Path(named) if named else folder / "bin" / "python"
    try:
        if not named:
            venv.create(folder, with_pip=True)
            wanted = ["quixstreams", f"river=={metadata.version('river')}"]
            install = [str(python), "-m", "pip", "install", "--quiet", *wanted]
            subprocess.run(install, check=True, capture_output=True, timeout=600)
        asked = [str(python), "-c", "from importlib import metadata; print(metadata.version('quixstreams'))"]
        return python, subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        return None, f"not installed: {error}"


def speed() -> dict[str, object]:
    """Return events a second and processor microseconds an event of all, and the ratios to the plain loop."""
    rng = np.random.default_rng(0)
    runs: dict[str, Callable[[str, str, int], Timed]] = {
        f"StreamWorker, {name}": partial(ours, name, "kafka-python") for name in LEARNERS
    }
    if find_spec("confluent_kafka"):
        runs |= {f"StreamWorker, {name}, librdkafka": partial(ours, name, "librdkafka") for name in LEARNERS}
    runs[RIVER] = plain
    found: dict[str, list[Timed]] = {}
    with TemporaryDirectory() as folder, broker() as (kind, servers):
        python, quix_version = quix_python(Path(folder))
        if python is not None:
            runs[QUIX] = partial(quix, python)
        for topic, events in (("warm", WARM), ("clicks", EVENTS)):
            produce((click(each, rng) for each in range(events)), log=open_log(servers), topic=topic)
        for run in runs.values():  # compiles
            run(servers, "warm", WARM)
        for _ in range(ROUNDS):
            for name, run in runs.items():
                found.setdefault(name, []).append(run(servers, "clicks", EVENTS))
    rows = {name: _row(spent) for name, spent in found.items()}
    for name, row in rows.items():
        print(f"{name}: {row}", flush=True)
    return {
        "broker": kind,
        "quixstreams": quix_version,
        "evaluated": "nothing, by anyone",
        "events": EVENTS,
        "rows": rows,
        "cpu_to_plain_loop": {name: round(row["cpu_us"] / rows[RIVER]["cpu_us"], 2) for name, row in rows.items()},
    }


def _row(spent: list[Timed]) -> dict[str, float]:
    """Return medians over the rounds, and the spread of processor time."""
    costs = [1e6 * cpu / EVENTS for _, cpu in spent]
    return {
        "events_a_second_wall": round(EVENTS / statistics.median(wall for wall, _ in spent)),
        "events_a_cpu_second": round(1e6 / statistics.median(costs)),
        "cpu_us": round(statistics.median(costs), 1),
        "cpu_us_least": round(min(costs), 1),
        "cpu_us_most": round(max(costs), 1),
    }


# --- checkpoint -----------------------------------------------------------------------------------------------------


def checkpoint() -> dict[str, object]:
    """Return milliseconds of a checkpoint and of its parts: median, least and most, of wall and of processor time."""
    arrays = {"factors": np.random.default_rng(0).standard_normal((ROWS, FACTORS)).astype(np.float32)}
    packed = pack_arrays(arrays)
    spent: dict[str, list[Timed]] = {}

    def timed(part: str, call: Callable[[], object]) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        spent.setdefault(part, []).append((time.perf_counter() - wall, time.process_time() - cpu))

    with TemporaryDirectory(dir=Path.cwd()) as folder:  # the temporary folder of many systems is memory
        store = CheckpointStore(Path(folder))
        for sequence in range(1, WRITES + 1):
            timed("whole", partial(store.write, sequence, arrays, {}, 0))
            timed("pack", lambda: pack_arrays(arrays))
            timed("pack_by_safetensors", lambda: save(arrays))
            timed("hash", lambda: hashlib.sha256(packed).digest())
            with (Path(folder) / "alone").open("wb", buffering=0) as file:
                timed("write", partial(file.write, packed))
                timed("sync", partial(os.fsync, file.fileno()))
    parts = {part: _milliseconds(times) for part, times in spent.items()}
    print(json.dumps(parts), flush=True)
    return {"megabytes": round(len(packed) / 1e6, 1), "parts": parts, "target_ms": TARGET_MS}


def _milliseconds(times: list[Timed]) -> dict[str, float]:
    walls, cpus = ([1e3 * each for each in column] for column in zip(*times, strict=True))
    return {
        "wall": round(statistics.median(walls), 1),
        "wall_least": round(min(walls), 1),
        "wall_most": round(max(walls), 1),
        "cpu": round(statistics.median(cpus), 1),
        "cpu_least": round(min(cpus), 1),
    }


# --- memory ---------------------------------------------------------------------------------------------------------


def resident_megabytes() -> float:
    """Return what this process holds now (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6


def fill(name: str, marks: Sequence[int] = MARKS) -> dict[str, float]:
    """Apply records up to the last mark, then those up to the first again; return resident megabytes at each."""
    state = StreamState(LEARNERS[name](), every=0)
    rng, found = np.random.default_rng(0), {}
    for number in range(marks[-1] + marks[0]):
        if number == marks[-1]:
            rng = np.random.default_rng(0)
        state.apply("clicks", 0, number, encode_event(click(number, rng)))
        if number + 1 in marks:
            found[str(number + 1)] = round(resident_megabytes(), 1)
    found[AGAIN] = round(resident_megabytes(), 1)
    found["pairs"] = float(len(state.learner.state_arrays()["log.item"]))
    assert state.learned == marks[-1] + marks[0]
    return found


def memory() -> dict[str, dict[str, float]]:
    """Return megabytes by learner and events, each learner in a process of its own."""
    children = {
        name: subprocess.Popen([sys.executable, __file__, "--child", name], stdout=subprocess.PIPE, text=True)
        for name in LEARNERS
    }
    told = {name: child.communicate()[0] for name, child in children.items()}
    failed = [name for name, child in children.items() if child.returncode]
    if failed:
        raise SystemExit(f"no memory measured of {failed}")
    found = {name: json.loads(line) for name, line in told.items()}
    print(json.dumps(found), flush=True)
    return found


def main() -> None:
    """Measure, write, and say where."""
    first, last = str(MARKS[0]), str(MARKS[-1])
    speeds, stored, megabytes = speed(), checkpoint(), memory()
    figures = {
        "factors": FACTORS,
        "users": USERS,
        "items": ITEMS,
        "speed": speeds,
        "checkpoint": stored,
        "resident_megabytes_by_events": megabytes,
        "million_to_quarter": {name: round(row[last] / row[first], 3) for name, row in megabytes.items()},
        "same_pairs_again_to_million": {name: round(row[AGAIN] / row[last], 3) for name, row in megabytes.items()},
    }
    path = write_result("stream_worker", figures, ("kafka-python", "river", "numpy", "numba", "safetensors"))
    print(f"{figures['million_to_quarter']}, then {figures['same_pairs_again_to_million']}; {path.name}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(fill(sys.argv[2])))
    elif sys.argv[1:2] == ["--checkpoint"]:
        checkpoint()
    elif sys.argv[1:2] == ["--memory"]:
        memory()
    else:
        main()
