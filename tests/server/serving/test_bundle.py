"""A bundle is read whole, in catalogue order, or not at all."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.errors import ArtifactCorrupt, NoModel, StoreError, StoreMismatch
from common.items import Catalogue
from common.snapshots import MFSnapshot
from common.store import pack_arrays
from server.registry import Registry
from server.serving.alignment import align
from server.serving.bundle import VECTORS_FILE, VECTORS_TENSOR, Bundle, load_bundle, snapshots_folder
from tests.server.serving.stores import (
    board_snapshot,
    checker_board,
    new_store,
    publish_stream,
    version_files,
    version_manifest,
)


def test_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(NoModel, match="holds no current model"):
        load_bundle(new_store(tmp_path))


def test_without_a_snapshot_nobody_is_known(store: Registry, tmp_path: Path) -> None:
    bundle = load_bundle(store, stream_store=tmp_path)
    assert bundle.stream is None
    assert not bundle.person("u0").known
    assert not bundle.counts.any()


def test_a_mistyped_stream_store_is_told(store: Registry, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no stream store at .*nothing; expected the folder"):
        load_bundle(store, stream_store=tmp_path / "nothing")


def test_users_have_their_history_and_their_seen_items(bundle: Bundle) -> None:
    history = bundle.person("u1").history
    assert history.tolist() == [1, 3, 5, 7]
    assert bundle.person("u1").seen.tolist() == [1, 3, 5, 7]
    assert not bundle.person("nobody").known
    assert not bundle.person(None).known
    assert not len(bundle.person("nobody").seen)


@pytest.mark.parametrize(
    ("vectors", "error", "named"),
    [
        (np.ones((3, 4), np.float32) / 2, StoreMismatch, "shape .3, 4.; expected one row for each of 20"),
        (np.ones((20, 4), np.float32), ArtifactCorrupt, "norms from 2 to 2"),
        (np.full((20, 4), np.nan, np.float32), ArtifactCorrupt, "norms from nan"),
        (np.ones((20, 4)) / 2, ArtifactCorrupt, "float64"),
    ],
)
def test_vectors_that_do_not_fit_are_refused(
    tmp_path: Path, vectors: np.ndarray, error: type[Exception], named: str
) -> None:
    registry = new_store(tmp_path)
    files = {**version_files(registry, 1), VECTORS_FILE: pack_arrays({VECTORS_TENSOR: vectors})}
    registry.publish(files, version_manifest("v1"))
    with pytest.raises(error, match=named):
        load_bundle(registry, "v1")


def test_a_damaged_snapshot_is_refused(store: Registry) -> None:
    path = snapshots_folder(store.root) / "s1" / "arrays.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ArtifactCorrupt, match="SHA-256"):
        load_bundle(store)


def test_a_snapshot_that_is_not_finite_is_refused(store: Registry) -> None:
    snapshot = board_snapshot(store.catalogue)
    bias = snapshot.item_bias.copy()
    bias[4] = np.inf
    publish_stream(store.root, "s2", replace(snapshot, item_bias=bias))
    with pytest.raises(ArtifactCorrupt, match=r"'item_bias'.*not finite"):
        load_bundle(store)


def by_item(snapshot: MFSnapshot) -> dict[str, tuple[object, ...]]:
    return {
        item: (
            *snapshot.item_factors[row],
            *snapshot.history_factors[row],
            snapshot.item_bias[row],
            snapshot.item_counts[row],
        )
        for row, item in enumerate(snapshot.item_ids)
    }


def lists(snapshot: MFSnapshot) -> dict[str, tuple[list[str], list[str]]]:
    ids, found = snapshot.item_ids, {}
    for row, user in enumerate(snapshot.user_ids):
        history = snapshot.history_items[snapshot.history_starts[row] : snapshot.history_starts[row + 1]]
        seen = snapshot.seen_items[snapshot.seen_starts[row] : snapshot.seen_starts[row + 1]]
        found[user] = ([ids[i] for i in history], [ids[i] for i in seen])
    return found


def test_rows_move_to_catalogue_order() -> None:
    snapshot = board_snapshot(checker_board())
    shuffled = Catalogue(reversed(tuple(checker_board())))
    moved = align(snapshot, shuffled)
    assert moved.item_ids == shuffled.ids
    assert by_item(moved) == by_item(snapshot)
    assert lists(moved) == lists(snapshot)
    assert np.array_equal(moved.scores(np.array([19, 17])), snapshot.scores(np.array([0, 2]))[::-1])


def test_new_items_are_cold_and_lost_items_leave_the_histories() -> None:
    snapshot = board_snapshot(checker_board())
    items = [item for item in checker_board() if item.item_id not in ("2", "4")]
    moved = align(snapshot, Catalogue([replace(items[0], item_id="new"), *items]))
    assert by_item(moved)["new"] == (0.0, 0.0, 0.0, 0.0, 0.0, 0)
    assert lists(moved)["u0"] == (["0", "6"], ["0", "6"])
    assert lists(moved)["u1"] == lists(snapshot)["u1"]
