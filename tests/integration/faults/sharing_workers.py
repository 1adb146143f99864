"""One worker of a group as a process of its own, to be killed.

Started as a script: ``python -m tests.integration.faults.sharing_workers SERVERS TOPIC STORE KIND``. Prints
"ready", joins when a line comes in, prints how many partitions it has whenever that changes, and ends at SIGTERM.
"""

import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from common.events import encode_event
from stream.group_worker import GroupWorker
from stream.meter import Unwatched
from stream.settings import WorkerSettings
from stream.state import StreamState
from tests.stream.topics import small_learner, some_events

EVERY = 200


def settings_of(servers: str, topic: str, store: Path, **more: Any) -> WorkerSettings:
    """Return settings with many checkpoints, and without memory of event ids: nothing but offsets tells a repeat."""
    return WorkerSettings(
        servers,
        topic,
        store,
        checkpoint_events=EVERY,
        checkpoint_seconds=2.0,
        dedup_window=0,
        evaluate_every=10,
        **more,
    )


class Says(Unwatched):
    """Prints how many partitions it has, each time that changes."""

    def assigned(self, partitions: int) -> None:
        sys.stdout.write(f"{partitions}\n")
        sys.stdout.flush()


def warm_up(kind: str) -> None:
    """Have everything compiled."""
    state = StreamState(small_learner(kind))
    for number, event in enumerate(some_events(20)):
        state.apply("warm", 0, number, encode_event(event))


def main(servers: str, topic: str, store: str, kind: str) -> None:
    """Learn until told to stop."""
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True

    signal.signal(signal.SIGTERM, ask)
    settings = settings_of(servers, topic, Path(store))
    worker = GroupWorker(settings, small_learner(kind), items=CATALOGUE, stopping=lambda: asked, meter=Says())
    warm_up(kind)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    worker.run()


CATALOGUE = tuple(f"item-{number}" for number in range(40))

if __name__ == "__main__":
    main(*sys.argv[1:])
