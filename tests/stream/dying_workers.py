"""Runs workers that die by SIGKILL at named places, one after the other, on the same store.

Started as a script: ``python -m tests.stream.dying_workers SERVERS TOPIC STORE TOTAL LEARNER PLACE:COUNT...``.
Everything is
imported once; each worker is a fork. Prints, for each, the signal that ended it (9) or 0 when it finished.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.events import Interaction, decode_event
from stream.consumer import StreamWorker, WorkerSettings
from stream.deadletter import DeadLetters
from stream.kafka_log import KafkaSource
from tests.stream.topics import small_learner, some_texts


def settings_of(servers: str, topic: str, store: Path, total: int) -> WorkerSettings:
    """Return the settings that all runs of the comparison share."""
    return WorkerSettings(servers, topic, store, checkpoint_events=20, checkpoint_seconds=1e6, until_events=total)


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
    elif place == "flush":  # between steps 1 and 2
        DeadLetters.flush = _dies_after(count, DeadLetters.flush)  # type: ignore[method-assign]  # the fault
    elif place == "rename":  # within steps 2 and 3: written, not yet visible
        os.rename = _dies_after(count, os.rename, before=True)
    elif place == "commit":  # after step 3
        KafkaSource.commit = _dies_after(count, KafkaSource.commit, before=True)  # type: ignore[method-assign]  # the fault
    settings = settings_of(servers, topic, store, total)
    StreamWorker(settings, small_learner(kind), texts=some_texts, decode=decode).run()


def main(servers: str, topic: str, store: str, total: str, kind: str, *deaths: str) -> None:
    """Fork one worker a death and wait for it."""
    for death in deaths:
        place, _, count = death.partition(":")
        child = os.fork()
        if child == 0:
            code = 1
            try:
                _work(servers, topic, Path(store), int(total), kind, place, int(count))
                code = 0
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        ended = os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status)
        sys.stdout.write(f"{ended}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
