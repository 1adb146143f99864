"""Runs producers that die by SIGKILL at the n-th event of their input, one after the other, on the same journal.

Started as a script: ``python -m tests.stream.dying_producers SERVERS TOPIC JOURNAL TOTAL PARTITIONS DEATH...``; a death
of 0 finishes. Each is a fork; prints the signal that ended it, or 0.
"""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from common.events import Interaction
from stream.kafka_log import KafkaLog
from stream.producer import produce
from tests.stream.clicks import some_events


def _until_death(events: list[Interaction], death: int) -> Iterator[Interaction]:
    for number, event in enumerate(events, start=1):
        if number == death:
            os.kill(os.getpid(), signal.SIGKILL)
        yield event


def main(servers: str, topic: str, journal: str, total: str, partitions: str, *deaths: str) -> None:
    """Fork one producer a death and wait for it."""
    events = some_events(int(total))
    for death in deaths:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                produce(
                    _until_death(events, int(death)),
                    log=KafkaLog(servers),
                    topic=topic,
                    partitions=int(partitions),
                    journal=Path(journal),
                )
                code = 0
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
