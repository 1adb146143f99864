"""A flow of events with every fault that a topic can carry, and what must be left of it."""

import threading
import time
from collections import Counter
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np

from common.events import encode_event
from stream.kafka_log import KafkaLog
from tests.stream.clicks import some_events

CORRUPT, DUPLICATE = 0.01, 0.02
_NEAR = 50
"""Events change places within so many; a duplicate comes within so many after the first."""


@dataclass(frozen=True)
class Flow:
    """Records in the order in which they are sent, and what they are.

    Parameters
    ----------
    records
        What is sent.
    mended
        Offset of each corrupt record to the bytes that it should have been.
    duplicates
        How many of the others are second copies.
    """

    records: list[bytes]
    mended: dict[int, bytes]
    duplicates: int


def faulty_flow(count: int, seed: int) -> Flow:
    """Return a flow of `count` records: near ones out of order, some twice, some corrupt."""
    rng = np.random.default_rng(seed)
    events = [encode_event(event) for event in some_events(count - int(count * DUPLICATE), seed)]
    order = np.argsort(np.arange(len(events)) + rng.uniform(0, _NEAR, len(events)))
    whole = [events[place] for place in order]
    chosen = rng.choice(len(whole), count - len(whole), replace=False)
    for place in sorted(map(int, chosen), reverse=True):
        whole.insert(min(len(whole), place + 1 + int(rng.integers(_NEAR))), whole[place])
    records, mended = list(whole), {}
    copies = {value for value in whole if whole.count(value) > 1} if count <= 5000 else _twice(whole)
    for place in map(int, rng.choice(count, int(count * CORRUPT), replace=False)):
        if whole[place] in copies:  # its other copy would be applied in its place
            continue
        cut = int(rng.integers(len(whole[place])))
        mended[place] = whole[place]
        records[place] = whole[place][:cut] + (b"" if rng.random() < 0.5 else b"\xff")
    return Flow(records, mended, count - len(events))


def _twice(values: list[bytes]) -> set[bytes]:
    return {value for value, count in Counter(values).items() if count > 1}


class Feeder:
    """Sends a flow to one partition from a thread, so many records a second; errors come out of the block's end."""

    def __init__(self, servers: str, topic: str, records: list[bytes], per_second: float) -> None:
        self._log, self._topic, self._records, self._rate = KafkaLog(servers), topic, records, per_second
        self._halt = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.error: Exception | None = None

    def _run(self) -> None:
        started = time.monotonic()
        sink = self._log.sink("feeder")
        try:
            for number, record in enumerate(self._records):
                while (ahead := number / self._rate - (time.monotonic() - started)) > 0.005:
                    time.sleep(min(ahead, 0.05))
                if self._halt.is_set():
                    return
                sink.send(self._topic, record, partition=0)
            sink.flush(120)
        except Exception as error:  # kept for the thread that waits, which raises it
            self.error = error
        finally:
            sink.close()

    def __enter__(self) -> Self:
        self._log.ensure_topic(self._topic)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._halt.set()
        self._thread.join(180)
        if self.error is not None and kind is None:
            raise self.error
