"""What both kinds of stream worker share: what they are given, and how they watch a topic that may change or vanish."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable

from common.clock import Clock, wall_clock
from common.errors import BrokerUnavailable, StreamError
from common.events import decode_event
from common.progress import Progress, silent
from stream.connect import open_log
from stream.deadletter import FLUSH_WITHIN_S
from stream.learner.blend import Blend
from stream.meter import Meter, Unwatched
from stream.settings import LearnReport, WorkerSettings
from stream.source import Log, Source, TopicInfo
from stream.state import Decoder, ItemTexts, Served, StreamState

POLL_S = 0.2
LOOK_AGAIN_S = 10.0
"""A silent topic is looked up this often: a broker that was replaced answers polls with nothing, for ever."""
TEXTS_S = 10.0
"""Newer texts are asked for this often."""
LEAVE_WITHIN_S = 4.0
"""How long the last dead letters may take when the worker is told to stop; supervisors kill after 10 s."""


class Worker(ABC):
    """A worker before it has read anything.

    Parameters
    ----------
    settings
        What to do.
    learner
        Fresh; taken over from the checkpoint when there is one. None is a `Blend` as it comes.
    log
        Where the topic is; None is Kafka at the address of the settings.
    items
        Candidates from the start (a catalogue's ids).
    texts
        Gives text vectors of items, for a learner that takes them, or None when there are none, or none newer than
        those it gave before. Asked at the start and now and then; newer ones take the place of the checkpoint's.
    decode
        Bytes to event.
    stopping
        Asked before every record; True ends the run with a checkpoint.
    notice
        Told what people must hear: a fallback, a new topic, a lost offset.
    progress
        Told how far it is.
    clock
        Dates checkpoints.
    meter
        Watches.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        learner: Served | None = None,
        *,
        log: Log | None = None,
        items: tuple[str, ...] = (),
        texts: Callable[[], ItemTexts | None] = lambda: None,
        decode: Decoder = decode_event,
        stopping: Callable[[], bool] = lambda: False,
        notice: Callable[[str], None] = lambda _: None,
        progress: Progress = silent,
        clock: Clock = wall_clock,
        meter: Meter | None = None,
    ) -> None:
        self.settings = settings
        self._fresh: Served = learner or Blend()
        self._log: Log = log or open_log(settings.servers, settings.security, settings.client)
        self._items, self._texts, self._decode = items, texts, decode
        self._stopping, self._notice, self._progress, self._clock = stopping, notice, progress, clock
        self._meter: Meter = meter or Unwatched()
        self._source: Source
        self._stored_at = self._last_record = self._answered = self._described_at = time.monotonic()
        self._prepare()

    @abstractmethod
    def _prepare(self) -> None:
        """Make what this kind of worker keeps; the end of its making."""

    @abstractmethod
    def checkpoint(self) -> bool:
        """Store what was learned; return False when the topic is another now, and nothing is stored."""

    @abstractmethod
    def _another(self, info: TopicInfo) -> None:
        """Go over to a topic that took the place of the one that was read, or refuse to."""

    @abstractmethod
    def _known_identity(self) -> str:
        """Return the identity of the topic that was read."""

    @abstractmethod
    def _unsent(self) -> int:
        """Return how many dead letters wait for the next checkpoint."""

    def _patience(self) -> float | None:
        """Return after how many seconds without a record the worker ends; None never."""
        return self.settings.idle_timeout_s

    def _idle(self) -> bool:
        timeout = self._patience()
        return timeout is not None and time.monotonic() - self._last_record > timeout

    def _letters_within(self) -> float:
        """Return how many seconds dead letters may take: fewer where somebody waits for the worker to stop."""
        return LEAVE_WITHIN_S if self._stopping() else FLUSH_WITHIN_S

    def _look_again(self) -> None:
        """Look up a silent topic: the broker may be gone, the topic be another, or have more partitions."""
        try:
            info = self._source.topic()
        except BrokerUnavailable as error:
            self.checkpoint()
            if self._idle() or time.monotonic() - self._answered > self.settings.broker_wait_s:
                raise
            self._notice(f"{error.found}; waiting for it, up to {self.settings.broker_wait_s:g} s")
            return
        self._answered = time.monotonic()
        if info is None:  # deleted: perhaps it is made again
            return
        if info.identity != self._known_identity():
            self._another(info)
        else:
            self._same(info)

    @abstractmethod
    def _same(self, info: TopicInfo) -> None:
        """Take note of how a topic is now that is the one that was read."""

    def _same_topic(self) -> bool:
        """Tell whether the topic is still the one that was read; offsets of another must not be stored.

        A broker that does not answer proves nothing, and what was read before is stored, unless letters would have to
        be sent. The next start compares the identities again.
        """
        try:
            info = self._source.topic()
        except BrokerUnavailable as error:
            if waiting := self._unsent():
                raise StreamError(
                    f"{waiting} dead letters cannot be sent: {error}",
                    consequence="nothing since the last checkpoint is stored, its records are read again",
                    mend="start again when the broker answers",
                ) from error
            return True
        if info is None or info.identity == self._known_identity():
            return True
        self._another(info)
        return False


def report_of(state: StreamState, resumed_from: int, seconds: float) -> LearnReport:
    """Return what a state holds at the end of a run."""
    return LearnReport(
        events=state.events,
        learned=state.learned,
        duplicates_skipped=state.duplicates_skipped,
        dead_letters=state.dead_letters,
        drift_alarms=state.progressive.drift_alarms,
        offsets=state.json_offsets,
        state_sha256=state.learner.state_sha256(),
        metrics={name: row.as_json() for name, row in state.progressive.rows().items()},
        resumed_from=resumed_from,
        seconds=seconds,
    )
