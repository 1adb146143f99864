"""Snapshots: read back as written, refused when changed, and scored as the formula says."""

from dataclasses import fields, replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ArtifactCorrupt
from common.manifests import TensorSpec, encode_manifest
from common.snapshots import ARRAYS_NAME, IDS_NAME, MFSnapshot, read_snapshot, write_snapshot
from common.store import MANIFEST_NAME, SEAL_NAME, pack_arrays, read_manifest, unpack_arrays


def made(items: int = 7, factors: int = 4, seed: int = 0) -> MFSnapshot:
    """Return a snapshot of two users."""
    rng = np.random.default_rng(seed)
    return MFSnapshot(
        item_ids=tuple(f"i{number}" for number in range(items)),
        history_factors=rng.standard_normal((items, factors)).astype(np.float32),
        item_factors=rng.standard_normal((items, factors)).astype(np.float32),
        item_bias=rng.standard_normal(items).astype(np.float32),
        item_counts=rng.integers(0, 9, items),
        user_ids=("u0", "ü1"),
        history_starts=np.array([0, 2, 3], dtype=np.int64),
        history_items=np.array([1, 0, 2], dtype=np.int32),
        seen_starts=np.array([0, 2, 3], dtype=np.int64),
        seen_items=np.array([0, 1, 2], dtype=np.int32),
        recency=3.0,
        window=5,
        events=3,
        offsets={"clicks": {"0": 12, "1": 7}},
    )


def slow_scores(snapshot: MFSnapshot, history: list[int]) -> list[float]:
    """Score by the formula of the class, one number at a time."""
    width = snapshot.item_factors.shape[1]
    newest = history[::-1][: snapshot.window]
    weights = [float(np.exp(-d / snapshot.recency)) for d in range(len(newest))]
    user = [0.0] * width
    for weight, row in zip(weights, newest, strict=True):
        for k in range(width):
            user[k] += weight * float(snapshot.history_factors[row, k]) / float(np.sqrt(sum(weights)))
    return [
        float(snapshot.item_bias[i]) + sum(user[k] * float(snapshot.item_factors[i, k]) for k in range(width))
        for i in range(len(snapshot.item_ids))
    ]


@given(st.lists(st.integers(0, 6), max_size=9), st.integers(0, 5))
def test_scores_are_those_of_the_formula(history: list[int], seed: int) -> None:
    snapshot = made(seed=seed)
    found = snapshot.scores(np.array(history, dtype=np.int32))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, slow_scores(snapshot, history), atol=1e-5)


def test_nobodys_history_scores_by_bias_alone() -> None:
    snapshot = made()
    np.testing.assert_array_equal(snapshot.scores(np.array([], dtype=np.int32)), snapshot.item_bias)


@given(st.lists(st.integers(0, 6), min_size=5, max_size=5), st.lists(st.integers(0, 6), max_size=4))
def test_items_before_the_window_do_not_count(recent: list[int], older: list[int]) -> None:
    snapshot = made()
    np.testing.assert_array_equal(snapshot.scores(np.array(older + recent)), snapshot.scores(np.array(recent)))


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    snapshot = made()
    manifest = write_snapshot(tmp_path / "s1", snapshot, created_at=9)
    found = read_snapshot(tmp_path / "s1")
    assert (manifest.kind, manifest.version, manifest.created_at) == ("mf-snapshot", "s1", 9)
    for name in (field.name for field in fields(MFSnapshot)):
        left, right = getattr(found, name), getattr(snapshot, name)
        if isinstance(right, np.ndarray):
            assert left.dtype == right.dtype
            np.testing.assert_array_equal(left, right)
        else:
            assert left == right


def test_the_same_snapshot_is_the_same_bytes(tmp_path: Path) -> None:
    first, second = (write_snapshot(tmp_path / name, made(), created_at=9) for name in ("a", "b"))
    assert first.files == second.files


@pytest.mark.parametrize("name", ["item_factors", "history_items", "item_bias"])
@pytest.mark.parametrize("change", ["shape", "dtype", "missing"])
def test_a_changed_tensor_is_refused_by_name(tmp_path: Path, name: str, change: str) -> None:
    write_snapshot(tmp_path / "s1", made(), created_at=9)
    arrays = unpack_arrays((tmp_path / "s1" / ARRAYS_NAME).read_bytes(), "here")
    if change == "shape":
        arrays[name] = arrays[name][:-1]
    elif change == "dtype":
        arrays[name] = arrays[name].astype(np.float64)
    else:
        del arrays[name]
    (tmp_path / "s1" / ARRAYS_NAME).write_bytes(pack_arrays(arrays))
    with pytest.raises(ArtifactCorrupt, match=name):
        read_snapshot(tmp_path / "s1")


def test_a_changed_template_is_refused_by_name(tmp_path: Path) -> None:
    write_snapshot(tmp_path / "s1", made(), created_at=9)
    manifest = read_manifest(tmp_path / "s1")
    other = replace(manifest, tensors={**manifest.tensors, "item_bias": TensorSpec((7,), "float64")})
    (tmp_path / "s1" / MANIFEST_NAME).write_bytes(encode_manifest(other))
    (tmp_path / "s1" / SEAL_NAME).unlink()  # or the manifest would be found changed first
    with pytest.raises(ArtifactCorrupt, match="item_bias"):
        read_snapshot(tmp_path / "s1")


@pytest.mark.parametrize("name", [ARRAYS_NAME, IDS_NAME, MANIFEST_NAME])
@pytest.mark.parametrize("damage", ["cut", "remove", "garbage"])
def test_a_damaged_file_is_refused(tmp_path: Path, name: str, damage: str) -> None:
    write_snapshot(tmp_path / "s1", made(), created_at=9)
    path = tmp_path / "s1" / name
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-5] if damage == "cut" else b"\xff" * 40)
    with pytest.raises(ArtifactCorrupt):
        read_snapshot(tmp_path / "s1")


def test_ids_that_are_no_lists_are_refused(tmp_path: Path) -> None:
    write_snapshot(tmp_path / "s1", made(), created_at=9)
    (tmp_path / "s1" / IDS_NAME).write_bytes(msgspec.json.encode({"items": "i0", "users": []}))
    with pytest.raises(ArtifactCorrupt):
        read_snapshot(tmp_path / "s1")
