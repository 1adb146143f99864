"""How long an answer takes beside a thread that decodes clicks, by how long Python lets a busy thread go on.

A service of one process follows its topic in a thread. The interpreter runs one thread at a time, and a thread that
waits for it asks the busy one to let go after the switch interval: 5 ms by default, `server.serving.run.GIVES_WAY_S`
while serving. The two take turns in one process, so that what else the machine does falls on both.
"""

import json
import sys
import threading
import time

import numpy as np
from _record import write_result

from common.events import Interaction, decode_event, encode_event
from server.serving.run import GIVES_WAY_S

SECONDS, IN_A_ROW, BURST_S, PAUSE_S, ASKED_EVERY_S = 60.0, 40, 0.012, 0.002, 0.003
ROWS, WIDTH = 2_000, 128


def follow(stop: threading.Event) -> None:
    """Decode clicks in bursts, as polls give them when there are many."""
    raw = encode_event(Interaction("event", "user 1", "item 1", "click", ts=1_700_000_000_000))
    while not stop.is_set():
        begun = time.thread_time()
        while time.thread_time() - begun < BURST_S:
            decode_event(raw)
        time.sleep(PAUSE_S)


def answer(rows: np.ndarray, weights: np.ndarray) -> None:
    """Do what an answer does: Python, and products that let go of the interpreter."""
    for _ in range(6):
        for _ in range(10):
            sum(range(100))
        rows @ weights


def main() -> None:
    """Measure, write, and say where."""
    rows, weights = np.ones((ROWS, WIDTH), dtype=np.float32), np.ones(WIDTH, dtype=np.float32)
    stop, waited = threading.Event(), {0.005: list[float](), GIVES_WAY_S: list[float]()}
    thread = threading.Thread(target=follow, args=(stop,))
    thread.start()
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        for interval, found in waited.items():
            sys.setswitchinterval(interval)
            for _ in range(IN_A_ROW):
                time.sleep(ASKED_EVERY_S)
                begun = time.perf_counter()
                answer(rows, weights)
                found.append(1e3 * (time.perf_counter() - begun))
    stop.set()
    thread.join()
    told = {
        f"{1e3 * interval:g} ms": {
            "answers": len(found), "p50_ms": round(float(np.percentile(found, 50)), 2),
            "p99_ms": round(float(np.percentile(found, 99)), 2),
        }
        for interval, found in waited.items()
    }  # fmt: skip
    print(json.dumps(told, indent=1))
    print(write_result("serve_switch", {"switch_interval": told}, ("numpy", "msgspec")).name)


if __name__ == "__main__":
    main()
