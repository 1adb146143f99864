"""What is served: one adapter version and one snapshot of the stream, frozen together, in catalogue order."""

from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from common.errors import ArtifactCorrupt, NoModel, StoreError, StoreMismatch
from common.items import Catalogue
from common.manifests import Manifest
from common.snapshots import ARRAYS_NAME, MFSnapshot, read_snapshot
from common.store import verify_folder
from server.artifact import ITEM_ROWS
from server.registry import CURRENT, Registry
from server.serving.alignment import align
from server.serving.beside import checked_beside
from server.serving.coarse import CoarseRows, coarse_of
from server.serving.item_rows import ItemRows
from server.serving.shortlist import Product
from server.serving.sums import ItemSums
from server.serving.tables import IdTable, ItemTable

ADAPTER_FILE = "adapter/adapter_model.safetensors"
VECTORS_FILE = "item_vectors.safetensors"
VECTORS_TENSOR = "item_vectors"
SNAPSHOT_POINTER = "current"
_UNIT_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Model:
    """One adapter version: what encodes a query, and what it is compared with.

    Parameters
    ----------
    manifest
        Of the version.
    adapter
        Tensors of the PEFT file.
    item_vectors
        float32 [n, d], unit rows, computed with this very adapter.
    given
        The sums, where they are there already.
    coarse
        The vectors in 8 bits, where a service has them.
    lies_in
        The file that the vectors are mapped from; None where they are in memory.
    beside_lies_in
        The file that `given` and `coarse` are mapped from, likewise.
    sums
        Of the vectors, estimated where there are very many.
    """

    manifest: Manifest
    adapter: Mapping[str, np.ndarray]
    item_vectors: np.ndarray
    given: InitVar[ItemSums | None] = None
    coarse: CoarseRows | None = None
    lies_in: Path | None = None
    beside_lies_in: Path | None = None
    sums: ItemSums = field(init=False)

    def __post_init__(self, given: ItemSums | None) -> None:
        # object.__setattr__: derived from a frozen field, once
        # a spread that is half a percent off is nothing that anybody could see in an answer
        object.__setattr__(self, "sums", given or ItemSums.estimated(self.item_vectors))

    def product(self, vector: np.ndarray) -> Product:
        """Return all items' likeness to a unit vector, float32 [d]."""
        return Product(self.item_vectors, vector, self.coarse)

    def in_8_bits(self) -> "Model":
        """Return the model with its vectors in 8 bits beside them, where there are many."""
        coarse = self.coarse or coarse_of(self.item_vectors)
        return self if coarse is self.coarse else replace(self, given=self.sums, coarse=coarse)


@dataclass(frozen=True, slots=True)
class Stream:
    """One snapshot of the click learner, its rows in catalogue order.

    Parameters
    ----------
    manifest
        Of the snapshot.
    snapshot
        Aligned by `align`.
    users
        Its `user_ids`, found by id.
    sums
        Of its item rows, biases, and what its blend says of popularity.
    given
        The sums, where they are there already.
    coarse
        The item rows in 8 bits, where a service has them.
    lies_in
        The file that the snapshot's arrays are mapped from, as they are; None where they are in memory.
    still
        What the compiled part of an answer reads.
    """

    manifest: Manifest
    snapshot: MFSnapshot
    given: InitVar[ItemSums | None] = None
    coarse: CoarseRows | None = None
    lies_in: Path | None = None
    users: IdTable = field(init=False)
    sums: ItemSums = field(init=False)
    still: ItemRows = field(init=False)

    def __post_init__(self, given: ItemSums | None) -> None:
        # object.__setattr__: all are derived from a frozen field, once, and the ids are not kept twice
        ids, blend = self.snapshot.user_ids, self.snapshot.blend
        users = ids if isinstance(ids, IdTable) else IdTable.of(ids)
        more = () if blend is None else (blend.popularity,)
        sums = given or ItemSums.of(self.snapshot.item_factors, self.snapshot.item_bias, *more)
        object.__setattr__(self, "sums", sums)
        object.__setattr__(self, "users", users)
        object.__setattr__(self, "snapshot", replace(self.snapshot, user_ids=users))
        object.__setattr__(self, "still", ItemRows.of(self.snapshot, sums, self.coarse))

    def in_8_bits(self) -> "Stream":
        """Return the snapshot with its item rows in 8 bits beside them, where there are many."""
        coarse = self.coarse or coarse_of(self.snapshot.item_factors)
        return self if coarse is self.coarse else replace(self, given=self.sums, coarse=coarse)


@dataclass(frozen=True, slots=True)
class Person:
    """What is known of a user.

    Parameters
    ----------
    row
        In the snapshot; None for a user that the stream does not know, of whom all else is empty.
    history
        Rows of the recent likes, oldest first, int32.
    seen
        Rows of all items ever liked, int32.
    tried
        Rows tried of late, oldest first, where the learner tells them, int32.
    likes
        How many likes count towards the length of the history.
    """

    row: int | None
    history: np.ndarray
    seen: np.ndarray
    tried: np.ndarray
    likes: int

    @property
    def known(self) -> bool:
        """Whether the stream knows the user."""
        return self.row is not None


_NO_ROWS, _NO_HABIT = np.empty(0, dtype=np.int32), np.empty(0, dtype=np.float32)
NOBODY = Person(None, _NO_ROWS, _NO_ROWS, _NO_ROWS, 0)


@dataclass(frozen=True, slots=True)
class Bundle:
    """Everything one answer is made of; a reader holds one and sees no change.

    Parameters
    ----------
    items
        n, in catalogue order.
    model
        The adapter version with its item vectors.
    stream
        The click learner's snapshot, or None before the first.
    """

    items: ItemTable
    model: Model
    stream: Stream | None

    @property
    def version(self) -> str:
        """The model version that every answer names."""
        return self.model.manifest.version

    @property
    def counts(self) -> np.ndarray:
        """Positive events an item, int64 [n]; all 0 before the first snapshot."""
        if self.stream is None:
            return np.zeros(len(self.items), dtype=np.int64)
        return self.stream.snapshot.item_counts

    def person(self, user_id: str | None) -> Person:
        """Return what the stream knows of a user."""
        row = None if self.stream is None or user_id is None else self.stream.users.find(user_id)
        if self.stream is None or row is None:
            return NOBODY
        snapshot, blend = self.stream.snapshot, self.stream.snapshot.blend
        begin, end = snapshot.history_starts[row : row + 2].tolist()
        history, likes, tried = snapshot.history_items[begin:end], end - begin, NOBODY.tried
        begin, end = snapshot.seen_starts[row : row + 2].tolist()
        seen = snapshot.seen_items[begin:end]
        if blend is not None:
            begin, end = blend.tried_starts[row : row + 2].tolist()
            likes, tried = int(blend.positives[row]), blend.tried_items[begin:end]
        return Person(row, history, seen, tried, likes)

    def opens_visit(self, person: Person, at: int | None) -> bool:
        """Return whether at that time, in milliseconds, somebody comes for another visit than that of the snapshot."""
        blend = None if self.stream is None else self.stream.snapshot.blend
        return person.row is not None and blend is not None and blend.opens_visit(person.row, at)

    def habit_of(self, person: Person, *, opens: bool = False) -> np.ndarray:
        """Return what habit adds to the score of each item of `seen`, float32; empty where there are no habits.

        `opens`: where the question opens a visit.
        """
        blend = None if self.stream is None else self.stream.snapshot.blend
        if self.stream is None or person.row is None or blend is None or not len(blend.habit):
            return _NO_HABIT
        starts = self.stream.snapshot.seen_starts
        habit = blend.opening_habit if opens else blend.habit
        return habit[starts[person.row] : starts[person.row + 1]]


def in_8_bits(bundle: Bundle) -> Bundle:
    """Return the bundle with what a service reads first for each answer; see `server.serving.coarse`."""
    stream = None if bundle.stream is None else bundle.stream.in_8_bits()
    return Bundle(bundle.items, bundle.model.in_8_bits(), stream)


class BundleSource(Protocol):
    """Where an edge finds what to serve."""

    def bundle(self) -> Bundle:
        """Return the newest whole bundle; raise `NoModel` before the first."""
        ...

    def models(self) -> tuple[tuple[str, ...], str | None]:
        """Return the names of all versions, in order, and of the current one."""
        ...


def published(bundle: Bundle | None, root: Path | str) -> Bundle:
    """Return the bundle of a store that has one.

    Raises
    ------
    NoModel
        Before the first one.
    """
    if bundle is None:
        raise NoModel(
            f"{root} holds no current model",
            expected="a published version",
            mend=f"anabranch simulate --store {root}",
        )
    return bundle


def load_model(registry: Registry, version: str = CURRENT, *, mapped: bool = False) -> Model:
    """Read one adapter version, every file of it checked against its hash, those that are not served too.

    `mapped`: whether its vectors may be left in the store's file; see `Registry.arrays`.

    Raises
    ------
    NoModel
        When nothing is published yet.
    StoreMismatch
        When the item vectors do not fit the catalogue.
    ArtifactCorrupt
        When a file is not what the manifest says, or what lies beside the vectors is not of them.
    """
    wanted = registry.current().version if version == CURRENT else version
    manifest = registry.verify(wanted, but=(VECTORS_FILE, ADAPTER_FILE, ITEM_ROWS))
    # from here on by name: `current` may move between two reads
    name = manifest.version
    vectors, adapter = load_vectors(registry, name, mapped=mapped), registry.arrays(name, ADAPTER_FILE)
    folder = registry.folder(name) if mapped and registry.is_local else None
    lies_in = None if folder is None else folder / VECTORS_FILE
    if ITEM_ROWS not in manifest.files:
        return Model(manifest, adapter, vectors, lies_in=lies_in)
    given = registry.arrays(name, ITEM_ROWS, mapped=mapped)
    beside = checked_beside(given, vectors, f"{ITEM_ROWS} of version {name!r} of {registry.address}")
    also = None if folder is None else folder / ITEM_ROWS
    return Model(manifest, adapter, vectors, beside.sums, beside.coarse, lies_in, also)


def load_vectors(registry: Registry, name: str, *, mapped: bool = False) -> np.ndarray:
    """Read what one adapter version says of the items' texts, float32 [n, d]; errors as for `load_model`."""
    vectors = registry.arrays(name, VECTORS_FILE, mapped=mapped).get(VECTORS_TENSOR)
    where = f"version {name!r} of {registry.address}"
    if vectors is None or vectors.ndim != 2 or vectors.shape[0] != len(registry.catalogue):
        shown = "no item vectors" if vectors is None else f"item vectors of shape {vectors.shape}"
        raise StoreMismatch(
            f"{where} has {shown}",
            expected=f"one row for each of {len(registry.catalogue)} items",
            consequence="the version is not served",
            mend="roll back to another version",
        )
    norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    if vectors.dtype != np.float32 or not np.all(np.abs(norms - 1.0) <= _UNIT_TOLERANCE):
        raise ArtifactCorrupt(
            f"{where} has {vectors.dtype.name} item vectors with norms from {norms.min():.3g} to {norms.max():.3g}",
            expected="float32 rows of length 1",
            consequence="the version is not served",
            mend="roll back to another version",
        )
    return vectors


def snapshots_folder(root: Path) -> Path:
    """Return where the stream publishes its snapshots in a store."""
    return root / "stream" / "snapshots"


def checked_stream_store(stream_store: Path | None) -> Path | None:
    """Return the folder of the store that the click learner works in, where one is given.

    Raises
    ------
    StoreError
        When it is no folder: what is only mistyped would be served without clicks, and nobody told.
    """
    if stream_store is not None and not stream_store.is_dir():
        raise StoreError(
            f"no stream store at {stream_store}",
            expected="the folder that `anabranch stream learn --store` is given",
            consequence="nothing is served",
        )
    return stream_store


def served_snapshots(registry: Registry, stream_store: Path | None) -> Path | None:
    """Return where the snapshots lie that are served with a store's models; None where nobody says.

    `stream_store`: see `checked_stream_store`; None takes the models' own, unless that is remote.
    """
    if stream_store is not None:
        return snapshots_folder(stream_store)
    return snapshots_folder(registry.root) if registry.is_local else None


def snapshot_name(folder: Path) -> str | None:
    """Return the name that the snapshots' pointer file holds, or None when there is none yet."""
    try:
        return (folder / SNAPSHOT_POINTER).read_text(encoding="utf-8").strip() or None
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactCorrupt(
            f"pointer {folder / SNAPSHOT_POINTER} cannot be read: {error}", mend="anabranch stream learn writes it anew"
        ) from error


def load_stream(folder: Path, name: str, catalogue: Catalogue, *, mapped: bool = False) -> Stream:
    """Read one snapshot, hashes checked, and align it to the catalogue.

    `mapped`: whether its arrays may be left in their file; see `common.snapshots.read_snapshot`.

    Raises
    ------
    ArtifactCorrupt
        When it is damaged or holds a number that is not finite.
    """
    manifest = verify_folder(folder / name)
    snapshot = read_snapshot(folder / name, mapped=mapped)
    floats = {name: getattr(snapshot, name) for name in ("history_factors", "item_factors", "item_bias")}
    if snapshot.blend is not None:
        floats |= {name: array for name, array in snapshot.blend.arrays().items() if array.dtype.kind == "f"}
    for tensor, array in floats.items():
        if not np.isfinite(array).all():
            raise ArtifactCorrupt(
                f"tensor {tensor!r} of {folder / name} is not finite",
                expected="finite numbers",
                consequence="the snapshot is not served",
                mend="restart the stream learner from an older checkpoint",
            )
    aligned = align(snapshot, catalogue)
    return Stream(manifest, aligned, lies_in=folder / name / ARRAYS_NAME if mapped and aligned is snapshot else None)


def load_bundle(registry: Registry, version: str = CURRENT, stream_store: Path | None = None) -> Bundle:
    """Read a model version and the stream's newest snapshot, if there is one.

    Parameters
    ----------
    version
        A version or pointer name.
    stream_store
        Another store, whose snapshot is read; see `checked_stream_store`.
    """
    folder = served_snapshots(registry, checked_stream_store(stream_store))
    model = load_model(registry, version)
    name = None if folder is None else snapshot_name(folder)
    stream = None if folder is None or name is None else load_stream(folder, name, registry.catalogue)
    return Bundle(ItemTable.of(registry.catalogue), model, stream)
