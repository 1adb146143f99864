"""What a version carries beside its item vectors is what a service would work out of them, and is looked at."""

import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from common.errors import ArtifactCorrupt
from common.ids import rng_for
from common.store import map_arrays, pack_arrays, unpack_arrays
from server.artifact import ITEM_ROWS
from server.registry import Registry
from server.serving.beside import Beside, checked_beside, rows_file
from server.serving.bundle import VECTORS_FILE, VECTORS_TENSOR, load_bundle
from server.serving.coarse import LEAST_ROWS, coarse_of
from server.serving.recommend import Question, recommend
from server.serving.reload import ReloadingSource
from server.serving.shared import BundleFolder, map_bundle
from server.serving.sums import ItemSums
from tests.server.serving.stores import board_snapshot, new_store, publish_stream, version_files, version_manifest

WIDTH = 24


@pytest.fixture
def few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.serving.coarse.LEAST_ROWS", 10)


def unit_rows(items: int, seed: int = 0) -> np.ndarray:
    rows = rng_for("beside", seed).standard_normal((items, WIDTH)).astype(np.float32)
    unit: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def told(items: int, seed: int = 0) -> dict[str, np.ndarray]:
    return unpack_arrays(rows_file(unit_rows(items, seed))[ITEM_ROWS], "here")


def test_few_items_need_no_file() -> None:
    assert rows_file(unit_rows(LEAST_ROWS - 1)) == {}


def test_the_file_holds_what_a_service_would_work_out() -> None:
    vectors = unit_rows(LEAST_ROWS)
    beside, coarse, sums = checked_beside(told(LEAST_ROWS), vectors, "here"), coarse_of(vectors), ItemSums.of(vectors)
    assert beside.coarse is not None
    assert coarse is not None
    for name, array in coarse.arrays().items():
        np.testing.assert_array_equal(beside.coarse.arrays()[name], array)
    np.testing.assert_allclose(beside.sums.products, sums.products, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"coarse.codes": np.zeros((12, WIDTH - 1), dtype=np.int8)}, "holds .*codes.*as its item vectors have"),
        ({"coarse.scale": np.ones(11, dtype=np.float32)}, "holds"),
        ({"sums.products": np.zeros((WIDTH, WIDTH), dtype=np.float32)}, "holds"),
        ({"coarse.error": None}, "holds"),
        ({"sums.columns": np.full(WIDTH, np.nan)}, "not finite"),
        ({"coarse.length": np.full(12, np.inf, dtype=np.float32)}, "not finite"),
        ({"coarse.error": np.full(12, -1.0, dtype=np.float32)}, "what is not so"),
        ({"coarse.length": np.zeros(12, dtype=np.float32)}, "what is not so"),
        ({"coarse.codes": np.zeros((12, WIDTH), dtype=np.int8)}, "what is not so"),
    ],
)
@pytest.mark.usefixtures("few_are_many")
def test_what_does_not_fit_the_vectors_is_refused(change: Mapping[str, np.ndarray | None], named: str) -> None:
    arrays = {name: array for name, array in {**told(12), **change}.items() if array is not None}
    with pytest.raises(ArtifactCorrupt, match=named):
        checked_beside(arrays, unit_rows(12), "here")


@pytest.mark.usefixtures("few_are_many")
def test_what_is_of_other_vectors_is_refused() -> None:
    with pytest.raises(ArtifactCorrupt, match="here says of its item vectors what is not so"):
        checked_beside(told(12, seed=1), unit_rows(12), "here")


def answers(registry_or_folder: Registry | Path) -> list[dict[str, object]]:
    if isinstance(registry_or_folder, Registry):
        bundle = load_bundle(registry_or_folder)
    else:
        bundle = map_bundle(registry_or_folder)
    asked = (Question(), Question(user_id="u1"), Question(history=("3", "5"), k=4, explain=True))
    return [asdict(recommend(bundle, question, None, "r")) for question in asked]


@pytest.fixture
def carrying(tmp_path: Path, few_are_many: None) -> Registry:
    """Return a store whose version v1 carries the file, and v0, the same but for that, does not."""
    registry = new_store(tmp_path / "carrying")
    files = version_files(registry, 1)
    rows = rows_file(unpack_arrays(files[VECTORS_FILE], "here")[VECTORS_TENSOR])
    assert rows
    registry.publish(files, version_manifest("v0"))
    # more than is asked for, in the names of what lies elsewhere
    more = unpack_arrays(rows[ITEM_ROWS], "here") | {VECTORS_TENSOR: np.zeros(3), "adapter.matrix": np.zeros(3)}
    registry.publish({**files, ITEM_ROWS: pack_arrays(more)}, version_manifest("v1"))
    publish_stream(registry.root, "s1", board_snapshot(registry.catalogue))
    registry.point("current", "v1")
    return registry


def test_a_version_with_the_file_answers_as_one_without(carrying: Registry) -> None:
    assert load_bundle(carrying).model.coarse is not None
    found = answers(carrying)
    carrying.point("current", "v0")
    assert load_bundle(carrying).model.coarse is None
    expected = answers(carrying)
    assert [{**each, "model_version": "v1"} for each in expected] == found


def test_a_service_links_the_file_and_works_nothing_out(carrying: Registry, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    folder, expected = tmp_path / "shared", answers(carrying)
    ReloadingSource(carrying.root, keep=BundleFolder(folder).write, mapped=True).refresh()
    linked = folder / "model-2.beside.safetensors"
    assert linked.samefile(carrying.folder("v1") / ITEM_ROWS)
    assert not any(name.startswith(("sums.", "coarse.")) for name in map_arrays(folder / "model-2.safetensors"))
    shutil.rmtree(carrying.folder("v1"))
    assert answers(folder) == expected


def test_a_file_that_is_of_other_vectors_leaves_the_version_before(carrying: Registry) -> None:
    source = ReloadingSource(carrying.root)
    source.refresh()
    other = version_files(carrying, 2)
    rows = carrying.read("v1", ITEM_ROWS)
    carrying.publish({**other, ITEM_ROWS: rows}, version_manifest("v2"))
    carrying.point("current", "v2")
    assert not source.refresh()
    assert source.bundle().version == "v1"


def test_a_flipped_byte_of_the_file_is_found(carrying: Registry) -> None:
    path = carrying.folder("v1") / ITEM_ROWS
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    for mapped in (False, True):
        source = ReloadingSource(carrying.root, mapped=mapped)
        assert not source.refresh()
    with pytest.raises(ArtifactCorrupt, match=f"{ITEM_ROWS} has SHA-256"):
        carrying.verify("v1")


def test_arrays_come_back_by_their_names() -> None:
    beside = Beside(ItemSums.of(unit_rows(12)), None)
    again = Beside.from_arrays(beside.arrays() | {"other": np.zeros(1)})
    assert again.coarse is None
    np.testing.assert_array_equal(again.sums.columns, beside.sums.columns)
