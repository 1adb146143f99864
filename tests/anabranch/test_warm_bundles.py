"""Once a bundle is warm, no question waits for a compiler: each compiled function has one form, whatever is asked."""

from dataclasses import replace
from typing import Any

import pytest

from anabranch.serving import WarmUp
from common.blends import BLEND_ARRAYS
from common.snapshots import ARRAYS
from server.serving import coarse, narrowing, standing
from server.serving.bundle import Bundle, Stream, in_8_bits
from server.serving.narrowing import still
from server.serving.recommend import Question, recommend, similar
from tests.server.serving.test_blended import a_bundle

COMPILED: tuple[Any, ...] = (
    standing.standing,
    standing.said,
    standing.exactly,
    narrowing.ranked,
    narrowing.shortlisted,
)


def forms() -> list[int]:
    return [len(function.signatures) for function in COMPILED]


def as_mapped(bundle: Bundle) -> Bundle:
    """Return the bundle with arrays that nobody may write to, as a process has that maps them."""
    assert bundle.stream is not None
    snapshot, blend = bundle.stream.snapshot, bundle.stream.snapshot.blend
    assert blend is not None
    members: dict[str, Any] = {name: still(getattr(blend, name)) for name in BLEND_ARRAYS}
    arrays: dict[str, Any] = {name: still(getattr(snapshot, name)) for name in ARRAYS}
    snapshot = replace(snapshot, blend=replace(blend, **members), **arrays)
    model = replace(bundle.model, item_vectors=still(bundle.model.item_vectors), given=bundle.model.sums)
    return Bundle(bundle.items, model, Stream(bundle.stream.manifest, snapshot))


@pytest.mark.parametrize("text_columns", [0, 4])
@pytest.mark.parametrize("repeats", [False, True])
def test_a_warm_bundle_has_compiled_all_that_its_answers_need(
    text_columns: int, repeats: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coarse, "LEAST_ROWS", 1)
    bundle = a_bundle(9, text_columns=text_columns, repeats=repeats)
    WarmUp()(bundle)
    compiled = forms()
    assert all(compiled)
    vector = bundle.model.item_vectors[3]
    for each in (bundle, in_8_bits(bundle), in_8_bits(as_mapped(bundle))):
        for user in (None, "nobody", "u1", "u2"):
            for history in ((), ("7",), ("7", "unknown", "200")):
                for explain in (False, True):
                    asked: dict[str, Any] = {"user_id": user, "history": history, "explain": explain, "k": 3}
                    recommend(each, Question(**asked, exclude_seen=explain), None, "r")
                    recommend(each, Question(**asked, query="any"), vector, "r")
                    recommend(each, Question(**asked, diversity=0.5, explore=0.5, deny=("9",)), None, "r")
        similar(each, "7", 3)
    assert forms() == compiled


def test_the_next_bundle_of_a_kind_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Bundle] = []
    monkeypatch.setattr("server.serving.recommend.recommend", lambda bundle, *_: asked.append(bundle))
    warm, first, second = WarmUp(), a_bundle(1), a_bundle(2)
    assert first.stream is not None
    plain = Stream(first.stream.manifest, replace(first.stream.snapshot, blend=None))
    other = replace(first, stream=plain)
    for bundle in (replace(first, stream=None), first, second, other, replace(second, stream=None)):
        warm(bundle)
    assert [each.stream for each in asked[::2]] == [None, first.stream, plain]
