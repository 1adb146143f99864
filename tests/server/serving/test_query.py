"""Texts that come at once are encoded together, each is encoded once, and no answer depends on its company."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from common.errors import EncoderError, StoreMismatch
from server.registry import Registry
from server.serving.bundle import Model, load_model
from server.serving.query import BATCH, CACHED, LONGEST_CACHED, QueryTexts
from tests.server.serving.stores import WordEncoder, publish

TEXTS = [f"square {number} of the {'black' if number % 2 else 'white'} board" for number in range(12)]


class HeldEncoder(WordEncoder):
    """Tells its batches, and encodes none before it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[str]] = []
        self.held = threading.Event()
        self.go = threading.Event()

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        self.batches.append(list(texts))
        self.held.set()
        assert self.go.wait(30)
        if "bad" in texts:
            raise EncoderError("bad text")
        return super().encode(texts)


@pytest.fixture
def model(store: Registry) -> Model:
    return load_model(store)


def alone(model: Model, text: str) -> np.ndarray:
    return QueryTexts(lambda name: WordEncoder()).vector(model, text)


def wait_for(queries: QueryTexts, wishes: int) -> None:
    for _ in range(3_000):
        if len(queries._waiting) == wishes:
            return
        threading.Event().wait(0.01)
    raise AssertionError(f"{len(queries._waiting)} wait, not {wishes}")


def asked_at_once(queries: QueryTexts, encoder: HeldEncoder, model: Model, texts: Sequence[str]) -> list[object]:
    """Ask for all of them while the first is being encoded; return vectors and errors."""

    def ask(text: str) -> object:
        try:
            return queries.vector(model, text)
        except EncoderError as error:
            return str(error)

    with ThreadPoolExecutor(len(texts)) as threads:
        first = threads.submit(ask, texts[0])
        assert encoder.held.wait(30)
        rest = [threads.submit(ask, text) for text in texts[1:]]
        wait_for(queries, len(rest))
        encoder.go.set()
        return [each.result() for each in (first, *rest)]


def assert_same_text(found: object, expected: object) -> None:
    """Fail where unit vectors differ by more than the order of sums: a batch has another one on some cores."""
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=0.0, atol=1e-6)


def test_what_waits_is_encoded_in_one_pass_and_answers_are_those_of_one_by_one(model: Model) -> None:
    encoder = HeldEncoder()
    queries = QueryTexts(lambda name: encoder)
    found = asked_at_once(queries, encoder, model, TEXTS)
    assert [len(batch) for batch in encoder.batches] == [1, len(TEXTS) - 1]
    for text, vector in zip(TEXTS, found, strict=True):
        assert_same_text(vector, alone(model, text))
    assert not queries._waiting


def test_the_same_text_is_encoded_once_in_a_pass_and_never_again(model: Model) -> None:
    encoder = HeldEncoder()
    queries = QueryTexts(lambda name: encoder)
    asked_at_once(queries, encoder, model, ["a", *["b"] * 5, "c"])
    assert [sorted(batch) for batch in encoder.batches] == [["a"], ["b", "c"]]
    for text in "abc":
        assert_same_text(queries.vector(model, text), alone(model, text))
    assert len(encoder.batches) == 2


def test_a_pass_is_bounded(model: Model) -> None:
    encoder = HeldEncoder()
    queries = QueryTexts(lambda name: encoder)
    asked_at_once(queries, encoder, model, [f"text {number}" for number in range(BATCH + 9)])
    assert [len(batch) for batch in encoder.batches] == [1, BATCH, 8]


def test_an_error_reaches_everybody_of_its_pass_and_nobody_else(model: Model) -> None:
    encoder = HeldEncoder()
    queries = QueryTexts(lambda name: encoder)
    first, *rest = asked_at_once(queries, encoder, model, ["good", "bad", "other"])
    assert_same_text(first, alone(model, "good"))
    assert all("bad text" in str(each) for each in rest)
    assert_same_text(queries.vector(model, "other"), alone(model, "other"))


def test_texts_of_two_versions_are_never_encoded_together(store: Registry, model: Model) -> None:
    publish(store, "v000002", seed=2)
    other = load_model(store)
    encoder = HeldEncoder()
    queries = QueryTexts(lambda name: encoder)
    with ThreadPoolExecutor(8) as threads:
        first = threads.submit(queries.vector, model, "first")
        assert encoder.held.wait(30)
        asked = [(each, text, threads.submit(queries.vector, each, text)) for each in (model, other) for text in "abc"]
        wait_for(queries, len(asked))
        encoder.go.set()
        first.result()
    assert sorted(sorted(batch) for batch in encoder.batches) == [["a", "b", "c"], ["a", "b", "c"], ["first"]]
    for each, text, found in asked:
        assert_same_text(found.result(), alone(each, text))
    # what was kept for one version is not given for the other
    for each in (other, model, other):
        assert_same_text(queries.vector(each, "a"), alone(each, "a"))


def test_memory_is_bounded(model: Model) -> None:
    encoder = HeldEncoder()
    encoder.go.set()
    queries = QueryTexts(lambda name: encoder)
    long = "x" * (LONGEST_CACHED + 1)
    for _ in range(2):
        queries.vector(model, long)
    assert encoder.batches == [[long], [long]]
    vectors = {f"{number}": np.zeros(2, dtype=np.float32) for number in range(CACHED + 5)}
    queries._remember(model, vectors)
    assert len(queries._vectors) == CACHED
    assert "4" not in queries._vectors
    assert f"{CACHED}" in queries._vectors


def test_another_encoder_is_refused_for_all_who_wait(model: Model) -> None:
    queries = QueryTexts(lambda name: WordEncoder("6" * 64))
    for _ in range(2):
        with pytest.raises(StoreMismatch, match="queries by text are refused"):
            queries.vector(model, "a")


def test_a_real_encoder_gives_the_same_in_company(tmp_path: Path) -> None:
    """A pad changes the last bits of a float, no more."""
    from common.encoder.adapter import TextEncoder
    from common.encoder.spec import EncoderSpec
    from tests.encoders import save_tiny_bert

    encoder = TextEncoder.load(EncoderSpec.from_name(str(save_tiny_bert(tmp_path / "bert"))))
    texts = ["a dark film", "the last train to the city at night and a long winter in the garden", "space"]
    together = encoder.encode(texts)
    for row, text in enumerate(texts):
        np.testing.assert_allclose(encoder.encode([text])[0], together[row], atol=2e-6)
