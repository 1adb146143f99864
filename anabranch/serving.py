"""The service put together: the store's models, who may ask, and the topic where there is a broker.

What a process needs is imported by what it does: the one that starts the others needs hardly anything, and those that
read for them no web framework.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from common.errors import AnabranchError, NoModel
from common.recent import RecentEvents
from server.serving.limits import DEFAULT_LIMITS, Limits

if TYPE_CHECKING:
    from server.serving.app import App
    from server.serving.bundle import Bundle, BundleSource
    from server.serving.query import QueryTexts
    from server.serving.reload import ReloadingSource
    from server.serving.shared import MappedSource
    from stream.source import Log
    from stream.tail import Tail

    PolledSource = ReloadingSource | MappedSource

log = logging.getLogger(__name__)
WAIT_S = 0.1
"""How often is looked for a first model."""


@dataclass(frozen=True, slots=True)
class Broker:
    """Where the clicks are.

    Parameters
    ----------
    servers, topic
        Bootstrap servers, and the topic.
    security
        TOML file with TLS and SASL settings, or None.
    client
        The library that speaks to it.
    """

    servers: str
    topic: str
    security: Path | None = None
    client: Literal["kafka-python", "librdkafka"] = "kafka-python"

    def log(self) -> "Log":
        """Return the cluster; nothing is asked of it yet."""
        from stream.connect import open_log
        from stream.security import PLAIN, read_security

        return open_log(self.servers, PLAIN if self.security is None else read_security(self.security), self.client)


@dataclass(frozen=True, slots=True)
class Shared:
    """The folder of a service of several processes.

    Parameters
    ----------
    folder
        Lasts as long as the service.
    """

    folder: Path

    @property
    def bundle(self) -> Path:
        """Folder of the bundle that one process reads from the store and writes out."""
        return self.folder / "bundle"

    @property
    def clicks(self) -> Path:
        """File of the clicks that one process reads from the topic; see `stream.click_table`."""
        return self.folder / "clicks"

    @property
    def connections(self) -> Path:
        """File of how many connections each process has open; see `server.serving.fair_accept`."""
        return self.folder / "connections"

    @property
    def looked(self) -> Path:
        """A file that is there once the store was looked at for the first time."""
        return self.folder / "looked"


@dataclass(frozen=True, slots=True)
class Serving:
    """What a service is told.

    Parameters
    ----------
    store
        Folder or address of the models.
    reload_every
        Seconds between two looks for a new version.
    limits
        What is refused.
    keys
        File of API keys, or None to ask for none.
    origins
        Whose pages may ask from a browser.
    slate_log
        Folder that slates are logged to, or None.
    broker
        Where clicks are read and sent; None answers from snapshots alone, and refuses events.
    explore
        How often a slot is given to any of the items in question, 0 to 1.
    stream_store
        Folder of another store whose snapshots of the stream are served; None takes the models' own.
    """

    store: str
    reload_every: float = 2.0
    limits: Limits = DEFAULT_LIMITS
    keys: Path | None = None
    origins: tuple[str, ...] = ()
    slate_log: Path | None = None
    broker: Broker | None = None
    explore: float = 0.0
    stream_store: Path | None = None

    @contextmanager
    def running(
        self, queries: "QueryTexts", shared: Shared | None = None, process: str | None = None
    ) -> "Iterator[tuple[App, PolledSource]]":
        """Give the app and what it serves, while new versions and clicks are taken up.

        Parameters
        ----------
        shared
            Where other processes write what they read from the store and the topic; None reads both here.
        process
            Names this process where several answer.
        """
        from server.serving.app import create_app
        from server.serving.keys import KeyFile
        from server.serving.reload import ReloadingSource
        from server.serving.shared import MappedSource
        from server.serving.slate_log import SlateLog

        keys = None if self.keys is None else KeyFile(self.keys)
        if keys is not None:
            keys.keys()  # a file that cannot be read shows now, not with the first request
        source: PolledSource
        if shared is None:
            source = ReloadingSource(self.store, self.reload_every, keep=_kept_here(), stream_store=self.stream_store)
        else:
            source = MappedSource(shared.bundle, self.store, warm=WarmUp())
        with ExitStack() as stack:
            stack.enter_context(source.polling())
            live: RecentEvents | None = None
            events = None
            if self.broker is not None:
                from stream.writer import EventWriter

                live = stack.enter_context(_clicks(self.broker, source, shared))
                events = stack.enter_context(EventWriter(self.broker.log(), self.broker.topic))
            app = create_app(
                source,
                queries,
                limits=self.limits,
                keys=keys,
                origins=self.origins,
                events=events,
                live=live,
                slates=None if self.slate_log is None else SlateLog(self.slate_log),
                process=process,
                explore=self.explore,
            )
            yield app, source

    def tail(self, source: "BundleSource", shared: Shared) -> "Tail":
        """Return what reads the topic for all processes; there must be a broker, and a bundle.

        Raises
        ------
        OSError
            When there is no room for what it notes.
        """
        from stream.click_table import ClickTable
        from stream.tail import Tail

        assert self.broker is not None  # noqa: S101  the caller has looked
        notes = ClickTable(shared.clicks, source.bundle().items.index)
        return Tail(self.broker.log(), self.broker.topic, lambda: _offsets_of(source), notes)


@contextmanager
def _clicks(broker: Broker, source: "BundleSource", shared: Shared | None) -> Iterator[RecentEvents]:
    """Give what tells of the clicks since the snapshot."""
    if shared is not None:
        from stream.click_table import ClickReader

        yield ClickReader(shared.clicks, broker.topic, lambda: source.bundle().items.ids)
        return
    from stream.live_users import LiveUsers

    live = LiveUsers(broker.log(), broker.topic, lambda: _offsets_of(source))
    with live.following():
        yield live


@contextmanager
def warming(queries: "QueryTexts", source: "BundleSource") -> Iterator[None]:
    """Load the text encoder in a thread, as soon as there is a model, and leave the block as it is left.

    Loading takes longer than all else of a start, and a question without a text need not wait for it. One with a text
    does. What cannot be loaded is logged, and questions with a text are refused.
    """
    stop = threading.Event()

    def warm() -> None:
        while not stop.is_set():
            try:
                queries.warm(source.bundle().model)
            except NoModel:
                stop.wait(WAIT_S)
                continue
            except AnabranchError as error:
                log.warning("questions with a text are refused: %s", error)
            return

    threading.Thread(target=warm, name="anabranch-warm", daemon=True).start()
    try:
        yield
    finally:
        stop.set()


class WarmUp:
    """Has all compiled that a bundle's answers need before anybody waits for one.

    One bundle of a kind is enough: what the next ones say lies in the page cache, since it was written just now, and a
    question that nobody waits for would hold up those that somebody does.
    """

    def __init__(self) -> None:
        self._warm: set[tuple[bool, bool]] = set()

    def __call__(self, bundle: "Bundle") -> None:
        """Answer a question, and one with a text, unless a bundle of this kind was asked before."""
        from server.serving.recommend import Question, recommend

        stream = bundle.stream
        kind = stream is not None, stream is not None and stream.snapshot.blend is not None
        if not len(bundle.items) or kind in self._warm:
            return
        first = bundle.items.ids.at([0])[0]
        recommend(bundle, Question(history=(first,), k=1, explain=True), None, "")
        recommend(bundle, Question(query="any", k=1), bundle.model.item_vectors[0], "")
        self._warm.add(kind)


def _kept_here() -> "Callable[[Bundle], Bundle]":
    """Return what gives a bundle as one process serves it."""
    from server.serving.bundle import in_8_bits

    warm = WarmUp()

    def keep(bundle: "Bundle") -> "Bundle":
        bundle = in_8_bits(bundle)
        warm(bundle)
        return bundle

    return keep


def _offsets_of(source: "BundleSource") -> Mapping[str, Mapping[str, int]]:
    """Return how far the served snapshot has read; nothing before the first."""
    try:
        stream = source.bundle().stream
    except NoModel:
        return {}
    return {} if stream is None else stream.snapshot.offsets
