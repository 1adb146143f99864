"""One event at a time onto the topic, as `stream.producer` writes it, for those who wait for the acknowledgement."""

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from common.errors import StreamError
from common.events import Interaction, encode_event
from stream.kafka_log import partition_of
from stream.source import Log, Sink

ACKNOWLEDGED_WITHIN_S = 10.0
PAUSE_S = 2.0
"""A broker that did not answer is not asked again for so long: callers have their error at once."""


class EventWriter:
    """Sends events; safe to use from several threads.

    Nothing is asked of the broker before the first event, so a service starts without one.

    Parameters
    ----------
    log
        Where the topic is.
    topic
        Created if there is none.
    wait_s
        How long to wait for an acknowledgement.
    monotonic
        Seconds that never go back.
    """

    def __init__(
        self,
        log: Log,
        topic: str,
        *,
        wait_s: float = ACKNOWLEDGED_WITHIN_S,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log, self._topic, self._wait_s, self._monotonic = log, topic, wait_s, monotonic
        self._lock = threading.Lock()
        self._open: tuple[Sink, int] | None = None
        self._failed: tuple[float, StreamError] | None = None

    def send(self, event: Interaction) -> tuple[int, int]:
        """Return partition and offset once the event is acknowledged.

        Raises
        ------
        StreamError
            When it is not in time; it may be on the topic all the same.
        """
        sink, partitions = self._sink()
        partition = partition_of(event.user_id, partitions)
        try:
            delivery = sink.send(self._topic, encode_event(event), partition=partition, key=event.user_id.encode())
            return partition, delivery.offset(self._wait_s)
        except StreamError as error:
            # an idempotent producer that failed may never send again: the next event opens another one
            self._drop(sink)
            raise StreamError(
                f"the event was not acknowledged: {error}",
                consequence="it may be on the topic or not",
                mend="send it again with the same event_id: a second copy is skipped",
            ) from error

    def close(self) -> None:
        """Close the connection."""
        if self._open is not None:
            self._drop(self._open[0])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _sink(self) -> tuple[Sink, int]:
        with self._lock:
            if self._open is None:
                if self._failed is not None and self._monotonic() < self._failed[0] + PAUSE_S:
                    raise self._failed[1]
                try:
                    partitions = len(self._log.ensure_topic(self._topic).partitions)
                    self._open = (self._log.sink("anabranch-events"), partitions)
                except StreamError as error:
                    self._failed = (self._monotonic(), error)
                    raise
                self._failed = None
            return self._open

    def _drop(self, sink: Sink) -> None:
        with self._lock:
            if self._open is None or self._open[0] is not sink:
                return
            self._open = None
        sink.close()
