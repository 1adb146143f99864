"""One partition as one worker of several learns it: a state of its own, and what others add to its items."""

from collections.abc import Callable
from typing import Any

import numpy as np

from common.errors import CheckpointMismatch
from stream.breaker import Breaker
from stream.checkpoint import Checkpoint
from stream.deadletter import DeadLetters
from stream.learner.parts import Arrays
from stream.partitions import Claim, Mark
from stream.shared_items import SharedItems
from stream.state import ItemTexts, StreamState


class Shard:
    """A partition's state, from the time that its owner took it over.

    Parameters
    ----------
    claim
        The right to store it.
    state
        One that learned nothing, with the settings of all.
    letters, breaker
        For its dead letters, and against too many of them.
    found
        What it goes on from; None begins anew.
    notice
        Told what could not be taken over.
    partitions
        How many the topic has.

    Raises
    ------
    CheckpointMismatch
        When what it goes on from was made with other settings, or when the topic had fewer partitions.
    """

    def __init__(
        self,
        claim: Claim,
        state: StreamState,
        letters: DeadLetters,
        breaker: Breaker,
        found: Checkpoint | None,
        notice: Callable[[str], None],
        partitions: int,
    ) -> None:
        self.claim, self.state, self.letters, self.breaker = claim, state, letters, breaker
        self._partitions = partitions
        self.changed, self.stored_events = found is None, 0
        if found is not None:
            if found.details["partitions"] != partitions:
                raise other_partitions("the checkpoint's topic", partitions, found.details["partitions"])
            for line in state.restore(found.arrays, found.details):
                notice(line)
            self.stored_events = state.events
        self.own = {name: learner.state_arrays() for name, learner in state.progressive.contenders.items()}
        self._before, self._taken = self.own, dict[str, Arrays]()
        self._retold = False  # whether `own` says more than what was taken up and learned since

    @property
    def partition(self) -> int:
        """Its number."""
        return self.claim.partition

    def add_items(self, ids: tuple[str, ...]) -> None:
        """Make items candidates."""
        known = self.state.learner.n_items
        self.state.add_items(ids)
        self.changed |= self.state.learner.n_items > known

    def refresh_own(self, shared: SharedItems) -> None:
        """Bring `own` up to what was learned since the last total was taken up."""
        if self._retold:
            return
        for name, learner in self.state.progressive.contenders.items():
            now, taken = learner.state_arrays(), self._taken.get(name)
            self.own[name] = now if taken is None else shared.sharing[name].own(self._before[name], taken, now)

    def describe(self, shared: SharedItems, texts: ItemTexts) -> None:
        """Tell the learner newer texts; what it learned itself is carried over, and a total must be taken up next."""
        self.add_items(texts.ids)
        self.refresh_own(shared)
        contenders = self.state.progressive.contenders
        before = {name: learner.state_arrays() for name, learner in contenders.items()}
        if self.state.describe(texts):
            self.changed = self._retold = True
            for name, learner in contenders.items():
                self.own[name] = shared.sharing[name].retold(self.own[name], before[name], learner.state_arrays())

    def take_up(self, shared: SharedItems) -> None:
        """Go on with what all learned about items; `own` must be fresh, and in the total."""
        self._before, self._taken, self._retold = dict(self.own), dict(shared.total), False
        covered = self.state.progressive.state_arrays()
        for name, learner in self.state.progressive.contenders.items():
            rows = {item: row for row, item in enumerate(learner.item_ids)}
            together = shared.sharing[name].together(shared.total[name], [self.own[name]], learner.events)
            learner.load_state(together)
            covered[f"{name}.covered"] = _moved(covered[f"{name}.covered"], rows, learner.item_ids)
        self.state.progressive.load_state(covered)

    def prepare(self, shared: SharedItems, within_s: float) -> None:
        """Send the dead letters (step 1 of `stream.consumer`), and bring `own` up to date for `write`.

        Raises
        ------
        StreamError
            When a letter is not delivered: nothing may be written then.
        """
        if self.claim.holds:  # or whoever holds it sends them
            self.letters.flush(within_s)
        self.refresh_own(shared)

    def write(self, now: int) -> tuple[Mark, int] | None:
        """Write a checkpoint (step 2); nothing here is changed, so several partitions may be written at once.

        Returns
        -------
        tuple[Mark, int] | None
            Which one, and its bytes; None when somebody else owns the partition: then nothing of it counts.
        """
        return self.claim.write(self.arrays(), self.details(), now)

    def written(self, shared: SharedItems, mark: Mark) -> None:
        """Take note of a checkpoint that was written, and put it into `shared`."""
        shared.put(self.partition, mark, self.own, self.state.events)
        self.changed, self.stored_events = False, self.state.events
        self.breaker.begin()

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays of a checkpoint: the state's, but for each learner its own."""
        found = self.state.arrays_beside_learners()
        for name, own in self.own.items():
            found |= {f"{name}/{key}": array for key, array in own.items()}
        return found

    def details(self) -> dict[str, Any]:
        """Return the JSON values of a checkpoint."""
        return {**self.state.details(), "partition": self.partition, "partitions": self._partitions}


def other_partitions(what: str, found: int, expected: int) -> CheckpointMismatch:
    """Return the error of a topic whose number of partitions changed."""
    return CheckpointMismatch(
        f"{what} has {found} partitions now",
        expected=f"{expected}, as before",
        consequence="with other partitions users lie elsewhere than what is known of them; nothing was learned",
        mend="learn the topic into a new store",
    )


def _moved(covered: np.ndarray, before: dict[str, int], items: tuple[str, ...]) -> np.ndarray:
    """Return bools by item in another order; what `covered` has no room for is not covered."""
    rows = np.array([before.get(item, -1) for item in items], dtype=np.int64)
    known = (rows >= 0) & (rows < len(covered))
    moved = np.zeros(len(items), dtype=bool)
    moved[known] = covered[rows[known]]
    return moved
