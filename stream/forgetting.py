"""What is kept of the past and gained for the future: quality by window of training and by window of test.

The likes are cut into windows of equal size. Some of each are held out and never taught; after every window all of
them are asked, those of windows to come included. Each question brings the history that its user had at the time, so
that a cell differs from the one above it by what was learned in between, and by nothing else.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from common.errors import EmptyData, InvalidSetting
from common.events import Interaction
from common.ids import stable_hash
from common.progress import Progress, silent
from common.settings import Feedback, feedback_of
from stream.learner.kernels import rank_among

RULES: Mapping[str, str] = {
    "candidates": "every item liked at least once in the data, known from the start, without the user's other likes",
    "query": "what the user had liked of the taught likes before the held-out one, whatever the window of training",
    "ties": "against the model: an equal score ranks above the target",
    "held_out": "by a hash of seed, user and item, so a pair is taught always or never",
}


class Student(Protocol):
    """Whatever can score all candidates for a history, and learn from an event."""

    def start(self, items: Sequence[str]) -> None:
        """Take the candidates, in the order of their rows."""
        ...

    def scores(self, user: str, history: Sequence[str]) -> np.ndarray:
        """Return the score of every candidate, float32 [n]; the history is oldest first."""
        ...

    def learn(self, event: Interaction, feedback: Feedback) -> None:
        """Learn one event of any kind."""
        ...

    def end_window(self) -> None:
        """Note that a window of training is over."""
        ...


@dataclass(frozen=True, slots=True)
class ForgettingSettings:
    """How windows are cut and asked.

    Parameters
    ----------
    windows
        How many.
    every
        One in so many likes is held out.
    k
        Length of the lists.
    repeats
        Whether items that the user liked elsewhere in the data may be in the list.
    seed
        Of the choice of what is held out.
    """

    windows: int = 5
    every: int = 5
    k: int = 10
    repeats: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.windows < 2 or self.every < 2 or self.k < 1:
            raise InvalidSetting(
                f"windows {self.windows}, every {self.every}, k {self.k}", expected="2 or more, 2 or more, 1 or more"
            )


@dataclass(frozen=True, slots=True)
class Question:
    """A like that nobody is taught: user and item, its window, and how many taught likes of the user came before."""

    user: str
    item: str
    window: int
    before: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Who is taught what, and asked what.

    Parameters
    ----------
    lessons
        The events of each window, in order, held-out likes left out.
    questions
        In order.
    taught, liked
        User to the items taught, in order and with repeats, and to all items liked.
    items
        The candidates.
    bounds
        First and last time of the likes of each window, in milliseconds.
    """

    lessons: tuple[tuple[tuple[Interaction, Feedback], ...], ...]
    questions: tuple[Question, ...]
    taught: Mapping[str, Sequence[str]]
    liked: Mapping[str, frozenset[str]]
    items: tuple[str, ...]
    bounds: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Examination:
    """All answers; w windows, e questions, n candidates.

    Parameters
    ----------
    ranks
        Student to the rank of each question's item after so many windows, from 0 on, int32 [w + 1, e].
    exposures
        Student to how often each candidate was in a list after the last window, int64 [n].
    us_per_event
        Student to microseconds an answer and a lesson.
    user, window
        Number of the user, and window, of each question, int64 [e].
    plan
        What was asked and taught.
    k
        Length of the lists.
    """

    ranks: Mapping[str, np.ndarray]
    exposures: Mapping[str, np.ndarray]
    us_per_event: Mapping[str, float]
    user: np.ndarray
    window: np.ndarray
    plan: Plan
    k: int


def plan_of(events: Sequence[Interaction], settings: ForgettingSettings) -> Plan:
    """Cut the events into windows of equally many likes, and choose what is held out.

    Raises
    ------
    EmptyData
        When a window has nothing to teach or nothing to ask.
    """
    judged = [(event, feedback_of(event)) for event in events]
    likes = sum(feedback.sign > 0 for _, feedback in judged)
    items = tuple(dict.fromkeys(event.item_id for event, feedback in judged if feedback.sign > 0))
    known, number = set(items), 0
    lessons: list[list[tuple[Interaction, Feedback]]] = [[] for _ in range(settings.windows)]
    times: list[list[int]] = [[] for _ in range(settings.windows)]
    taught: dict[str, list[str]] = {}
    liked: dict[str, set[str]] = {}
    questions: dict[tuple[str, str], Question] = {}
    for event, feedback in judged:
        window = min(number * settings.windows // max(likes, 1), settings.windows - 1)
        if feedback.sign <= 0:
            if event.item_id in known:
                lessons[window].append((event, feedback))
            continue
        user, item, number = event.user_id, event.item_id, number + 1
        liked.setdefault(user, set()).add(item)
        times[window].append(event.ts)
        before = taught.setdefault(user, [])
        if stable_hash(settings.seed, "held-out", user, item) % settings.every == 0:
            questions.setdefault((user, item), Question(user, item, window, len(before)))
        else:
            before.append(item)
            lessons[window].append((event, feedback))
    for window, part in enumerate(lessons):
        asked = any(question.window == window for question in questions.values())
        if not asked or not any(feedback.sign > 0 for _, feedback in part):
            raise EmptyData(
                f"nothing to teach or nothing to ask in window {window + 1} of {settings.windows}, of {likes} likes",
                expected="both",
                mend="ask for fewer windows",
            )
    return Plan(
        lessons=tuple(tuple(part) for part in lessons),
        questions=tuple(questions.values()),
        taught=taught,
        liked={user: frozenset(found) for user, found in liked.items()},
        items=items,
        bounds=tuple((min(part), max(part)) for part in times),
    )


class _Hall:
    """One student's examination."""

    def __init__(self, student: Student, plan: Plan, settings: ForgettingSettings) -> None:
        self.student, self.plan, self.settings = student, plan, settings
        self.rows = {item: row for row, item in enumerate(plan.items)}
        self.seconds = {"answers": 0.0, "lessons": 0.0}
        self.counts = {"answers": 0, "lessons": 0}
        self.exposures = np.zeros(len(plan.items), dtype=np.int64)
        student.start(plan.items)

    def ask(self) -> np.ndarray:
        """Return the rank of every question's item, int32 [e]."""
        ranks = np.empty(len(self.plan.questions), dtype=np.int32)
        self.exposures[:] = 0
        for place, question in enumerate(self.plan.questions):
            history = self.plan.taught[question.user][: question.before]
            others = () if self.settings.repeats else self.plan.liked[question.user] - {question.item}
            hidden = np.fromiter((self.rows[item] for item in others), dtype=np.int64)
            started = time.perf_counter()
            scores = self.student.scores(question.user, history)
            rank, best = rank_among(scores, hidden, self.rows[question.item], self.settings.k)
            self.seconds["answers"] += time.perf_counter() - started
            ranks[place] = rank
            self.exposures[best[best >= 0]] += 1
        self.counts["answers"] += len(ranks)
        return ranks

    def teach(self, window: int) -> None:
        """Teach one window."""
        started = time.perf_counter()
        for event, feedback in self.plan.lessons[window]:
            self.student.learn(event, feedback)
        self.student.end_window()
        self.seconds["lessons"] += time.perf_counter() - started
        self.counts["lessons"] += len(self.plan.lessons[window])

    @property
    def us_per_event(self) -> float:
        """Microseconds an answer and a lesson, compilation included."""
        return sum(1e6 * seconds / max(self.counts[kind], 1) for kind, seconds in self.seconds.items())


def examine(
    events: Sequence[Interaction],
    students: Mapping[str, Callable[[], Student]],
    settings: ForgettingSettings,
    *,
    progress: Progress = silent,
) -> Examination:
    """Ask every question before the first window and after each, of one student after the other.

    Parameters
    ----------
    events
        In the order in which they are to be learned.
    students
        Name to what makes a fresh one.
    settings
        How.
    progress
        Told how far it is.

    Raises
    ------
    EmptyData
        When a window has nothing to teach or nothing to ask.
    """
    plan, done = plan_of(events, settings), 0
    ranks: dict[str, np.ndarray] = {}
    exposures: dict[str, np.ndarray] = {}
    costs: dict[str, float] = {}
    for name, make in students.items():
        hall = _Hall(make(), plan, settings)
        answers = [hall.ask()]
        for window in range(settings.windows):
            hall.teach(window)
            answers.append(hall.ask())
            done += 1
            progress("windows", done, settings.windows * len(students))
        ranks[name], exposures[name], costs[name] = np.stack(answers), hall.exposures, hall.us_per_event
    users = {user: number for number, user in enumerate(plan.liked)}
    return Examination(
        ranks=ranks,
        exposures=exposures,
        us_per_event=costs,
        user=np.array([users[question.user] for question in plan.questions], dtype=np.int64),
        window=np.array([question.window for question in plan.questions], dtype=np.int64),
        plan=plan,
        k=settings.k,
    )
