"""A bundle that was written out and mapped answers as the one it was made of."""

import errno
import logging
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from common.errors import NoModel
from common.snapshots import ARRAYS_NAME
from common.store import map_arrays, pack_arrays
from server.registry import Registry
from server.serving.bundle import VECTORS_FILE, VECTORS_TENSOR, Bundle, load_bundle, snapshots_folder
from server.serving.recommend import Question, recommend
from server.serving.reload import ReloadingSource
from server.serving.shared import POINTER, BundleFolder, MappedSource, map_bundle
from tests.server.serving.stores import board_snapshot, publish, publish_stream

QUESTIONS = (
    Question(),
    Question(user_id="u1", explain=True),
    Question(user_id="u0", history=("3",), diversity=0.4),
    Question(history=("2", "nothing"), categories=("black", "none"), deny=("0",)),
)


def answers(bundle: Bundle) -> list[dict[str, object]]:
    return [asdict(recommend(bundle, question, None, "r")) for question in QUESTIONS]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shared").mkdir()
    return tmp_path / "shared"


@pytest.fixture(params=[False, True], ids=["copied", "linked"])
def loader(store: Registry, folder: Path, request: pytest.FixtureRequest) -> ReloadingSource:
    return ReloadingSource(store.root, keep=BundleFolder(folder).write, mapped=request.param)


def test_a_mapped_bundle_answers_the_same(bundle: Bundle, folder: Path) -> None:
    with pytest.raises(NoModel):
        map_bundle(folder)
    kept = BundleFolder(folder).write(bundle)
    mapped = map_bundle(folder)
    assert mapped.stream is not None
    assert mapped.model.manifest == bundle.model.manifest
    assert isinstance(mapped.stream.snapshot.item_factors.base, np.ndarray)
    assert not mapped.model.item_vectors.flags.writeable
    assert answers(bundle) == answers(kept) == answers(mapped)


def test_each_new_version_is_served_and_the_parts_that_stay_are_not_read_again(
    loader: ReloadingSource, store: Registry, folder: Path
) -> None:
    source = MappedSource(folder, str(store.root))
    assert not source.refresh()
    with pytest.raises(NoModel):
        source.bundle()
    assert source.models() == ((), None)
    loader.refresh()
    assert source.refresh()
    assert not source.refresh()
    first = source.bundle()
    publish(store, "v000002", seed=2)
    loader.refresh()
    assert source.refresh()
    second = source.bundle()
    assert (second.version, source.models()) == ("v000002", (("v000001", "v000002"), "v000002"))
    assert (second.items, second.stream) == (first.items, first.stream)
    publish_stream(store.root, "s2", board_snapshot(store.catalogue, users=10))
    loader.refresh()
    assert source.refresh()
    third = source.bundle()
    assert third.model is second.model
    assert third.person("u9").known
    assert answers(third) == answers(loader.bundle())
    # the older ones still answer: their files are gone, what was mapped is not
    assert first.person("u1").known
    assert answers(first)[0]["model_version"] == "v000001"


def test_only_the_files_of_two_bundles_are_kept(loader: ReloadingSource, store: Registry, folder: Path) -> None:
    loader.refresh()
    for number in range(2, 6):
        publish(store, f"v{number:06d}", seed=number)
        loader.refresh()
    kept = {path.name for path in folder.iterdir()}
    assert {name.partition(".")[0] for name in kept} == {"bundle", "items-1", "model-6", "model-7", "stream-3"}
    assert len([name for name in kept if name.startswith("model-") and name.endswith(".json")]) == 2
    assert POINTER in kept
    assert map_bundle(folder).version == "v000005"


def test_a_damaged_file_leaves_the_old_bundle(
    loader: ReloadingSource, store: Registry, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = MappedSource(folder, str(store.root))
    loader.refresh()
    source.refresh()
    publish(store, "v000002", seed=2)
    loader.refresh()
    newest = max(folder.glob("model-*.safetensors"))
    whole = newest.read_bytes()
    newest.write_bytes(whole[:40])
    with caplog.at_level(logging.WARNING):
        assert not source.refresh()
        assert not source.refresh()
    assert source.bundle().version == "v000001"
    assert len(caplog.messages) == 1
    newest.write_bytes(whole)
    assert source.refresh()
    assert source.bundle().version == "v000002"


def test_a_bundle_is_warmed_before_it_is_served(store: Registry, folder: Path) -> None:
    warmed: list[str] = []

    def warm(bundle: Bundle) -> None:
        with pytest.raises(NoModel):
            source.bundle()
        warmed.append(bundle.version)

    source = MappedSource(folder, str(store.root), warm)
    ReloadingSource(store.root, keep=BundleFolder(folder).write).refresh()
    with source.polling():
        assert source.bundle().version == "v000001"
    assert warmed == ["v000001"]


def test_a_store_without_a_stream_is_served(tmp_path: Path, folder: Path, store: Registry) -> None:
    BundleFolder(folder).write(load_bundle(store, stream_store=tmp_path))
    mapped = map_bundle(folder)
    assert mapped.stream is None
    assert recommend(mapped, Question(k=3), None, "r").items


def test_what_the_store_holds_as_it_is_served_is_not_copied(store: Registry, folder: Path) -> None:
    ReloadingSource(store.root, keep=BundleFolder(folder).write, mapped=True).refresh()
    for given, where in (
        ("model-2", store.folder("v000001") / VECTORS_FILE),
        ("stream-3", snapshots_folder(store.root) / "s1" / ARRAYS_NAME),
    ):
        assert (folder / f"{given}.given.safetensors").samefile(where)
        assert map_arrays(folder / f"{given}.safetensors").keys().isdisjoint(map_arrays(where))
    expected = answers(map_bundle(folder))
    shutil.rmtree(store.folder("v000001"))
    shutil.rmtree(snapshots_folder(store.root) / "s1")
    # whoever begins later still finds it
    assert answers(map_bundle(folder)) == expected


def test_a_store_on_another_disk_is_copied(store: Registry, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    expected = answers(load_bundle(store))
    monkeypatch.setattr("os.link", refuse)
    ReloadingSource(store.root, keep=BundleFolder(folder).write, mapped=True).refresh()
    assert not list(folder.glob("*.given.*"))
    shutil.rmtree(store.folder("v000001"))
    assert answers(map_bundle(folder)) == expected


def test_a_store_file_cannot_say_what_is_worked_out_here(store: Registry, folder: Path) -> None:
    path = store.folder("v000001") / VECTORS_FILE
    bundle = load_bundle(store)
    expected = answers(bundle)
    path.write_bytes(pack_arrays({VECTORS_TENSOR: bundle.model.item_vectors, "sums.columns": np.zeros(3)}))
    linked = replace(bundle, model=replace(bundle.model, given=bundle.model.sums, lies_in=path))
    BundleFolder(folder).write(linked)
    mapped = map_bundle(folder)
    assert answers(mapped) == expected
    np.testing.assert_array_equal(mapped.model.sums.columns, bundle.model.sums.columns)
