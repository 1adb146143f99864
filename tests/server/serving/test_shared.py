"""A bundle that was written out and mapped answers as the one it was made of."""

import logging
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from common.errors import NoModel
from server.registry import Registry
from server.serving.bundle import Bundle
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


def test_each_new_version_is_served_and_the_parts_that_stay_are_not_read_again(store: Registry, folder: Path) -> None:
    loader = ReloadingSource(store.root, keep=BundleFolder(folder).write)
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


def test_only_the_files_of_two_bundles_are_kept(store: Registry, folder: Path) -> None:
    loader = ReloadingSource(store.root, keep=BundleFolder(folder).write)
    loader.refresh()
    for number in range(2, 6):
        publish(store, f"v{number:06d}", seed=number)
        loader.refresh()
    kept = {path.name for path in folder.iterdir()}
    assert len([name for name in kept if name.startswith("model-") and name.endswith(".safetensors")]) == 2
    assert len([name for name in kept if name.startswith(("items-", "stream-"))]) == 3
    assert POINTER in kept
    assert map_bundle(folder).version == "v000005"


def test_a_damaged_file_leaves_the_old_bundle(store: Registry, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    loader = ReloadingSource(store.root, keep=BundleFolder(folder).write)
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
    from server.serving.bundle import load_bundle

    BundleFolder(folder).write(load_bundle(store, snapshots=tmp_path / "nothing"))
    mapped = map_bundle(folder)
    assert mapped.stream is None
    assert recommend(mapped, Question(k=3), None, "r").items
