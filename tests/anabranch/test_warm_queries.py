"""The text encoder is loaded before anybody asks by text, whenever the first model comes."""

import threading
import time
from pathlib import Path

import pytest

from anabranch.serving import warming
from server.serving.query import QueryTexts
from server.serving.reload import ReloadingSource
from tests.server.serving.stores import WordEncoder, new_store, publish


def loaded(encoder: WordEncoder) -> None:
    deadline = time.monotonic() + 30
    while not encoder.loaded:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_it_is_loaded_at_once_where_there_is_a_model_and_nobody_else_waits(tmp_path: Path) -> None:
    publish(new_store(tmp_path), "v000001")
    source, encoder, allowed = ReloadingSource(tmp_path), WordEncoder(), threading.Event()
    source.refresh()

    def load(name: str) -> WordEncoder:
        assert allowed.wait(30)
        return encoder

    queries = QueryTexts(load)
    with warming(queries, source):
        assert not encoder.loaded
        allowed.set()
        # whoever asks meanwhile waits for it
        assert queries.vector(source.bundle().model, "any").shape == source.bundle().model.item_vectors[0].shape
        loaded(encoder)


def test_it_is_loaded_once_there_is_a_model(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source, encoder = ReloadingSource(tmp_path), WordEncoder()
    with warming(QueryTexts(lambda name: encoder), source):
        assert not encoder.loaded
        publish(new_store(tmp_path), "v000001")
        source.refresh()
        loaded(encoder)
    other = ReloadingSource(tmp_path / "later")
    with warming(QueryTexts(lambda name: WordEncoder(sha256="0" * 64)), other):
        publish(new_store(tmp_path / "later"), "v000001")
        other.refresh()
        deadline = time.monotonic() + 30
        while "questions with a text are refused" not in caplog.text:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_service_that_stops_before_there_is_a_model_waits_for_none(tmp_path: Path) -> None:
    with warming(QueryTexts(lambda name: WordEncoder()), ReloadingSource(tmp_path)):
        assert [thread for thread in threading.enumerate() if thread.name == "anabranch-warm"]
    deadline = time.monotonic() + 30
    while [thread for thread in threading.enumerate() if thread.name == "anabranch-warm"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
