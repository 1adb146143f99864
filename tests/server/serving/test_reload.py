"""Versions change under load: no answer mixes two, and a damaged version leaves the old one in place."""

import logging
import threading
import uuid
from pathlib import Path

import httpx
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from common.errors import NoModel, StoreError
from server.registry import Registry
from server.serving.app import create_app
from server.serving.bundle import VECTORS_FILE, load_bundle, snapshots_folder
from server.serving.query import QueryTexts
from server.serving.recommend import Question, recommend
from server.serving.reload import RETRY_SECONDS, ReloadingSource
from server.serving.run import serve_in_thread
from tests.server.serving.stores import WordEncoder, board_snapshot, new_store, publish, publish_stream

QUERY = "yellow square under the board"
Answer = tuple[tuple[str, float], ...]


class HandClock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def expected_answers(registry: Registry, versions: list[str]) -> dict[str, Answer]:
    """Answer the query once per version, alone."""
    answers = {}
    for version in versions:
        bundle = load_bundle(registry, version)
        vector = QueryTexts(lambda name: WordEncoder()).vector(bundle.model, QUERY)
        slate = recommend(bundle, Question(query=QUERY, k=5), vector, "r")
        answers[version] = tuple((item.item_id, item.score) for item in slate.items)
    return answers


def test_every_answer_under_swaps_belongs_to_its_version(store: Registry) -> None:
    queries = QueryTexts(lambda name: WordEncoder(seconds=0.002))
    versions = [f"v{number:06d}" for number in range(1, 6)]
    for seed, version in enumerate(versions[1:], start=2):
        publish(store, version, seed)
    expected = expected_answers(store, versions)
    assert len(set(expected.values())) == len(versions)
    source = ReloadingSource(store.root, every=0.05)
    done = threading.Event()
    answers: list[tuple[str, Answer]] = []
    failures: list[str] = []

    def hammer(url: str) -> None:
        with httpx.Client(base_url=url, timeout=30.0) as client:
            while not done.is_set():
                response = client.post("/v1/recommendations", json={"query": QUERY, "k": 5})
                if response.status_code != 200:
                    failures.append(response.text)
                    return
                slate = response.json()
                found = tuple((item["item_id"], item["score"]) for item in slate["items"])
                answers.append((slate["model_version"], found))

    with source.polling(), serve_in_thread(create_app(source, queries)) as running:
        threads = [threading.Thread(target=hammer, args=(running.url,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for turn in range(60):
            store.point("current", versions[turn % len(versions)])
            assert source.refresh() or source.bundle().version == versions[turn % len(versions)]
            seen = len(answers)
            while len(answers) < seen + 5 and not failures:
                done.wait(0.001)
        done.set()
        for thread in threads:
            thread.join(timeout=30.0)
    assert not failures
    assert {version for version, _ in answers} == set(versions)
    assert [found for version, found in answers if found != expected[version]] == []


def test_a_new_version_is_taken_up_and_rolled_back(store: Registry) -> None:
    source = ReloadingSource(store.root)
    with pytest.raises(NoModel):
        source.bundle()
    assert source.refresh()
    old = source.bundle()
    assert not source.refresh()
    assert source.bundle() is old
    publish(store, "v000002", seed=2, parents=("v000001",))
    assert source.refresh()
    assert source.bundle().version == "v000002"
    assert source.bundle().stream is old.stream
    store.point("current", "v000001")
    assert source.refresh()
    assert source.bundle().version == "v000001"
    assert source.models() == (("v000001", "v000002"), "v000001")


def test_a_new_snapshot_is_taken_up_alone(store: Registry) -> None:
    source = ReloadingSource(store.root)
    source.refresh()
    model = source.bundle().model
    publish_stream(store.root, "s2", board_snapshot(store.catalogue, users=10))
    assert source.refresh()
    assert source.bundle().model is model
    assert source.bundle().person("u9").known


def test_models_at_an_address_answer_with_the_clicks_of_a_folder(store: Registry) -> None:
    models = new_store(f"memory://{uuid.uuid4().hex}/models")
    publish(models, "v000001", seed=1)
    alone = ReloadingSource(models.address)
    source = ReloadingSource(models.address, stream_store=store.root)
    assert alone.refresh()
    assert source.refresh()
    assert alone.bundle().stream is None
    assert source.bundle().person("u1").history.tolist() == load_bundle(store).person("u1").history.tolist()
    publish_stream(store.root, "s2", board_snapshot(store.catalogue, users=10))
    assert source.refresh()
    assert source.bundle().person("u9").known
    publish(models, "v000002", seed=2)
    assert source.refresh()
    assert source.bundle().version == "v000002"
    assert source.bundle().person("u9").known


def test_a_store_that_did_not_answer_is_asked_again_at_the_next_look(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    models = new_store(f"memory://{uuid.uuid4().hex}/models")
    publish(models, "v000001", seed=1)
    source = ReloadingSource(models.address)
    answers = MemoryFileSystem.cat_file

    def does_not_answer(self: MemoryFileSystem, path: str, **more: object) -> bytes:
        if path.endswith(VECTORS_FILE):
            raise ConnectionResetError("connection reset")
        whole: bytes = answers(self, path, **more)
        return whole

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "cat_file", does_not_answer)
        assert not source.refresh()
    assert "connection reset" in caplog.text
    assert source.refresh()
    assert source.bundle().version == "v000001"


def test_a_stream_store_is_looked_for_at_once(store: Registry, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no stream store"):
        ReloadingSource(store.root, stream_store=tmp_path / "nothing")


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


def test_a_damaged_version_is_logged_and_the_old_one_stays(store: Registry, caplog: pytest.LogCaptureFixture) -> None:
    clock = HandClock()
    source = ReloadingSource(store.root, monotonic=clock)
    source.refresh()
    old = source.bundle()
    publish(store, "v000002", seed=2)
    damaged = store.folder("v000002") / VECTORS_FILE
    flip(damaged)
    with caplog.at_level(logging.WARNING):
        assert not source.refresh()
        assert not source.refresh()
    assert source.bundle() is old
    assert len(caplog.messages) == 1
    assert "model v000002 is not taken up, v000001 stays" in caplog.messages[0]
    # the stream goes on meanwhile
    publish_stream(store.root, "s2", board_snapshot(store.catalogue, users=10))
    assert source.refresh()
    assert source.bundle().version == "v000001"
    assert source.bundle().person("u9").known
    # once it is mended it is taken up after a while, without a restart
    flip(damaged)
    assert not source.refresh()
    clock.now += RETRY_SECONDS
    assert source.refresh()
    assert source.bundle().version == "v000002"


def test_a_damaged_snapshot_leaves_the_old_one(store: Registry, caplog: pytest.LogCaptureFixture) -> None:
    source = ReloadingSource(store.root)
    source.refresh()
    publish_stream(store.root, "s2", board_snapshot(store.catalogue, users=10))
    flip(snapshots_folder(store.root) / "s2" / "arrays.safetensors")
    publish(store, "v000002", seed=2)
    with caplog.at_level(logging.WARNING):
        assert source.refresh()
    assert source.bundle().version == "v000002"
    assert not source.bundle().person("u9").known
    assert source.bundle().person("u7").known
    assert "snapshot s2 is not taken up, s1 stays" in caplog.messages[0]


def test_a_pointer_to_nowhere_is_logged(store: Registry, caplog: pytest.LogCaptureFixture) -> None:
    source = ReloadingSource(store.root)
    source.refresh()
    (store.root / "pointers" / "current").write_text("v000099\n")
    with caplog.at_level(logging.WARNING):
        assert not source.refresh()
    assert "no version 'v000099'" in caplog.messages[0]


def test_the_thread_polls_by_itself_and_ends(store: Registry) -> None:
    source = ReloadingSource(store.root, every=0.01)
    with source.polling():
        publish(store, "v000002", seed=2)
        waited = threading.Event()
        for _ in range(1_000):
            if source.bundle().version == "v000002":
                break
            waited.wait(0.01)
        assert source.bundle().version == "v000002"
    assert "anabranch-reload" not in {thread.name for thread in threading.enumerate()}
