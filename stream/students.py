"""Who takes the examination of `stream.forgetting`: learners, and what they must be compared with."""

from collections.abc import Mapping, Sequence

import numpy as np

from common.events import Interaction
from common.settings import Feedback
from stream.contest import Learner
from stream.forgetting import Student
from stream.learner.base import ArrayRanker
from stream.learner.controls import PeriodicEase, RiverMF


class Live:
    """A learner that takes every event.

    Parameters
    ----------
    ranker, texts
        As for `stream.contest.Learner`.
    """

    def __init__(self, ranker: ArrayRanker, texts: Mapping[str, np.ndarray] | None = None) -> None:
        self._learner = Learner(ranker, texts=texts)

    def start(self, items: Sequence[str]) -> None:
        """Take the candidates and their texts."""
        self._learner.start(items)

    def scores(self, user: str, history: Sequence[str]) -> np.ndarray:
        """Return the scores for the history."""
        return self._learner.ranker.scores(user, history)

    def learn(self, event: Interaction, feedback: Feedback) -> None:
        """Learn a like."""
        self._learner.learn(event, feedback)

    def end_window(self) -> None:
        """Do nothing: all is learned already."""


class Frozen:
    """A student that learns during the first window and never after: it forgets nothing, and gains nothing.

    Parameters
    ----------
    student
        Who.
    """

    def __init__(self, student: Student) -> None:
        self._student, self._open = student, True

    def start(self, items: Sequence[str]) -> None:
        """Take the candidates."""
        self._student.start(items)

    def scores(self, user: str, history: Sequence[str]) -> np.ndarray:
        """Return the scores for the history."""
        return self._student.scores(user, history)

    def learn(self, event: Interaction, feedback: Feedback) -> None:
        """Learn, in the first window."""
        if self._open:
            self._student.learn(event, feedback)

    def end_window(self) -> None:
        """Close the books."""
        self._open = False


class FineTuned:
    """river's `BiasedMF` with user rows and sampled negatives: each like one step of SGD, nothing recalled.

    It has no history to fold, so the history of a question is not asked for; its user row is what it learned so far.

    Parameters
    ----------
    seed
        Of rows and negatives.
    """

    def __init__(self, seed: int = 0) -> None:
        self._model = RiverMF(10, seed=seed)

    def start(self, items: Sequence[str]) -> None:
        """Take the candidates."""
        self._model.start(items)

    def scores(self, user: str, history: Sequence[str]) -> np.ndarray:
        """Return the scores for the user's row."""
        return self._model.scores(user)

    def learn(self, event: Interaction, feedback: Feedback) -> None:
        """Learn a like."""
        self._model.learn(event, feedback)

    def end_window(self) -> None:
        """Do nothing: all is learned already."""


class Refitted:
    """EASE, refitted on all that was taught at the end of each window: what a service that retrains would have."""

    def __init__(self) -> None:
        self._model = PeriodicEase(every=2**62)

    def start(self, items: Sequence[str]) -> None:
        """Take the candidates."""
        self._model.start(items)

    def scores(self, user: str, history: Sequence[str]) -> np.ndarray:
        """Return the scores for the history."""
        return self._model.scores_of(history)

    def learn(self, event: Interaction, feedback: Feedback) -> None:
        """Count a like."""
        self._model.learn(event, feedback)

    def end_window(self) -> None:
        """Fit anew."""
        self._model.fit()
