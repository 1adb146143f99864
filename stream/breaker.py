"""Stops a worker that can read hardly anything, before it has drained the topic into the dead letters.

Records are counted in windows. A window begins after a checkpoint, or after a full window that was well. As soon as
more of a window is bad than its share allows, however the rest of it will be, the breaker has tripped: the worker ends
without a checkpoint, so no offset moves past the window's beginning and none of its dead letters is sent. After
mending, all of its records are read again.

A window that is worse than the share so far holds the next checkpoint back, else a slow stream would never fill one;
but for `HOLD_S` seconds at most. What comes slower than that fills dead letters slowly enough to be seen.
"""

from collections import Counter

from common.errors import InvalidSetting, TooManyBadRecords
from stream.state import Outcome

HOLD_S = 60.0
_SUSPECT = 3
"""So many bad records hold a checkpoint back; fewer are not worth a wait."""
_SHOWN = 3


class Breaker:
    """Counts bad records.

    Parameters
    ----------
    share
        How much of a window may be bad; 1 never trips.
    window
        Records in a window.

    Examples
    --------
    >>> from stream.breaker import Breaker
    >>> from stream.state import Outcome
    >>> breaker = Breaker(0.5, 10)
    >>> for _ in range(6):
    ...     breaker.count(Outcome("dead", "MalformedEvent", "no JSON"))
    >>> breaker.tripped
    True
    """

    def __init__(self, share: float, window: int) -> None:
        if not 0 <= share <= 1 or window < 1:
            raise InvalidSetting(f"bad share {share}, window {window}", expected="0 to 1, and 1 or more")
        self._share, self._window = share, window
        self._seen = self._bad = 0
        self._reasons: Counter[str] = Counter()

    @property
    def tripped(self) -> bool:
        """Whether more of the window is bad than may be."""
        return self._bad > self._share * self._window

    @property
    def suspects(self) -> bool:
        """Whether the window is worse than may be so far."""
        return self._bad >= _SUSPECT and self._bad > self._share * self._seen

    def count(self, outcome: Outcome) -> None:
        """Take one record into account."""
        if self._seen == self._window and not self.tripped:
            self.begin()
        self._seen += 1
        if outcome.kind == "dead":
            self._bad += 1
            self._reasons[f"{outcome.error}: {outcome.reason}"[:160]] += 1

    def begin(self) -> None:
        """Begin a new window: what was read so far is stored."""
        self._seen = self._bad = 0
        self._reasons.clear()

    def refusal(self, topic: str, begins: str) -> TooManyBadRecords:
        """Return the error that ends the worker; `begins` says from where it will read again."""
        most = self._reasons.most_common(_SHOWN)
        shown = "; ".join(f"{count} times {reason}" for reason, count in most)
        rest = len(self._reasons) - len(most)
        return TooManyBadRecords(
            f"{self._bad} of {self._seen} records of {topic} cannot be read ({shown}"
            f"{f'; and {rest} other reasons' if rest else ''})",
            expected=f"at most {self._share:.0%} of {self._window}",
            consequence=f"the worker stopped, nothing since the last checkpoint is kept: it will read on from {begins}",
            mend="correct what sends them, or learn with a version that reads them, then start again;"
            " --bad-share 1 sends every bad record to the dead letters and goes on",
        )
