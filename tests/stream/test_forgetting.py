"""The examination window by window: what is taught and asked, known answers, and its figures by hand."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import EmptyData, InvalidSetting
from common.events import Interaction
from common.settings import Feedback
from stream.forgetting import Examination, ForgettingSettings, Plan, examine, plan_of
from stream.learner.mf import MF
from stream.learner.popularity import Popularity
from stream.students import FineTuned, Frozen, Live, Refitted
from stream.transfer import coefficients, differences, forgetting_of, matrix_of, row_of, weighed
from tests.oracles.transfer import matrix, measures


def liked(*pairs: tuple[str, str]) -> list[Interaction]:
    return [
        Interaction(event_id=str(n), user_id=user, item_id=item, action="click", ts=1_000 * n)
        for n, (user, item) in enumerate(pairs)
    ]


def some_likes(count: int, seed: int = 0) -> list[Interaction]:
    rng = np.random.default_rng(seed)
    return liked(*((f"u{rng.integers(12)}", f"i{rng.integers(30)}") for _ in range(count)))


class Notebook:
    """Writes down what it is taught and asked; scores an item by how often it was taught."""

    def __init__(self) -> None:
        self.taught: list[tuple[str, str]] = []
        self.asked: list[tuple[int, str, tuple[str, ...]]] = []
        self.ended: list[int] = []

    def start(self, items: Sequence[str]) -> None:
        self.items = list(items)

    def scores(self, user: str, history: Sequence[str]) -> np.ndarray:
        self.asked.append((len(self.taught), user, tuple(history)))
        counts = [sum(item == other for _, other in self.taught) for item in self.items]
        return np.array(counts, dtype=np.float32)

    def learn(self, event: Interaction, feedback: Feedback) -> None:
        self.taught.append((event.user_id, event.item_id))

    def end_window(self) -> None:
        self.ended.append(len(self.taught))


def test_what_is_held_out_is_never_taught_and_asked_after_every_window() -> None:
    events, notebook = some_likes(400), Notebook()
    found = examine(events, {"it": lambda: notebook}, ForgettingSettings(windows=4, every=5))
    plan = found.plan
    asked = {(question.user, question.item) for question in plan.questions}
    assert asked.isdisjoint(notebook.taught)
    assert asked | set(notebook.taught) == {(event.user_id, event.item_id) for event in events}
    assert found.ranks["it"].shape == (5, len(asked))
    assert len(notebook.ended) == 4
    assert 0.1 < len(asked) / len({(event.user_id, event.item_id) for event in events}) < 0.3
    # the same questions with the same histories in every state, and each history is what came before
    by_state = [
        [(user, history) for taught, user, history in notebook.asked if taught == end] for end in (0, *notebook.ended)
    ]
    assert all(state == by_state[0] for state in by_state)
    for question, (user, history) in zip(plan.questions, by_state[0], strict=True):
        when = next(e.ts for e in events if (e.user_id, e.item_id) == (question.user, question.item))
        before = [e.item_id for e in events if e.user_id == user and e.ts < when and (user, e.item_id) not in asked]
        assert list(history) == before


def test_windows_have_equally_many_likes_and_the_choice_is_by_hash() -> None:
    events = some_likes(400)
    plan = plan_of(events, ForgettingSettings(windows=4))
    firsts = {(q.user, q.item): q.window for q in plan.questions}
    for place, event in enumerate(events):
        pair = (event.user_id, event.item_id)
        if pair in firsts:
            earliest = next(n for n, e in enumerate(events) if (e.user_id, e.item_id) == pair)
            assert firsts[pair] == earliest // 100
        else:
            assert any(lesson is event for lesson, _ in plan.lessons[place // 100])
    some = plan_of(events[:200], ForgettingSettings(windows=2))
    assert {(q.user, q.item) for q in some.questions} <= {(q.user, q.item) for q in plan.questions}
    other = plan_of(events, ForgettingSettings(windows=4, seed=1))
    assert {(q.user, q.item) for q in other.questions} != {(q.user, q.item) for q in plan.questions}
    assert plan.bounds[0] == (0, 99_000)


def test_dislikes_are_lessons_and_never_questions() -> None:
    events = some_likes(200)
    disliked = Interaction(event_id="x", user_id="u1", item_id="i1", action="skip", ts=1)
    unknown = Interaction(event_id="y", user_id="u1", item_id="never liked", action="skip", ts=1)
    plan = plan_of([*events[:50], disliked, unknown, *events[50:]], ForgettingSettings(windows=2))
    assert any(event is disliked for event, _ in plan.lessons[0])
    assert all(event is not unknown for part in plan.lessons for event, _ in part)
    assert len(plan.questions) == len(plan_of(events, ForgettingSettings(windows=2)).questions)


def test_ranks_are_among_what_the_user_never_liked() -> None:
    events = some_likes(300)
    for repeats in (False, True):
        found = examine(events, {"it": Notebook}, ForgettingSettings(windows=3, repeats=repeats))
        taught: list[str] = []
        for state in range(4):
            counts = {item: taught.count(item) for item in found.plan.items}
            for place, question in enumerate(found.plan.questions):
                others = set() if repeats else found.plan.liked[question.user]
                rivals = set(found.plan.items) - others - {question.item}
                rank = 1 + sum(counts[item] >= counts[question.item] for item in rivals)
                assert found.ranks["it"][state, place] == rank
            if state < 3:
                taught += [event.item_id for event, _ in found.plan.lessons[state]]


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"windows": 1}, "windows 1"), ({"every": 1}, "every 1"), ({"k": 0}, "k 0")],
)
def test_impossible_settings_are_named(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidSetting, match=named):
        ForgettingSettings(**settings)


def test_too_many_windows_for_the_data_are_refused() -> None:
    with pytest.raises(EmptyData, match="window 2 of 9, of 10 likes"):
        plan_of(some_likes(10), ForgettingSettings(windows=9))
    with pytest.raises(EmptyData, match="of 0 likes"):
        plan_of([], ForgettingSettings())


def test_the_frozen_one_learns_the_first_window_only() -> None:
    events, inner = some_likes(300), Notebook()
    found = examine(
        events,
        {"frozen": lambda: Frozen(inner), "live": Notebook},
        ForgettingSettings(windows=3),
    )
    first = [(event.user_id, event.item_id) for event, _ in found.plan.lessons[0]]
    assert inner.taught == first
    assert np.array_equal(found.ranks["frozen"][1], found.ranks["live"][1])
    assert np.array_equal(found.ranks["frozen"][1], found.ranks["frozen"][3])
    assert row_of(found, "frozen")["backward"]["value"] == 0.0


def test_the_refitted_one_knows_a_window_at_its_end() -> None:
    together = [(f"u{n}", item) for n in range(40) for item in ("tea", "cake", "jam")]
    student = Refitted()
    student.start(["tea", "cake", "jam", "nail"])
    for event in liked(*together):
        student.learn(event, Feedback(1, 1.0))
    assert not student.scores("u0", ["tea"]).any()
    student.end_window()
    assert student.scores("stranger", ["tea"]).argmax() in (1, 2)
    assert student.scores("stranger", ["tea"])[3] == 0.0


def test_the_figures_of_known_answers() -> None:
    """Ranks made up so that the first window is forgotten and the last one foreseen."""
    ranks = np.array([[99, 99, 99, 99], [1, 1, 99, 99], [99, 1, 1, 99], [99, 1, 99, 1]]).astype(np.int32)
    # windows: two questions, one, one
    found = _examination({"it": ranks}, np.array([0, 0, 1, 2]), users=[0, 1, 2, 3])
    assert matrix_of(found, "it").tolist() == [[0, 0, 0], [1, 0, 0], [0.5, 1, 0], [0.5, 0, 1]]
    row = row_of(found, "it")
    assert row["average"]["value"] == pytest.approx(0.5)
    assert row["plasticity"]["value"] == pytest.approx(1.0)
    assert row["backward"]["value"] == pytest.approx((-0.5 - 1.0) / 2)
    assert row["forward"]["value"] == 0.0
    assert row["forgetting"] == pytest.approx(0.75)
    assert row["matrix"][0] == [1.0, 0.0, 0.0]


@given(st.integers(2, 5), st.integers(0, 1_000))
def test_the_figures_are_those_of_the_paper(windows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    window = np.concatenate([np.arange(windows), rng.integers(windows, size=20)])
    ranks = rng.integers(1, 25, size=(windows + 1, len(window))).astype(np.int32)
    found = _examination({"it": ranks, "other": ranks[::-1]}, window, users=list(rng.integers(6, size=len(window))))
    slowly = matrix(ranks, window, 10)
    np.testing.assert_allclose(matrix_of(found, "it"), slowly)
    row, told = row_of(found, "it"), measures(slowly)
    assert {name: row[name]["value"] for name in told} == pytest.approx(told)
    other = measures(matrix(ranks[::-1], window, 10))
    apart = differences(found, "it")["other"]
    assert {name: apart[name]["value"] for name in told} == pytest.approx({n: told[n] - other[n] for n in told})


def test_the_interval_is_that_of_a_bootstrap_over_users() -> None:
    rng = np.random.default_rng(3)
    user = rng.integers(60, size=2_000)
    window = rng.integers(3, size=2_000)
    taste = rng.random(60)
    ranks = np.where(rng.random((4, 2_000)) < taste[user] * np.array([[0.1], [0.5], [0.7], [0.6]]), 1, 99)
    found = _examination({"it": ranks.astype(np.int32)}, window, users=list(user))
    hits = ranks <= 10
    for weights in coefficients(3).values():
        low, high = weighed(found, hits, weights).ci95
        drawn = []
        for _ in range(600):
            taken = np.concatenate([np.flatnonzero(user == u) for u in rng.integers(60, size=60)])
            cells = np.stack([hits[:, taken][:, window[taken] == n].mean(axis=1) for n in range(3)], axis=1)
            drawn.append(float((weights * cells).sum()))
        half = 1.96 * float(np.std(drawn))
        assert (high - low) / 2 == pytest.approx(half, rel=0.15)


def test_one_user_gives_no_interval_worth_the_name() -> None:
    found = _examination({"it": np.array([[9, 9], [1, 9], [1, 1]], dtype=np.int32)}, np.array([0, 1]), users=[5, 5])
    assert weighed(found, found.ranks["it"] <= 1, coefficients(2)["average"]).ci95 == (-1.0, 1.0)


def test_nothing_falls_that_only_rose() -> None:
    assert forgetting_of(np.array([[0.0, 0.0], [0.2, 0.1], [0.4, 0.3]])) == pytest.approx(-0.2)


def test_learners_get_the_history_of_the_question() -> None:
    ranker = MF(n_factors=8, negatives=4)
    student = Live(ranker)
    student.start([f"i{n}" for n in range(30)])
    for event in some_likes(200):
        student.learn(event, Feedback(1, 1.0))
    assert np.array_equal(student.scores("u1", ["i3", "i4"]), ranker.scores("stranger", ["i3", "i4"]))
    assert not np.array_equal(student.scores("u1", ["i3", "i4"]), ranker.scores("u1"))
    tuned = FineTuned()
    tuned.start([f"i{n}" for n in range(30)])
    for event in some_likes(100):
        tuned.learn(event, Feedback(1, 1.0))
    assert np.array_equal(tuned.scores("u1", ["i3"]), tuned.scores("u1", []))


def test_students_of_popularity_rank_alike() -> None:
    events = some_likes(300)
    settings = ForgettingSettings(windows=3)
    found = examine(events, {"pop": lambda: Live(Popularity()), "book": Notebook}, settings)
    assert np.array_equal(found.ranks["pop"], found.ranks["book"])


def _examination(ranks: dict[str, np.ndarray], window: np.ndarray, users: list[int]) -> Examination:
    return Examination(
        ranks=ranks,
        exposures={name: np.array([1, 0]) for name in ranks},
        us_per_event=dict.fromkeys(ranks, 1.0),
        user=np.array(users, dtype=np.int64),
        window=window,
        plan=Plan((), (), {}, {}, ("a", "b"), ()),
        k=10,
    )
