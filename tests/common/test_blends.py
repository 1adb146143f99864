"""A blend's snapshot: read back as written, and refused when its parts do not fit together."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.blends import BLEND_ARRAYS, MEMBERS, BlendMembers, read_blend
from common.errors import ArtifactCorrupt
from common.snapshots import ARRAYS_NAME, BLEND_KIND, KIND, read_snapshot, write_snapshot
from common.store import pack_arrays, unpack_arrays
from tests.common.test_snapshots import made


def members(items: int = 7) -> BlendMembers:
    """Return the members of a blend over the items of `made`."""
    return BlendMembers(
        weights=np.arange(8, dtype=np.float64).reshape(2, 4),
        pair_starts=np.array([0, 2, 2, *[3] * (items - 2)], dtype=np.int64),
        pair_items=np.array([1, 3, 0], dtype=np.int32),
        pair_weights=np.array([0.5, 0.25, 0.125], dtype=np.float32),
        neighbour_decay=np.array([1.0, 0.5], dtype=np.float32),
        popularity=np.linspace(0, 1, items).astype(np.float32),
        positives=np.array([2, 90], dtype=np.int64),
        habit=np.zeros(0, dtype=np.float32),
        opening_weights=np.full((1, 4), 0.5),
        opening_habit=np.zeros(0, dtype=np.float32),
        moments=np.array([5_000, -1], dtype=np.int64),
        tried_starts=np.array([0, 1, 3], dtype=np.int64),
        tried_items=np.array([2, 0, 4], dtype=np.int32),
        buckets=(0, 3),
        visit_ms=1_000,
        unknown_popularity=-1.5,
        text_columns=2,
        repeats=True,
    )


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    manifest = write_snapshot(tmp_path / "s1", replace(made(), blend=members()), created_at=9)
    found, original = read_snapshot(tmp_path / "s1").blend, members()
    assert manifest.kind == BLEND_KIND
    assert found is not None
    assert found.details() == original.details()
    for name in BLEND_ARRAYS:
        left, right = getattr(found, name), getattr(original, name)
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)


def test_a_snapshot_without_a_blend_stays_what_it_was(tmp_path: Path) -> None:
    manifest = write_snapshot(tmp_path / "s1", made(), created_at=9)
    assert manifest.kind == KIND
    assert "blend" not in manifest.details
    assert read_snapshot(tmp_path / "s1").blend is None


@pytest.mark.parametrize(("likes", "row"), [(0, 0), (2, 0), (3, 1), (10_000, 1)])
def test_weights_go_by_the_number_of_likes(likes: int, row: int) -> None:
    np.testing.assert_array_equal(members().weights_of(likes), members().weights[row])


@pytest.mark.parametrize(
    ("user", "at", "opens"),
    [(0, None, False), (0, 0, False), (0, 6_000, False), (0, 6_001, True), (1, 9_999, False)],
)
def test_a_visit_opens_long_after_the_newest_like(user: int, at: int | None, opens: bool) -> None:
    blend = members()
    assert blend.opens_visit(user, at) is opens
    assert not replace(blend, moments=np.zeros(0, dtype=np.int64)).opens_visit(user, at)
    expected = blend.opening_weights[0] if opens else blend.weights[1]
    np.testing.assert_array_equal(blend.weights_of(9, opens=opens), expected)


@pytest.mark.parametrize(
    ("name", "array", "named"),
    [
        ("pair_starts", np.array([0, 2, 1, 3, 3, 3, 3, 3]), "pair_starts"),
        ("pair_starts", np.array([0, 3]), "pair_starts"),
        ("pair_starts", np.zeros(0, dtype=np.int64), "pair_starts"),
        ("pair_items", np.array([1, 3, 7], dtype=np.int32), "pair_items"),
        ("pair_items", np.array([1, -1, 0], dtype=np.int32), "pair_items"),
        ("pair_weights", np.zeros(2, dtype=np.float32), "pair_items"),
        ("moments", np.zeros(3, dtype=np.int64), "moments"),
        ("opening_weights", np.zeros((0, 4)), "opening_weights"),
        ("opening_habit", np.zeros(3, dtype=np.float32), "opening_habit"),
        ("weights", np.zeros((2, 3)), "weights"),
        ("weights", np.zeros((3, 4)), "weights"),
    ],
)
def test_parts_that_do_not_fit_are_refused(name: str, array: np.ndarray, named: str) -> None:
    blend = members()
    with pytest.raises(ArtifactCorrupt, match=f"'blend.{named}' of here"):
        read_blend({**blend.arrays(), f"blend.{name}": array}, blend.details(), "here")


@pytest.mark.parametrize("name", BLEND_ARRAYS)
def test_a_missing_tensor_is_named(name: str) -> None:
    blend = members()
    arrays = {key: array for key, array in blend.arrays().items() if key != f"blend.{name}"}
    with pytest.raises(ArtifactCorrupt, match=f"'blend.{name}' of here is missing"):
        read_blend(arrays, blend.details(), "here")


@pytest.mark.parametrize("change", [{"schema": 99}, {"members": [*MEMBERS, "weather"]}])
def test_a_blend_of_another_version_is_refused(change: dict[str, Any]) -> None:
    blend = members()
    with pytest.raises(ArtifactCorrupt, match=r"99|weather"):
        read_blend(blend.arrays(), {**blend.details(), **change}, "here")
    with pytest.raises(ArtifactCorrupt, match="schema None"):
        read_blend(blend.arrays(), {}, "here")


def test_a_changed_tensor_is_refused_by_name(tmp_path: Path) -> None:
    write_snapshot(tmp_path / "s1", replace(made(), blend=members()), created_at=9)
    path = tmp_path / "s1" / ARRAYS_NAME
    arrays = unpack_arrays(path.read_bytes(), "here")
    path.write_bytes(pack_arrays({**arrays, "blend.popularity": arrays["blend.popularity"].astype(np.float64)}))
    with pytest.raises(ArtifactCorrupt, match=r"blend\.popularity"):
        read_snapshot(tmp_path / "s1")
