"""The streaming learner's state as serving reads it: frozen arrays, no learner."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from common.blends import BlendMembers, read_blend
from common.errors import ArtifactCorrupt
from common.manifests import Manifest, TensorSpec
from common.store import array_parts, map_arrays, publish_folder, read_manifest, unpack_arrays

ARRAYS_NAME = "arrays.safetensors"
IDS_NAME = "ids.json"
KIND = "mf-snapshot"
BLEND_KIND = "blend-snapshot"


@dataclass(frozen=True, slots=True)
class MFSnapshot:
    """Factors, biases, counts and histories at one point of the stream, and the rest of the blend where there is one.

    With h_0, h_1, ... a user's items newest first, the user's factors are
    ``u = sum_d exp(-d / recency) V[h_d] / sqrt(sum_d exp(-d / recency))`` over the last `window` items, and the score
    of item k is ``bias[k] + u . Q[k]``.

    Parameters
    ----------
    item_ids
        Row order of all item arrays, n in number.
    history_factors
        V, float32 [n, k]: what an item says about a user who clicked it.
    item_factors
        Q, float32 [n, k]: what is scored.
    item_bias
        float32 [n].
    item_counts
        Positive events an item, int64 [n]; 0 means the row still is its prior.
    user_ids
        u in number.
    history_starts, history_items
        int64 [u + 1] and int32 [h]: user j's recent positive items, oldest first, are
        ``history_items[history_starts[j]:history_starts[j + 1]]``.
    seen_starts, seen_items
        The same for every item the user ever liked, each once, sorted.
    recency
        Decay of the history, in events.
    window
        How many of the newest items count.
    events
        Events applied so far.
    offsets
        Topic to partition (as text) to the next offset to read.
    blend
        The other members, where the learner is a blend: then the score above is that of one member only.
    """

    item_ids: Sequence[str]
    history_factors: np.ndarray
    item_factors: np.ndarray
    item_bias: np.ndarray
    item_counts: np.ndarray
    user_ids: Sequence[str]
    history_starts: np.ndarray
    history_items: np.ndarray
    seen_starts: np.ndarray
    seen_items: np.ndarray
    recency: float
    window: int
    events: int
    offsets: dict[str, dict[str, int]]
    blend: BlendMembers | None = None

    def user_factors(self, history: np.ndarray) -> np.ndarray:
        """Return u, float32 [k], from item rows given oldest first; zeros for an empty history."""
        newest = np.asarray(history, dtype=np.int64)[::-1][: self.window]
        if not len(newest):
            return np.zeros(self.item_factors.shape[1], dtype=np.float32)
        weights = np.exp(-np.arange(len(newest), dtype=np.float32) / np.float32(self.recency))
        folded: np.ndarray = (weights @ self.history_factors[newest]) / np.sqrt(weights.sum())
        return folded

    def scores(self, history: np.ndarray) -> np.ndarray:
        """Return the score of every item, float32 [n], for a history of item rows given oldest first."""
        scored: np.ndarray = self.item_bias + self.item_factors @ self.user_factors(history)
        return scored


ARRAYS = (
    "history_factors",
    "item_factors",
    "item_bias",
    "item_counts",
    "history_starts",
    "history_items",
    "seen_starts",
    "seen_items",
)


class _Ids(msgspec.Struct, frozen=True):
    items: tuple[str, ...]
    users: tuple[str, ...]


def arrays_of(snapshot: MFSnapshot) -> dict[str, np.ndarray]:
    """Return all arrays of a snapshot, the blend's included, by the names that they have in its folder."""
    blend = {} if snapshot.blend is None else snapshot.blend.arrays()
    return {name: getattr(snapshot, name) for name in ARRAYS} | dict(blend)


def write_snapshot(folder: Path, snapshot: MFSnapshot, created_at: int) -> Manifest:
    """Publish the snapshot as an immutable folder; see `common.store.publish_folder`."""
    blend, arrays = snapshot.blend, arrays_of(snapshot)
    manifest = Manifest(
        kind=KIND if blend is None else BLEND_KIND,
        version=folder.name,
        parents=(),
        created_at=created_at,
        tensors={name: TensorSpec(array.shape, array.dtype.name) for name, array in arrays.items()},
        details={
            "recency": snapshot.recency,
            "window": snapshot.window,
            "events": snapshot.events,
            "offsets": snapshot.offsets,
            **({} if blend is None else {"blend": blend.details()}),
        },
    )
    ids = msgspec.json.encode(_Ids(tuple(snapshot.item_ids), tuple(snapshot.user_ids)))
    return publish_folder(folder, {ARRAYS_NAME: array_parts(arrays), IDS_NAME: ids}, manifest)


def read_snapshot(folder: Path, *, mapped: bool = False) -> MFSnapshot:
    """Read a snapshot back, checked against its manifest.

    `mapped`: whether its arrays are left in the file, read only, for a caller that soon lets go of them.

    Raises
    ------
    ArtifactCorrupt
        When a file is missing, a tensor has another shape or dtype, naming it, or it is no snapshot that is known.
    """
    manifest = read_manifest(folder)
    if manifest.kind not in (KIND, BLEND_KIND):
        raise ArtifactCorrupt(
            f"{folder} holds a {manifest.kind!r}",
            expected=f"{KIND!r} or {BLEND_KIND!r}",
            mend="use the program version that wrote it",
        )
    try:
        path = folder / ARRAYS_NAME
        arrays = map_arrays(path) if mapped else unpack_arrays(path.read_bytes(), str(path))
        ids = msgspec.json.decode((folder / IDS_NAME).read_bytes(), type=_Ids)
    except (OSError, msgspec.DecodeError, msgspec.ValidationError) as error:
        raise ArtifactCorrupt(f"{folder} is not a whole snapshot: {error}") from error
    for name, spec in manifest.tensors.items():
        found = arrays.get(name)
        if found is None or (found.shape, found.dtype.name) != (spec.shape, spec.dtype):
            shown = "missing" if found is None else f"{found.dtype.name} {found.shape}"
            raise ArtifactCorrupt(f"tensor {name!r} of {folder} is {shown}", expected=f"{spec.dtype} {spec.shape}")
    details = manifest.details
    return MFSnapshot(
        item_ids=ids.items,
        user_ids=ids.users,
        recency=float(details["recency"]),
        window=int(details["window"]),
        events=int(details["events"]),
        offsets={str(topic): dict(parts) for topic, parts in details["offsets"].items()},
        **{name: arrays[name] for name in ARRAYS},
        blend=read_blend(arrays, details.get("blend", {}), str(folder)) if manifest.kind == BLEND_KIND else None,
    )
