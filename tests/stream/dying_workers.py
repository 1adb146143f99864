"""Runs workers that die by SIGKILL at named places or moments, one after the other, on the same store.

Started as a script: ``python -m tests.stream.dying_workers SERVERS TOPIC STORE TOTAL LEARNER PLACE:COUNT...``. A place
is one of `PLACES`, "decode", "time" (then the count is seconds) or "none". Everything is imported once; each worker is
a fork. Prints, for each, the signal that ended it (9) or 0 when it finished.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import stream.consumer
from common.events import Interaction, decode_event, encode_event
from stream.checkpoint import CheckpointStore
from stream.consumer import StreamWorker, WorkerSettings
from stream.deadletter import DeadLetters
from stream.kafka_log import KafkaSource
from stream.state import StreamState
from tests.stream.topics import small_learner, some_events, some_texts

MANY = 10_000
PLACES: dict[str, tuple[Any, str, bool]] = {
    "letters": (DeadLetters, "flush", True),  # before step 1
    "flush": (DeadLetters, "flush", False),  # between steps 1 and 2
    "rename": (os, "rename", True),  # within steps 2 and 3: written, not yet visible
    "written": (CheckpointStore, "write", False),  # between steps 2 and 3
    "pointer": (os, "replace", True),  # within step 3: the snapshot is there, `current` names the one before
    "published": (stream.consumer, "publish_snapshot", False),  # after step 3
    "commit": (KafkaSource, "commit", True),  # between steps 3 and 4
    "committed": (KafkaSource, "commit", False),  # after step 4
}
"""Name to what dies: owner, attribute, and whether before or after it ran."""


def settings_of(servers: str, topic: str, store: Path, total: int) -> WorkerSettings:
    """Return the settings that all runs of the comparison share: many checkpoints, or for many events quick ones."""
    few = total <= MANY
    return WorkerSettings(
        servers,
        topic,
        store,
        checkpoint_events=20 if few else 1000,
        checkpoint_seconds=1e6,
        until_events=total,
        evaluate_every=1 if few else 100,
    )


def _dies_after(count: int, act: Callable[..., Any], *, before: bool = False) -> Callable[..., Any]:
    """Wrap `act` so that its `count`-th call is the process's last."""
    left = [count]

    def wrapped(*arguments: Any, **options: Any) -> Any:
        left[0] -= 1
        if before and left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        result = act(*arguments, **options)
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return wrapped


def _work(servers: str, topic: str, store: Path, total: int, kind: str, place: str, count: int) -> None:
    decode: Callable[[bytes], Interaction] = decode_event
    if place == "decode":
        decode = _dies_after(count, decode_event, before=True)
    elif place in PLACES:
        owner, name, before = PLACES[place]
        setattr(owner, name, _dies_after(count, getattr(owner, name), before=before))
    settings = settings_of(servers, topic, store, total)
    StreamWorker(settings, small_learner(kind), texts=some_texts, decode=decode).run()


def main(servers: str, topic: str, store: str, total: str, kind: str, *deaths: str) -> None:
    """Fork one worker a death and wait for it."""
    warm = StreamState(small_learner(kind))  # compiled before the forks, so that none spends its life on it
    for number, event in enumerate(some_events(20)):
        warm.apply(topic, 0, number, encode_event(event))
    for death in deaths:
        place, _, count = death.partition(":")
        child = os.fork()
        if child == 0:
            code = 1
            try:
                _work(servers, topic, Path(store), int(total), kind, place, 0 if place == "time" else int(count))
                code = 0
            finally:
                os._exit(code)
        if place == "time":
            time.sleep(float(count))
            os.kill(child, signal.SIGKILL)  # one that has ended waits to be waited for
        _, status = os.waitpid(child, 0)
        ended = os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status)
        sys.stdout.write(f"{ended}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
