"""Small stores whose right answers are known."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from common.ids import rng_for, stable_hash
from common.items import Catalogue, Item
from common.manifests import Manifest
from common.privacy import PrivacyClaim
from common.snapshots import MFSnapshot, write_snapshot
from common.store import pack_arrays, write_atomic
from server.registry import Registry
from server.serving.bundle import ADAPTER_FILE, VECTORS_FILE, VECTORS_TENSOR, snapshots_folder
from server.store_info import StoreInfo

DIMENSION = 28
"""Wide enough that the words of the board do not collide."""
SHA256 = "5" * 64
COLOURS = ("black", "white")
COLD = "19"
"""The one item that nobody clicked; its text has words that no other item has."""


class WordEncoder:
    """A real, linear text encoder: hashed words times the adapter's matrix, unit rows.

    Parameters
    ----------
    sha256
        What it says its base weights are.
    seconds
        How long it takes over a call, as a real one does: time for a swap to come between.
    """

    def __init__(self, sha256: str = SHA256, seconds: float = 0.0) -> None:
        self.sha256, self.seconds = sha256, seconds
        self.loaded = 0
        self._matrix = np.eye(DIMENSION, dtype=np.float32)

    def set_adapter(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.loaded += 1
        self._matrix = arrays["matrix"]

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        words = np.zeros((len(texts), DIMENSION), dtype=np.float32)
        for row, text in enumerate(texts):
            for word in text.lower().split():
                words[row, stable_hash("word", word) % DIMENSION] += 1.0
        time.sleep(self.seconds)
        moved = (words + 1e-3) @ self._matrix
        rows: np.ndarray = (moved / np.linalg.norm(moved, axis=1, keepdims=True)).astype(np.float32)
        return rows


def checker_board(items: int = 20) -> Catalogue:
    """Items "0" to "19": even ones are black squares, odd ones white, the last one is the cold submarine."""
    rows = [
        Item(str(i), f"Square {i}", f"{COLOURS[i % 2]} square of the board", (COLOURS[i % 2],)) for i in range(items)
    ]
    rows[int(COLD)] = Item(COLD, "Submarine", "yellow submarine under water")
    return Catalogue(rows)


def new_store(root: Path | str, catalogue: Catalogue | None = None) -> Registry:
    info = StoreInfo("words", SHA256, "checker-board", 1_000)
    return Registry.create(root, info, catalogue or checker_board())


def version_files(registry: Registry, seed: int) -> dict[str, bytes]:
    """Return a version whose adapter is a random matrix: no version's queries fit another one's vectors."""
    matrix = rng_for("adapter", seed).standard_normal((DIMENSION, DIMENSION)).astype(np.float32)
    encoder = WordEncoder()
    encoder.set_adapter({"matrix": matrix})
    return {
        "adapter/adapter_config.json": b"{}",
        ADAPTER_FILE: pack_arrays({"matrix": matrix}),
        VECTORS_FILE: pack_arrays({VECTORS_TENSOR: encoder.encode(registry.catalogue.texts)}),
    }


def version_manifest(version: str, *, parents: tuple[str, ...] = (), created_at: int = 2_000) -> Manifest:
    return Manifest(
        kind="adapter",
        version=version,
        parents=parents,
        created_at=created_at,
        base_encoder="words",
        base_sha256=SHA256,
        metrics={"global": {"recall@10": 0.25, "ndcg@10": 0.125, "ci95": [0.2, 0.3]}},
        privacy=PrivacyClaim("user", 3.5, 1e-5, 8.0, "prv"),
        details={"round": 3, "strategy": "fedsvd", "seed": 0, "adapter_sha256": "ab"},
    )


def publish(registry: Registry, version: str, seed: int = 0, parents: tuple[str, ...] = ()) -> Manifest:
    """Publish a version and make it current."""
    created_at = 2_000 + len(registry.names())
    manifest = registry.publish(
        version_files(registry, seed), version_manifest(version, parents=parents, created_at=created_at)
    )
    registry.point("current", version)
    return manifest


def board_snapshot(catalogue: Catalogue, users: int = 8, liked: int = 4) -> MFSnapshot:
    """Even users ("u0") liked the first even items, odd users the first odd ones; the factors say just that."""
    items = len(catalogue)
    group = np.arange(items) % 2
    factors = np.eye(2, dtype=np.float32)[group]
    histories = [np.arange(user % 2, 2 * liked, 2, dtype=np.int32) for user in range(users)]
    counts = np.where(np.arange(items) == int(COLD), 0, 2 + np.arange(items)).astype(np.int64)
    factors[counts == 0] = 0.0
    starts = np.concatenate([[0], np.cumsum([len(history) for history in histories])]).astype(np.int64)
    flat = np.concatenate(histories)
    return MFSnapshot(
        item_ids=catalogue.ids,
        history_factors=factors,
        item_factors=2.0 * factors,
        item_bias=(0.01 * np.arange(items)).astype(np.float32),
        item_counts=counts,
        user_ids=tuple(f"u{user}" for user in range(users)),
        history_starts=starts,
        history_items=flat,
        seen_starts=starts,
        seen_items=flat,
        recency=10.0,
        window=50,
        events=int(counts.sum()),
        offsets={"clicks": {"0": 17}},
    )


def publish_stream(root: Path, name: str, snapshot: MFSnapshot) -> None:
    """Publish a snapshot as the stream learner does: the folder, then the pointer."""
    folder = snapshots_folder(root)
    write_snapshot(folder / name, snapshot, 3_000)
    write_atomic(folder / "current", name.encode())
