"""The quality gate: whether a new version may take the place of the current one.

It may not if it is worse by more than chance explains: if the 95% bootstrap interval, over users, of the difference in
recall@10 on the same events lies below zero. A version that is held back stays in the store, with the reason.
"""

from dataclasses import dataclass

import numpy as np

from server.evaluate import bootstrap


@dataclass(frozen=True, slots=True)
class Difference:
    """Recall of one model minus that of another on the same events, with its paired 95% interval over users."""

    mean: float
    ci95: tuple[float, float]

    @property
    def is_worse(self) -> bool:
        """Whether all of the interval is below zero."""
        return self.ci95[1] < 0.0

    @property
    def is_better(self) -> bool:
        """Whether all of the interval is above zero."""
        return self.ci95[0] > 0.0

    def __str__(self) -> str:
        low, high = self.ci95
        return f"{self.mean:+.4f} (95% interval {low:+.4f} to {high:+.4f})"


def difference(new: np.ndarray, old: np.ndarray, user: np.ndarray, seed: int = 0) -> Difference:
    """Compare two models by their hits at the same events.

    Parameters
    ----------
    new, old
        1.0 where the clicked item was in the first ten, float64 [e].
    user
        Number of the user of each event, int64 [e].
    seed
        Of the bootstrap.
    """
    gained = new - old
    return Difference(float(gained.mean()), bootstrap(gained, user, seed))


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a version is promoted, in comparison with which, and why."""

    promoted: bool
    reason: str
    against: str | None = None
    difference: Difference | None = None

    def as_json(self) -> dict[str, object]:
        """Return what a manifest's details and the command line say."""
        told: dict[str, object] = {"promoted": self.promoted, "reason": self.reason, "against": self.against}
        if self.difference is not None:
            told |= {"difference": self.difference.mean, "ci95": list(self.difference.ci95)}
        return told


def judge(against: str, found: Difference) -> Verdict:
    """Decide on a version that differs from version `against` in recall by `found`."""
    if found.is_worse:
        return Verdict(False, f"recall@10 is worse than that of {against}: {found}", against, found)
    word = "better than" if found.is_better else "not told apart from"
    return Verdict(True, f"recall@10 is {word} that of {against}: {found}", against, found)
