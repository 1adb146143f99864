"""One bundle for several processes: one reads and checks the store and writes the bundle out, the others map it.

So hashing, decoding and sorting happen once a machine and beside the requests, a new version costs a serving process a
few system calls, and the arrays lie in memory once, in the page cache. What the store holds as it is served is not
copied: versions and snapshots never change, so their files get a second name here (ADR 0006).

The folder is the service's own and lasts as long as it. Its files are never changed; `POINTER` names those that belong
together and is replaced in one step. What no reader can need any more is removed.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np

from common.blends import read_blend
from common.errors import ArtifactCorrupt, NoModel
from common.manifests import Manifest, decode_manifest, encode_manifest
from common.snapshots import ARRAYS, MFSnapshot
from common.store import array_parts, map_arrays
from server.registry import CURRENT
from server.serving.beside import COARSE, SUMS, Beside, named, part_of
from server.serving.bundle import VECTORS_TENSOR, Bundle, Model, Stream, in_8_bits, published
from server.serving.polling import polled
from server.serving.tables import ItemTable, ids_from
from server.storage import storage_at

log = logging.getLogger(__name__)
POINTER = "bundle.json"
EVERY_S = 0.1
"""A look is one system call, so a new bundle is served by all processes within this time."""
_MADE, _GIVEN, _BESIDE = ".safetensors", ".given.safetensors", ".beside.safetensors"
"""Ends of the names of what was worked out here, and of what the store holds as it is served: rows, and what lies
beside them."""
_ADAPTER, _USERS = "adapter.", "users"
_DERIVED = (SUMS, COARSE)
_OURS = (_ADAPTER, f"{_USERS}.", *_DERIVED)


class _Pointer(msgspec.Struct, frozen=True):
    """The names of the files of one bundle."""

    items: str
    model: str
    stream: str | None


class BundleFolder:
    """Writes bundles out.

    Parameters
    ----------
    folder
        Exists, and nobody else writes to it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0
        self._written: dict[str, tuple[object, str]] = {}
        self._last: tuple[str, ...] = ()

    def write(self, bundle: Bundle) -> Bundle:
        """Let readers have a bundle; return the same, mapped, so that what it was read into can be let go."""
        bundle = in_8_bits(bundle)
        items = self._name("items", bundle.items, bundle.items.arrays)
        model = self._name("model", bundle.model, lambda: _model_arrays(bundle.model))
        stream, name = bundle.stream, None
        if stream is not None:
            name = self._name("stream", stream, lambda: _stream_arrays(stream))
        self._replace(POINTER, [msgspec.json.encode(_Pointer(items, model, name))])
        mapped = map_bundle(self._folder)
        # what comes back with the next bundle is what is handed out here; the items are asked for once
        kept = {"items": bundle.items, "model": mapped.model, "stream": mapped.stream}
        self._written = {kind: (kept[kind], name) for kind, (_, name) in self._written.items()}
        self._sweep(items, model, *([] if name is None else [name]))
        return mapped

    def _name(self, kind: str, part: ItemTable | Model | Stream, arrays: Callable[[], Mapping[str, np.ndarray]]) -> str:
        """Return the name of a part's files, which are written unless they were."""
        held, name = self._written.get(kind, (None, ""))
        if held is part:
            return name
        self._count += 1
        name, told = f"{kind}-{self._count}", arrays()
        if not isinstance(part, ItemTable):
            self._replace(f"{name}.json", [encode_manifest(part.manifest)])
            self._link(part.lies_in, f"{name}{_GIVEN}")
            self._link(part.beside_lies_in if isinstance(part, Model) else None, f"{name}{_BESIDE}")
            there = _linked(self._folder, name)
            told = {each: array for each, array in told.items() if each not in there}
        self._replace(f"{name}{_MADE}", array_parts(told))
        self._written[kind] = (part, name)
        return name

    def _link(self, path: Path | None, name: str) -> None:
        """Give a file another name here, if that can be: it stays then when it goes where it was."""
        if path is None:
            return
        try:
            os.link(path, self._folder / name)
        except OSError as error:  # it lies on another disk, for one
            log.debug("%s is copied: %s", path, error)

    def _replace(self, name: str, parts: Sequence[bytes | memoryview]) -> None:
        aside = self._folder / f".{name}"
        # not synced: after a power cut there is no service that could read it
        with aside.open("wb") as file:
            file.writelines(parts)
        aside.replace(self._folder / name)

    def _sweep(self, *names: str) -> None:
        """Remove all but this bundle and the one before, which somebody may be about to map."""
        kept = {*names, *self._last}
        for path in self._folder.iterdir():
            if path.name != POINTER and path.name.partition(".")[0] not in kept:
                path.unlink(missing_ok=True)
        self._last = names


def _model_arrays(model: Model) -> dict[str, np.ndarray]:
    beside = Beside(model.sums, model.coarse).arrays()
    return {**named(_ADAPTER, model.adapter), VECTORS_TENSOR: model.item_vectors, **beside}


def _stream_arrays(stream: Stream) -> dict[str, np.ndarray]:
    snapshot = stream.snapshot
    users = named(f"{_USERS}.", stream.users.arrays())
    blend = {} if snapshot.blend is None else snapshot.blend.arrays()
    beside = Beside(stream.sums, stream.coarse).arrays()
    return {**{name: getattr(snapshot, name) for name in ARRAYS}, **users, **blend, **beside}


def map_bundle(folder: Path, held: Bundle | None = None) -> Bundle:
    """Map the bundle that a `BundleFolder` wrote last; parts that `held` has already are taken from it.

    Raises
    ------
    NoModel
        Before the first one.
    ArtifactCorrupt, OSError
        When a file is damaged or gone.
    """
    try:
        pointer = msgspec.json.decode((folder / POINTER).read_bytes(), type=_Pointer)
    except FileNotFoundError as error:
        raise NoModel(f"{folder} holds no bundle yet", expected="one, once the store holds a model") from error
    items = held.items if held is not None else ItemTable.from_arrays(_arrays(folder, pointer.items))
    model = _manifest(folder, pointer.model)
    if held is not None and held.model.manifest == model:
        served = held.model
    else:
        arrays = _arrays(folder, pointer.model)
        beside = Beside.from_arrays(arrays)
        served = Model(model, part_of(_ADAPTER, arrays), arrays[VECTORS_TENSOR], beside.sums, beside.coarse)
    if pointer.stream is None:
        return Bundle(items, served, None)
    stream = _manifest(folder, pointer.stream)
    if held is not None and held.stream is not None and held.stream.manifest == stream:
        return Bundle(items, served, held.stream)
    return Bundle(items, served, _stream(stream, _arrays(folder, pointer.stream), items))


def _arrays(folder: Path, name: str) -> dict[str, np.ndarray]:
    return _linked(folder, name) | map_arrays(folder / f"{name}{_MADE}")


def _linked(folder: Path, name: str) -> dict[str, np.ndarray]:
    """Map what the store holds of a part; the one file cannot say what the other is for."""
    given, beside = folder / f"{name}{_GIVEN}", folder / f"{name}{_BESIDE}"
    rows = map_arrays(given) if given.exists() else {}
    more = map_arrays(beside) if beside.exists() else {}
    return {each: array for each, array in rows.items() if not each.startswith(_OURS)} | {
        each: array for each, array in more.items() if each.startswith(_DERIVED)
    }


def _manifest(folder: Path, name: str) -> Manifest:
    path = folder / f"{name}.json"
    return decode_manifest(path.read_bytes(), str(path))


def _stream(manifest: Manifest, arrays: Mapping[str, np.ndarray], items: ItemTable) -> Stream:
    details = manifest.details
    # whoever wrote the file has looked at it
    blend = read_blend(arrays, details["blend"], manifest.version, checked=True) if "blend" in details else None
    snapshot = MFSnapshot(
        item_ids=items.ids,
        user_ids=ids_from(arrays, _USERS),
        recency=float(details["recency"]),
        window=int(details["window"]),
        events=int(details["events"]),
        offsets={str(topic): dict(parts) for topic, parts in details["offsets"].items()},
        **{name: arrays[name] for name in ARRAYS},
        blend=blend,
    )
    beside = Beside.from_arrays(arrays)
    return Stream(manifest, snapshot, beside.sums, beside.coarse)


class MappedSource:
    """Serves the bundle that another process writes to a folder; see `server.serving.bundle.BundleSource`.

    Parameters
    ----------
    folder
        Where the bundle is.
    root
        The store, asked only for the list of versions.
    warm
        Asked to use a new bundle once before it answers.
    """

    def __init__(self, folder: Path, root: Path | str, warm: Callable[[Bundle], None] = lambda bundle: None) -> None:
        self._folder, self._root, self._warm = folder, root, warm
        self._bundle: Bundle | None = None
        self._seen: tuple[int, int] | None = None
        self._complained: tuple[int, int] | None = None

    def bundle(self) -> Bundle:
        """Return the newest whole bundle.

        Raises
        ------
        NoModel
            Before the first one.
        """
        return published(self._bundle, self._root)

    @property
    def has_bundle(self) -> bool:
        """Whether there is one."""
        return self._bundle is not None

    def models(self) -> tuple[tuple[str, ...], str | None]:
        """Return the names of all versions, in order, and of the current one."""
        if self._bundle is None:
            return (), None
        storage = storage_at(self._root)
        return storage.versions(), storage.pointer(CURRENT)

    def refresh(self) -> bool:
        """Look once and take up what is new; return whether anything was. What cannot be read is logged."""
        try:
            status = os.stat(self._folder / POINTER)
        except FileNotFoundError:
            return False
        mark = (status.st_mtime_ns, status.st_ino)
        if mark == self._seen:
            return False
        try:
            bundle = map_bundle(self._folder, self._bundle)
            self._warm(bundle)
        except (ArtifactCorrupt, OSError) as error:
            if mark != self._complained:
                log.warning("a new bundle is not taken up yet: %s", error)
            self._complained = mark
            return False
        self._seen = mark
        # the one write that readers see
        self._bundle = bundle
        return True

    @contextmanager
    def polling(self) -> Iterator[None]:
        """Refresh now, then in a thread until the block is left."""
        self.refresh()
        with polled(self.refresh, EVERY_S):
            yield
