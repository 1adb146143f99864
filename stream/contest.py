"""Contenders side by side on one stream, every rank kept: what `anabranch evaluate stream` is made of.

The contest keeps the candidates, the order of their rows and what each user has seen; a contender only scores and
learns. So all are asked exactly the same question, whatever they are made of.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from common.errors import EmptyData, InvalidSetting
from common.events import Interaction
from common.progress import Progress, silent
from common.settings import Feedback, feedback_of, was_tried
from stream.learner.base import ArrayRanker
from stream.learner.blend import Blend
from stream.learner.content import Content
from stream.learner.kernels import rank_among
from stream.learner.mf import MF

RULES: Mapping[str, str] = {
    "candidates": "every item that is liked at least once in the data, known from the start",
    "order": "by time; each liked event is first a test and then a lesson",
    "ties": "against the model: an equal score ranks above the target",
    "same time": "events of one time (the lines of a basket) keep the order of the data; every row knows the lines "
    "before and is told the time of the question, which is the event's own",
    "new users": "a user without history is tested like any other",
    "other events": "dislikes and ratings between are lessons for those who use them, never tests; river_mf learns "
    "their stars, the blend that these items were tried, the others nothing",
}
MASKED = "an item the user liked before is learned, not tested, and left out of everybody's list"
ALLOWED = "an item the user liked before is tested too, and may be in the list"


class Contender(Protocol):
    """Whatever can score all candidates and learn from an event."""

    def start(self, items: Sequence[str]) -> None:
        """Take the candidates, in the order of their rows."""
        ...

    def scores(self, user: str, at: int | None = None) -> np.ndarray:
        """Return the score of every candidate at a time in milliseconds, float32 [n], larger is better."""
        ...

    def learn(self, event: Interaction, feedback: Feedback) -> None:
        """Learn one event of any kind."""
        ...


class Learner:
    """An `ArrayRanker` as a contender.

    Parameters
    ----------
    ranker
        A fresh one.
    texts
        Item id to text vector, told to a ranker that takes them (`Blend`, `Content`); None tells nothing.
    dislikes
        Whether it learns dislikes too.
    tries
        Whether a `Blend` is told what was rated and not liked, too (`Blend.try_one`).
    """

    def __init__(
        self,
        ranker: ArrayRanker,
        *,
        texts: Mapping[str, np.ndarray] | None = None,
        dislikes: bool = False,
        tries: bool = False,
    ) -> None:
        if texts and not isinstance(ranker, Blend | Content | MF):
            raise InvalidSetting(f"texts for a {type(ranker).__name__}", expected="a Blend, a Content or an MF")
        self.ranker, self._texts, self._dislikes = ranker, texts or {}, dislikes
        self._tries = ranker if tries and isinstance(ranker, Blend) else None

    def start(self, items: Sequence[str]) -> None:
        """Make the items candidates, and describe them.

        Raises
        ------
        InvalidSetting
            When the ranker knows items in another order.
        """
        self.ranker.add_items(items)
        if self.ranker.item_ids != tuple(items):
            raise InvalidSetting("the learner knows other items already", expected="a fresh one")
        described = [item for item in items if item in self._texts]
        if described and isinstance(self.ranker, Blend | Content | MF):
            self.ranker.describe(described, np.stack([self._texts[item] for item in described]))

    def scores(self, user: str, at: int | None = None) -> np.ndarray:
        """Return the ranker's scores; minus infinity for what it would not show the user."""
        scored = self.ranker.scores(user, at=at)
        if self._tries is not None and not self._tries.repeats:
            scored[self.ranker.seen_rows(user)] = -np.inf
        return scored

    def learn(self, event: Interaction, feedback: Feedback) -> None:
        """Learn a like, and a dislike and what else was tried where that is wanted."""
        if feedback.sign > 0 or (feedback.sign < 0 and self._dislikes):
            self.ranker.learn_one(event.user_id, event.item_id, feedback.sign * feedback.weight, {"ts": event.ts})
        if self._tries is not None and feedback.sign <= 0 and was_tried(event):
            self._tries.try_one(event.user_id, event.item_id)


@dataclass(frozen=True, slots=True)
class ContestSettings:
    """How the contest is held.

    Parameters
    ----------
    warm_share
        Share of the liked events, from the first on, that is learned only.
    k
        Length of the lists.
    repeats
        Whether items that the user liked before are tested and may be in the list.
    hidden
        Items that nobody learns, tested among themselves; None hides none.
    """

    warm_share: float = 0.2
    k: int = 10
    repeats: bool = False
    hidden: frozenset[str] | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.warm_share < 1.0 or self.k < 1:
            raise InvalidSetting(f"warm_share {self.warm_share}, k {self.k}", expected="from 0 to below 1, 1 or more")


@dataclass(frozen=True, slots=True)
class Trial:
    """All tests of a contest; e tests, n candidates.

    Parameters
    ----------
    ranks
        Contender to the target's rank in each test, from 1, int32 [e].
    exposures
        Contender to how often each candidate was in a list, int64 [n].
    answer_us, learn_us
        Contender to microseconds of processor time, all threads together, that an answer (the scores of all
        candidates, their ranking not) and a lesson take; the first hundred (they compile) left out.
    user, item
        Numbers of user and candidate, int64 [e].
    history, count
        How many likes user and item had before, int64 [e].
    inside
        Whether the user's like before is of the same time: a further line of a basket, bool [e].
    candidates
        Their ids.
    k
        Length of the lists.
    learned
        Liked events learned.
    """

    ranks: Mapping[str, np.ndarray]
    exposures: Mapping[str, np.ndarray]
    answer_us: Mapping[str, float]
    learn_us: Mapping[str, float]
    user: np.ndarray
    item: np.ndarray
    history: np.ndarray
    count: np.ndarray
    inside: np.ndarray
    candidates: tuple[str, ...]
    k: int
    learned: int


class _Clock:
    """Seconds of processor time of calls, without the first hundred: a busy machine does not make a contender slow."""

    def __init__(self) -> None:
        self.seconds, self.calls = 0.0, -100

    def add(self, started: float) -> None:
        self.calls += 1
        if self.calls > 0:
            self.seconds += time.process_time() - started

    @property
    def microseconds(self) -> float:
        return 1e6 * self.seconds / max(self.calls, 1)


class _Contest:
    """The state of one run."""

    def __init__(self, items: Sequence[str], contenders: Mapping[str, Contender], settings: ContestSettings) -> None:
        self.settings, self.contenders = settings, contenders
        self.rows = {item: row for row, item in enumerate(items)}
        hidden = settings.hidden or frozenset()
        self.shown = np.array([row for item, row in self.rows.items() if item not in hidden], dtype=np.int64)
        self.counts = np.zeros(len(items), dtype=np.int64)
        self.users: dict[str, int] = {}
        self.seen: list[dict[int, None]] = []
        self.lengths: list[int] = []
        self.newest: list[int | None] = []
        self.tests: list[tuple[int, int, int, int, int]] = []
        self.ranks: dict[str, list[int]] = {name: [] for name in contenders}
        self.exposures = {name: np.zeros(len(items), dtype=np.int64) for name in contenders}
        self.answered = {name: _Clock() for name in contenders}
        self.taught = {name: _Clock() for name in contenders}

    def like(self, event: Interaction, feedback: Feedback, due: bool) -> None:
        """Test, where it is due, then teach and note."""
        row, hidden = self.rows[event.item_id], self.settings.hidden
        user = self.users.setdefault(event.user_id, len(self.users))
        if user == len(self.seen):
            self.seen.append({})
            self.lengths.append(0)
            self.newest.append(None)
        may_test = self.settings.repeats or row not in self.seen[user]
        if due and may_test and (hidden is None or event.item_id in hidden):
            self._test(event, user, row)
        if hidden is None or event.item_id not in hidden:
            self.teach(event, feedback)
            self.counts[row] += 1
            self.lengths[user] += 1
        self.seen[user][row] = None
        self.newest[user] = event.ts

    def _test(self, event: Interaction, user: int, row: int) -> None:
        left_out = np.fromiter(() if self.settings.repeats else self.seen[user], dtype=np.int64)
        if self.settings.hidden is not None:
            left_out = np.concatenate([left_out, self.shown])
        inside = int(self.newest[user] == event.ts)
        self.tests.append((user, row, self.lengths[user], int(self.counts[row]), inside))
        for name, contender in self.contenders.items():
            started = time.process_time()
            scores = contender.scores(event.user_id, event.ts)
            self.answered[name].add(started)
            rank, best = rank_among(scores, left_out, row, self.settings.k)
            self.ranks[name].append(rank)
            self.exposures[name][best[best >= 0]] += 1

    def teach(self, event: Interaction, feedback: Feedback) -> None:
        """Let every contender learn an event."""
        for name, contender in self.contenders.items():
            started = time.process_time()
            contender.learn(event, feedback)
            if feedback.sign > 0:
                self.taught[name].add(started)

    def trial(self, learned: int) -> Trial:
        """Return everything."""
        columns = np.array(self.tests, dtype=np.int64).reshape(-1, 5).T
        return Trial(
            ranks={name: np.array(ranks, dtype=np.int32) for name, ranks in self.ranks.items()},
            exposures=self.exposures,
            answer_us={name: clock.microseconds for name, clock in self.answered.items()},
            learn_us={name: clock.microseconds for name, clock in self.taught.items()},
            user=columns[0],
            item=columns[1],
            history=columns[2],
            count=columns[3],
            inside=columns[4].astype(np.bool_),
            candidates=tuple(self.rows),
            k=self.settings.k,
            learned=learned,
        )


def hold_contest(
    events: Sequence[Interaction],
    contenders: Mapping[str, Callable[[], Contender]],
    settings: ContestSettings,
    *,
    progress: Progress = silent,
) -> Trial:
    """Let contenders learn and answer side by side, in one pass over the events.

    Parameters
    ----------
    events
        In the order in which they are to be learned.
    contenders
        Name to what makes a fresh one.
    settings
        How.
    progress
        Told how far it is.

    Raises
    ------
    EmptyData
        When nothing is liked, or nothing can be tested.
    """
    judged = [(event, feedback_of(event)) for event in events]
    liked = sum(feedback.sign > 0 for _, feedback in judged)
    if not liked:
        raise EmptyData("no liked event among the events", expected="at least one")
    items = tuple(dict.fromkeys(event.item_id for event, feedback in judged if feedback.sign > 0))
    fresh = {name: make() for name, make in contenders.items()}
    for contender in fresh.values():
        contender.start(items)
    contest, warm, done = _Contest(items, fresh, settings), int(settings.warm_share * liked), 0
    for event, feedback in judged:
        if feedback.sign > 0:
            contest.like(event, feedback, done >= warm)
            done += 1
            if done % 1000 == 0 or done == liked:
                progress("evaluating", done, liked)
        elif event.item_id in contest.rows and (settings.hidden is None or event.item_id not in settings.hidden):
            contest.teach(event, feedback)
    if not contest.tests:
        raise EmptyData(f"nothing to test among {liked} liked events", expected="new likes after the warm part")
    return contest.trial(liked)
