"""Claim: a million users and 100,000 items stay within 1.5 GB; a lesson costs hardly more after many than after few.

Memory: a child process fills a fresh learner, 64 factors in float32 and two likes a user, every item liked, and tells
its peak resident memory, which includes the program itself (told apart as `empty`) and the moments in which arrays are
grown. It is filled with one negative an event and the blend's weights held still, since a million questions about
100,000 items take an hour; the arrays are those of all settings. Texts take their 64 numbers an item whether they are
told or not.

Time: processor microseconds a lesson in each tenth of a long stream, the last tenth beside the third: nothing is
compiled there any more, all ids are known, and every user has more likes than the window of 50 that is folded.
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
from _record import write_result
from river import optim, reco

from stream.learner.base import ArrayRanker
from stream.learner.blend import Blend
from stream.learner.mf import MF
from stream.learner.pointwise import PointwiseMF

SIZES = ((0, 0), (10_000, 1_000), (100_000, 10_000), (1_000_000, 100_000))
FACTORS, LIKES, CHUNK = 64, 2, 10_000
MOST_BYTES = 1.5e9
MAKERS: dict[str, Callable[[], ArrayRanker]] = {
    "PointwiseMF": lambda: PointwiseMF(n_factors=FACTORS),
    "MF": lambda: MF(n_factors=FACTORS, negatives=1),
    "Blend": lambda: Blend(n_factors=FACTORS, weight_lr=0.0, negatives=1),
}
RIVER = "river.BiasedMF"
EVENTS, TENTHS = 50_000, 10


def peak_bytes() -> int:
    """Return the largest resident memory that this process had; Linux tells kilobytes, macOS bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def fill(name: str, users: int, items: int) -> int:
    """Fill a learner, and return the peak."""
    rng = np.random.default_rng(0)
    if name == RIVER:
        river = reco.BiasedMF(n_factors=FACTORS, latent_initializer=optim.initializers.Normal(sigma=0.1, seed=0))
        for event in range(LIKES * users):
            river.learn_one(f"user {event % users}", f"item {_item(event, items, rng)}", 1.0)
        return peak_bytes()
    learner = MAKERS[name]()
    learner.learn_one("compiled", "before", 1.0)
    for start in range(0, LIKES * users, CHUNK):
        events = range(start, min(start + CHUNK, LIKES * users))
        learner.learn_many(
            [f"user {event % users}" for event in events], [f"item {_item(event, items, rng)}" for event in events]
        )
    assert learner.n_users == users + 1
    assert learner.n_items == items + 1
    return peak_bytes()


def _item(event: int, items: int, rng: np.random.Generator) -> int:
    """Return each item once, then random ones."""
    return event if event < items else int(rng.integers(items))


def memory() -> dict[str, dict[str, float]]:
    """Return the peak in megabytes by learner and size, each from a process of its own."""
    found: dict[str, dict[str, float]] = {}
    for name in (*MAKERS, RIVER):
        found[name] = {}
        for users, items in SIZES:
            child = [sys.executable, __file__, "--child", name, str(users), str(items)]
            told = subprocess.run(child, capture_output=True, text=True, check=True).stdout
            size = f"{users} users, {items} items" if users else "empty"
            found[name][size] = round(json.loads(told) / 1e6, 1)
            print(f"{name}, {size}: {found[name][size]} MB", flush=True)
    return found


def lessons() -> dict[str, list[float]]:
    """Return processor microseconds a lesson in each tenth of a stream."""
    rng = np.random.default_rng(0)
    users, items = rng.integers(200, size=EVENTS).tolist(), rng.zipf(1.3, size=EVENTS) % 1_700
    found: dict[str, list[float]] = {}
    for name, learner in {"PointwiseMF": PointwiseMF(), "MF": MF(), "Blend": Blend()}.items():
        tenths = []
        learner.add_items(f"item {item}" for item in range(1_700))
        for tenth in range(TENTHS):
            part = range(tenth * EVENTS // TENTHS, (tenth + 1) * EVENTS // TENTHS)
            start = time.thread_time_ns()
            for event in part:
                learner.learn_one(f"user {users[event]}", f"item {items[event]}")
            tenths.append(round((time.thread_time_ns() - start) / len(part) / 1e3, 1))
        found[name] = tenths
    return found


def main() -> None:
    """Measure, write, and print one line."""
    megabytes, microseconds = memory(), lessons()
    most, fewest = (f"{users} users, {items} items" for users, items in (SIZES[-1], SIZES[-2]))
    apart = SIZES[-1][0] - SIZES[-2][0]
    figures = {
        "factors": FACTORS,
        "likes_a_user": LIKES,
        "peak_megabytes": megabytes,
        "bytes_a_user_with_a_tenth_of_an_item": {
            name: round(1e6 * (row[most] - row[fewest]) / apart) for name, row in megabytes.items()
        },
        "within_1.5_gigabytes": {name: 1e6 * row[most] <= MOST_BYTES for name, row in megabytes.items()},
        "lesson_cpu_us_by_tenth": microseconds,
        "last_tenth_to_third": {name: round(row[-1] / row[2], 2) for name, row in microseconds.items()},
    }
    path = write_result("stream_memory", figures, ("river", "numpy", "numba"))
    print(f"{ {name: row[most] for name, row in megabytes.items()} } MB; {figures['last_tenth_to_third']}; {path.name}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(fill(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
    else:
        main()
