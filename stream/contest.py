"""Contenders on one stream, every rank kept: what `anabranch evaluate stream` is made of.

The contest keeps the candidates, the order of their rows and what each user has seen; a contender only scores and
learns. So all are asked exactly the same question, whatever they are made of; each goes through the stream alone, and
is timed so.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

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
    "order": "by time; each liked event is first a test and then a lesson; each row goes through all of them alone",
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
        candidates, their ranking not) and a lesson from a like take, each contender running alone; the first hundred
        (they compile) and what reading the clock takes left out.
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
    """Seconds of processor time of calls, without the first hundred: a busy machine does not make a contender slow.

    What reading the clock takes (some microseconds on virtual machines) is measured at the start and taken off.
    """

    def __init__(self) -> None:
        self.seconds, self.calls = 0.0, -100
        self.reading = statistics.median(-(time.process_time() - time.process_time()) for _ in range(101))

    def add(self, started: float) -> None:
        self.calls += 1
        if self.calls > 0:
            self.seconds += time.process_time() - started - self.reading

    @property
    def microseconds(self) -> float:
        return max(0.0, 1e6 * self.seconds / max(self.calls, 1))


class _Test(NamedTuple):
    """A question: numbers of user and candidate, how many likes each had before, and of which items the user's were.

    `inside` is 1 for a further line of a basket; the first `seen` of the user's items are seen.
    """

    user: int
    item: int
    history: int
    likes: int
    inside: int
    seen: int


class _Step(NamedTuple):
    """An event in its turn: a question before it or none, and whether it is a lesson."""

    event: Interaction
    feedback: Feedback
    test: _Test | None
    taught: bool


class _Script:
    """What every contender goes through: the steps, and what there is to know of users and candidates at each.

    `seen` has each user's liked items in the order in which they were first liked, int64, all of the stream's.
    """

    def __init__(self, judged: Sequence[tuple[Interaction, Feedback]], settings: ContestSettings) -> None:
        self.settings = settings
        liked = [event for event, feedback in judged if feedback.sign > 0]
        self.rows = {item: row for row, item in enumerate(dict.fromkeys(event.item_id for event in liked))}
        hidden = settings.hidden or frozenset()
        self.shown = np.array([row for item, row in self.rows.items() if item not in hidden], dtype=np.int64)
        self.liked, self.warm = len(liked), int(settings.warm_share * len(liked))
        self._counts = [0] * len(self.rows)
        self._users: dict[str, int] = {}
        self._seen: list[dict[int, None]] = []
        self._lengths: list[int] = []
        self._newest: list[int | None] = []
        self.steps = [step for event, feedback in judged if (step := self._step(event, feedback)) is not None]
        self.tests = [step.test for step in self.steps if step.test is not None]
        self.seen = [np.fromiter(each, dtype=np.int64) for each in self._seen]

    def _step(self, event: Interaction, feedback: Feedback) -> _Step | None:
        taught = self.settings.hidden is None or event.item_id not in self.settings.hidden
        if feedback.sign > 0:
            return _Step(event, feedback, self._like(event, taught), taught)
        return _Step(event, feedback, None, True) if taught and event.item_id in self.rows else None

    def _like(self, event: Interaction, taught: bool) -> _Test | None:
        """Note a like, and return its test where it is one."""
        row, user = self.rows[event.item_id], self._users.setdefault(event.user_id, len(self._users))
        if user == len(self._seen):
            self._seen.append({})
            self._lengths.append(0)
            self._newest.append(None)
        due, self.warm = self.warm <= 0, self.warm - 1
        may_test = self.settings.repeats or row not in self._seen[user]
        found = None
        if due and may_test and (self.settings.hidden is None or not taught):
            inside = int(self._newest[user] == event.ts)
            found = _Test(user, row, self._lengths[user], self._counts[row], inside, len(self._seen[user]))
        if taught:
            self._counts[row] += 1
            self._lengths[user] += 1
        self._seen[user][row] = None
        self._newest[user] = event.ts
        return found

    def left_out(self, test: _Test) -> np.ndarray:
        """Return the rows that nobody's list may have in a test, int64."""
        rows = self.seen[test.user][: 0 if self.settings.repeats else test.seen]
        return rows if self.settings.hidden is None else np.concatenate([rows, self.shown])


class _Course:
    """One contender's way through the script: its ranks, its lists and its times.

    Parameters
    ----------
    script
        What it goes through.
    turn, turns
        Which contender it is, of how many; for the progress.
    """

    def __init__(self, script: _Script, turn: int, turns: int) -> None:
        self._script, self._done, self._total = script, turn * script.liked, turns * script.liked
        self.ranks: list[int] = []
        self.exposures = np.zeros(len(script.rows), dtype=np.int64)
        self.answered, self.taught = _Clock(), _Clock()

    def run(self, contender: Contender, progress: Progress) -> None:
        """Let a fresh contender answer and learn, event by event."""
        contender.start(tuple(self._script.rows))
        for event, feedback, test, taught in self._script.steps:
            if test is not None:
                self._answer(contender, event, test)
            if taught:
                started = time.process_time()
                contender.learn(event, feedback)
                if feedback.sign > 0:
                    self.taught.add(started)
            if feedback.sign > 0:
                self._done += 1
                if self._done % 1000 == 0 or self._done == self._total:
                    progress("evaluating", self._done, self._total)

    def _answer(self, contender: Contender, event: Interaction, test: _Test) -> None:
        started = time.process_time()
        scores = contender.scores(event.user_id, event.ts)
        self.answered.add(started)
        rank, best = rank_among(scores, self._script.left_out(test), test.item, self._script.settings.k)
        self.ranks.append(rank)
        self.exposures[best[best >= 0]] += 1


def hold_contest(
    events: Sequence[Interaction],
    contenders: Mapping[str, Callable[[], Contender]],
    settings: ContestSettings,
    *,
    progress: Progress = silent,
) -> Trial:
    """Let contenders learn and answer on the same events, one contender after the other.

    Each goes through the whole stream alone, so none finds the processor's caches full of another's arrays: as where it
    is used. Nobody's ranks depend on who else is there.

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
    script = _Script([(event, feedback_of(event)) for event in events], settings)
    if not script.liked:
        raise EmptyData("no liked event among the events", expected="at least one")
    if not script.tests:
        raise EmptyData(f"nothing to test among {script.liked} liked events", expected="new likes after the warm part")
    courses: dict[str, _Course] = {}
    for turn, (name, make) in enumerate(contenders.items()):
        courses[name] = _Course(script, turn, len(contenders))
        courses[name].run(make(), progress)
    return _trial(script, courses)


def _trial(script: _Script, courses: Mapping[str, _Course]) -> Trial:
    columns = np.array(script.tests, dtype=np.int64).T
    return Trial(
        ranks={name: np.array(course.ranks, dtype=np.int32) for name, course in courses.items()},
        exposures={name: course.exposures for name, course in courses.items()},
        answer_us={name: course.answered.microseconds for name, course in courses.items()},
        learn_us={name: course.taught.microseconds for name, course in courses.items()},
        user=columns[0],
        item=columns[1],
        history=columns[2],
        count=columns[3],
        inside=columns[4].astype(np.bool_),
        candidates=tuple(script.rows),
        k=script.settings.k,
        learned=script.liked,
    )
