"""Takes up new versions while answering: polls the pointers, builds the new bundle aside, moves one reference."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from common.errors import AnabranchError, NoModel, StoreUnreachable
from server.registry import CURRENT, Registry
from server.serving.bundle import (
    Bundle,
    Model,
    Stream,
    checked_stream_store,
    load_model,
    load_stream,
    published,
    served_snapshots,
    snapshot_name,
)
from server.serving.polling import polled
from server.serving.tables import ItemTable

log = logging.getLogger(__name__)
RETRY_SECONDS = 30.0
"""A version that could not be loaded is tried again after this long; re-hashing it at every poll would cost a core."""

Part = TypeVar("Part", Model, Stream)


@dataclass(frozen=True, slots=True)
class _Refused:
    name: str
    at: float


class FixedSource:
    """Serves one bundle for ever.

    Parameters
    ----------
    registry
        Where the list of versions comes from.
    bundle
        What is served.
    """

    def __init__(self, registry: Registry, bundle: Bundle) -> None:
        self._registry, self._bundle = registry, bundle

    def bundle(self) -> Bundle:
        """Return the bundle."""
        return self._bundle

    def models(self) -> tuple[tuple[str, ...], str | None]:
        """Return the names of all versions, in order, and of the current one."""
        return self._registry.names(), self._registry.pointer(CURRENT)


class ReloadingSource:
    """Serves what the store's pointers name, without a pause.

    Model and snapshot are taken up apart from each other: a damaged one is logged, and the one before it stays.

    Parameters
    ----------
    root
        The store, a folder or an address; it may still lack a model, or be missing altogether.
    every
        Seconds between two looks at the pointers (two small files).
    monotonic
        Seconds that never go back.
    keep
        Given each new bundle before it is served; what it returns is served: the same, kept elsewhere.
    mapped
        Whether `keep` copies, so that what it is given may lie in the store's own files.
    stream_store
        Folder of another store whose snapshots of the stream are served; None takes the store's own, which a remote one
        has not.

    Raises
    ------
    StoreError
        When there is no such folder.
    """

    def __init__(
        self,
        root: Path | str,
        every: float = 2.0,
        monotonic: Callable[[], float] = time.monotonic,
        keep: Callable[[Bundle], Bundle] = lambda bundle: bundle,
        mapped: bool = False,
        stream_store: Path | None = None,
    ) -> None:
        self._root, self._every, self._monotonic, self._keep = root, every, monotonic, keep
        self._mapped, self._stream_store = mapped, checked_stream_store(stream_store)
        self._registry: Registry | None = None
        self._items: ItemTable | None = None
        self._bundle: Bundle | None = None
        self._refused: dict[str, _Refused] = {}
        self._refreshing = threading.Lock()

    def bundle(self) -> Bundle:
        """Return the newest whole bundle.

        Raises
        ------
        NoModel
            Before the first one.
        """
        return published(self._bundle, self._root)

    def models(self) -> tuple[tuple[str, ...], str | None]:
        """Return the names of all versions, in order, and of the current one."""
        registry = self._registry
        return ((), None) if registry is None else (registry.names(), registry.pointer(CURRENT))

    def refresh(self) -> bool:
        """Look at the pointers once and take up what is new; return whether anything was.

        Raises
        ------
        StoreMismatch, ArtifactCorrupt
            Only when the store itself cannot be opened; a version that cannot be read is logged instead.
        """
        with self._refreshing:
            registry = self._opened()
            if registry is None or self._items is None:
                return False
            old, folder = self._bundle, served_snapshots(registry, self._stream_store)
            model = self._take(
                "model",
                lambda: registry.pointer(CURRENT),
                None if old is None else old.model,
                lambda name: load_model(registry, name, mapped=self._mapped),
            )
            if model is None:
                return False
            stream = self._take(
                "snapshot",
                lambda: None if folder is None else snapshot_name(folder),
                None if old is None else old.stream,
                # a name comes from a folder only
                lambda name: load_stream(folder or Path(), name, registry.catalogue, mapped=self._mapped),
            )
            if old is not None and model is old.model and stream is old.stream:
                return False
            # the one write that readers see
            self._bundle = self._keep(Bundle(self._items, model, stream))
            return True

    @contextmanager
    def polling(self) -> Iterator[None]:
        """Refresh now, then in a thread until the block is left."""
        self.refresh()
        with polled(self.refresh, self._every):
            yield

    def _opened(self) -> Registry | None:
        if self._registry is None:
            try:
                registry = Registry.open(self._root)
            except NoModel:
                return None
            self._items = ItemTable.of(registry.catalogue)
            self._registry = registry
        return self._registry

    def _take(
        self, kind: str, find: Callable[[], str | None], held: Part | None, load: Callable[[str], Part]
    ) -> Part | None:
        """Return what the pointer names, or what is held when that is the same or cannot be read."""
        name: str | None = None
        try:
            name = find()
            refused = self._refused.get(kind)
            if name is None or (held is not None and held.manifest.version == name):
                return held
            if refused is not None and refused.name == name and self._monotonic() < refused.at + RETRY_SECONDS:
                return held
            part = load(name)
        except (AnabranchError, OSError) as error:
            kept = "nothing is served yet" if held is None else f"{held.manifest.version} stays"
            log.warning("%s %s is not taken up, %s: %s", kind, name, kept, error)
            # a store that did not answer says nothing of the version, so the next look asks again
            if not isinstance(error, StoreUnreachable):
                self._refused[kind] = _Refused(name or "", self._monotonic())
            return held
        self._refused.pop(kind, None)
        log.info("%s %s is served now", kind, part.manifest.version)
        return part
