"""Learning faster for a while, after the loss rose."""

from collections.abc import Mapping

import numpy as np

from stream.learner.kernels import Rule
from stream.learner.parts import check_counts, check_rates


class Haste:
    """A factor on the rates, for a number of events after each alarm; how long yet is durable state.

    Parameters
    ----------
    boost
        The factor; 1 is off.
    events
        For how many.
    """

    def __init__(self, boost: float, events: int) -> None:
        check_rates({"drift_boost": boost})
        check_counts({"drift_events": events})
        self._boost, self._events = float(boost), events

    def fixed_arrays(self) -> dict[str, np.ndarray]:
        """Return the number of the event with which it ends; nothing where it is off."""
        return {"hasty_until": np.zeros(1, dtype=np.int64)} if self._boost != 1.0 else {}

    def wire(self, fixed: Mapping[str, np.ndarray]) -> None:
        """Take up arrays that were replaced."""
        self._until = fixed.get("hasty_until", np.zeros(1, dtype=np.int64))

    def start(self, event: int) -> None:
        """Begin, or go on for longer, at an event."""
        if self._boost != 1.0:
            self._until[0] = event + self._events

    def at(self, event: int) -> float:
        """Return the factor at an event."""
        return self._boost if event < self._until[0] else 1.0


def hastened(rule: Rule, boost: float) -> Rule:
    """Return the rule with its rates times `boost`."""
    return rule._replace(rate=np.float32(rule.rate * boost), bias_rate=np.float32(rule.bias_rate * boost))
