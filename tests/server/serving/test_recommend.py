"""The checker board: whoever likes black squares gets black squares, and every score can be explained."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import InvalidSetting
from server.registry import Registry
from server.serving.bundle import Bundle, load_bundle
from server.serving.query import QueryTexts
from server.serving.recommend import (
    DEFAULT_TABLE,
    MAX_HISTORY,
    MAX_QUERY,
    Question,
    Slate,
    UnknownItem,
    recommend,
    similar,
    slate_payload,
)
from tests.server.serving.stores import COLD, WordEncoder


def ask(bundle: Bundle, question: Question) -> Slate:
    queries = QueryTexts(lambda name: WordEncoder())
    vector = None if question.query is None else queries.vector(bundle.model, question.query)
    return recommend(bundle, question, vector, "r1")


def parities(slate: Slate) -> set[int]:
    return {int(item.item_id) % 2 for item in slate.items}


def test_known_users_get_their_colour_unseen_and_the_most_liked_first(bundle: Bundle) -> None:
    slate = ask(bundle, Question(user_id="u0", k=6))
    assert slate.known_user
    assert [item.item_id for item in slate.items] == ["18", "16", "14", "12", "10", "8"]
    assert [item.rank for item in slate.items] == [1, 2, 3, 4, 5, 6]
    assert parities(ask(bundle, Question(user_id="u1", k=5))) == {1}


def test_seen_items_come_back_when_asked_for(bundle: Bundle) -> None:
    slate = ask(bundle, Question(user_id="u0", k=10, exclude_seen=False))
    assert {"0", "2", "4", "6"} <= {item.item_id for item in slate.items}


def test_an_unknown_user_gets_what_is_popular(bundle: Bundle) -> None:
    slate = ask(bundle, Question(user_id="nobody", k=3))
    assert not slate.known_user
    assert [item.item_id for item in slate.items] == ["18", "17", "16"]
    assert slate.items == ask(bundle, Question(k=3)).items


def test_a_given_history_is_enough(bundle: Bundle) -> None:
    slate = ask(bundle, Question(history=("1", "3"), k=5))
    assert parities(slate) == {1}
    assert not slate.known_user
    assert not {"1", "3"} & {item.item_id for item in slate.items}


def test_a_given_history_is_newer_than_the_known_one(bundle: Bundle) -> None:
    switched = Question(user_id="u0", history=tuple(str(i) for i in range(1, 18, 2)), k=4, exclude_seen=False)
    assert parities(ask(bundle, switched)) == {1}


def test_unknown_items_of_the_history_are_counted_and_change_nothing(bundle: Bundle) -> None:
    plain = ask(bundle, Question(history=("1", "3"), k=5))
    noisy = ask(bundle, Question(history=("ghost", "1", "3", ""), k=5))
    assert noisy.ignored == {"unknown_items": 2}
    assert noisy.items == plain.items


def test_a_cold_item_is_found_by_its_text_for_everybody(bundle: Bundle) -> None:
    for user in (None, "u0", "u1", "nobody"):
        slate = ask(bundle, Question(user_id=user, query="yellow submarine", k=3))
        assert slate.items[0].item_id == COLD


def test_a_query_steers_a_user_and_the_user_settles_the_rest(bundle: Bundle) -> None:
    slate = ask(bundle, Question(user_id="u0", query="white", k=3))
    assert parities(slate) == {1}
    both = ask(bundle, Question(user_id="u0", query="square of the board", k=3))
    assert parities(both) == {0}


def test_without_a_stream_text_answers(store: Registry, tmp_path: Path) -> None:
    bundle = load_bundle(store, stream_store=tmp_path)
    slate = ask(bundle, Question(user_id="u0", history=("1", "3"), k=5))
    assert not slate.known_user
    assert parities(slate) == {1}
    assert len(ask(bundle, Question(k=5)).items) == 5


def test_more_than_there_is(bundle: Bundle) -> None:
    assert len(ask(bundle, Question(user_id="u0", k=500)).items) == 16
    assert ask(bundle, Question(history=tuple(str(i) for i in range(20)), k=5)).items == ()


def test_equal_scores_come_in_catalogue_order(store: Registry, tmp_path: Path) -> None:
    bundle = load_bundle(store, stream_store=tmp_path)
    assert [item.item_id for item in ask(bundle, Question(k=4)).items] == ["0", "1", "2", "3"]


histories = st.lists(st.integers(0, 22).map(str), max_size=30).map(tuple)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    user=st.sampled_from([None, "u0", "u1", "nobody"]),
    history=histories,
    query=st.sampled_from([None, "yellow submarine", "black"]),
    k=st.integers(1, 25),
    exclude=st.booleans(),
)
def test_reasons_add_up_and_change_nothing(
    bundle: Bundle, user: str | None, history: tuple[str, ...], query: str | None, k: int, exclude: bool
) -> None:
    plain = ask(bundle, Question(user, history, query, k, exclude))
    explained = ask(bundle, Question(user, history, query, k, exclude, explain=True))
    assert [(i.item_id, i.score) for i in plain.items] == [(i.item_id, i.score) for i in explained.items]
    assert len({item.item_id for item in plain.items}) == len(plain.items)
    assert all(not item.reasons for item in plain.items)
    for item in explained.items:
        assert sum(reason.weight for reason in item.reasons) == pytest.approx(item.score, abs=1e-9)
        assert all(np.isfinite(reason.weight) for reason in item.reasons)


def test_reasons_name_the_liked_items_of_the_same_colour(bundle: Bundle) -> None:
    slate = ask(bundle, Question(history=("1", "2"), k=16, explain=True))
    for item in slate.items:
        if item.item_id == COLD:
            continue
        named = [reason.text for reason in item.reasons if reason.kind == "because-you-liked"]
        assert named == [f"Square {1 if int(item.item_id) % 2 else 2}"]


def test_what_a_liked_item_adds_is_exact(bundle: Bundle) -> None:
    """The slow twin: each member is a sum over the history, so its z-score falls apart into one term an item."""
    history, row = np.array([1, 2, 4]), 6
    question = Question(history=("1", "2", "4"), k=17, explain=True)
    item = next(item for item in ask(bundle, question).items if item.item_id == str(row))
    eligible = [i for i in range(20) if i not in history]
    warm = [i for i in eligible if bundle.counts[i]]
    assert bundle.stream is not None
    snapshot, vectors = bundle.stream.snapshot, bundle.model.item_vectors.astype(np.float64)
    fade = np.exp(-np.array([2.0, 1.0, 0.0]) / 10.0)
    raw = snapshot.scores(history).astype(np.float64)[warm]
    summed = fade @ vectors[history]
    likeness = (vectors[eligible] @ summed) / np.linalg.norm(summed)
    weights = DEFAULT_TABLE.weights(3)
    expected = {}
    for position, liked in enumerate(history):
        by_factors = [snapshot.item_factors[i] @ snapshot.history_factors[liked] for i in range(20)]
        by_text = [vectors[i] @ vectors[liked] for i in range(20)]
        expected[f"Square {liked}"] = fade[position] * (
            weights.factors
            * (by_factors[row] - np.mean([by_factors[i] for i in warm]))
            / np.sqrt(fade.sum())
            / raw.std()
            + weights.text
            * (by_text[row] - np.mean([by_text[i] for i in eligible]))
            / np.linalg.norm(summed)
            / likeness.std()
        )
    named = {reason.text: reason.weight for reason in item.reasons if reason.kind == "because-you-liked"}
    assert set(named) == {"Square 2", "Square 4"}
    assert named == pytest.approx({title: expected[title] for title in named}, rel=1e-4)


def test_the_policy_is_deterministic_and_says_so(bundle: Bundle) -> None:
    slates = [ask(bundle, Question(user_id="u0", query="square", k=5)) for _ in range(3)]
    assert slates[0] == slates[1] == slates[2]
    assert {item.propensity for item in slates[0].items} == {1.0}


def test_similar_items(bundle: Bundle) -> None:
    found = similar(bundle, "1", 8)
    assert {int(item.item_id) % 2 for item in found.items} == {1}
    assert found.items[0].score == pytest.approx(1.0, abs=1e-5)
    assert "1" not in {item.item_id for item in found.items}
    with pytest.raises(UnknownItem, match="no item 'ghost'"):
        similar(bundle, "ghost", 3)
    with pytest.raises(InvalidSetting, match="k = 0"):
        similar(bundle, "1", 0)


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: Question(k=0), "k = 0; expected 1 to 500"),
        (lambda: Question(k=10**9), "k = 1000000000"),
        (lambda: Question(k=-1), "k = -1"),
        (lambda: Question(user_id=""), "a user id of 0 characters"),
        (lambda: Question(user_id="x" * 513), "a user id of 513"),
        (lambda: Question(history=("1",) * (MAX_HISTORY + 1)), "a history of 1001 items"),
        (lambda: Question(query=" \n"), "an empty query"),
        (lambda: Question(query="x" * (MAX_QUERY + 1)), "a query of 100001 characters"),
        (lambda: Question(query="\ud800"), "surrogate"),
    ],
)
def test_questions_out_of_range_are_refused(build: object, named: str) -> None:
    assert callable(build)
    with pytest.raises(InvalidSetting, match=named):
        build()


def test_the_payload_has_reasons_only_when_asked(bundle: Bundle) -> None:
    question = Question(user_id="u0", k=1)
    slate = ask(bundle, question)
    assert set(slate_payload(slate, explain=False)["items"][0]) == {"item_id", "rank", "score", "propensity", "title"}
    assert slate_payload(slate, explain=True)["items"][0]["reasons"] == ()
