"""A data set cut for training and testing: what nodes learn from, what is tested on, which items stay hidden."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from common.datasets.base import Dataset
from common.datasets.split import global_time_split, hidden_items, partition_users, positives
from common.errors import EmptyData
from common.events import Interaction
from common.items import Catalogue
from server.evaluate import TestEvents, build_test

TRAIN_SHARE = 0.8
MIN_CLICKS = 2
"""A user needs this many training clicks to take part."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a data set.

    Parameters
    ----------
    train, test
        Positive interactions before and after one moment, in time order.
    hidden
        Items whose training interactions no node gets; they stay in the histories that are tested.
    name
        Of the data set, for messages.
    """

    train: Sequence[Interaction]
    test: Sequence[Interaction]
    hidden: frozenset[str]
    name: str

    @classmethod
    def of(cls, dataset: Dataset, hide_cold: float, seed: int) -> "Parts":
        """Cut a data set at `TRAIN_SHARE` of its positive interactions and hide about `hide_cold` of its items."""
        train, test = global_time_split(positives(dataset), TRAIN_SHARE)
        hidden = hidden_items((item.item_id for item in dataset.catalogue), hide_cold, seed)
        return cls(train, test, hidden, dataset.name)

    def visible(self) -> list[Interaction]:
        """Return the training interactions with items that are not hidden."""
        return [event for event in self.train if event.item_id not in self.hidden]

    def deal(self, nodes: int, seed: int, since: float = 0.0, until: float = 1.0) -> list[dict[str, list[Interaction]]]:
        """Give each node its users' visible interactions.

        Parameters
        ----------
        nodes, seed
            A user is always dealt to the same node, whatever the window.
        since, until
            Shares of the training part, in time order: only what lies between them is given.

        Raises
        ------
        EmptyData
            When no user has `MIN_CLICKS` of them.
        """
        by_user: dict[str, list[Interaction]] = {}
        for event in self.visible():
            by_user.setdefault(event.user_id, []).append(event)
        usable = {user: events for user, events in by_user.items() if len(events) >= MIN_CLICKS}
        begin, end = self._moment(since), self._moment(until)
        within = {user: [event for event in events if begin <= event.ts < end] for user, events in usable.items()}
        given = {user: events for user, events in within.items() if len(events) >= MIN_CLICKS}
        if not given:
            raise EmptyData(
                f"data set {self.name!r} has no user with {MIN_CLICKS} positive training interactions"
                f"{f' between {since:g} and {until:g} of the time' if (since, until) != (0.0, 1.0) else ''}",
                expected="at least one",
                mend="use more data",
            )
        dealt = partition_users(usable, nodes, seed)
        return [{user: given[user] for user in dealt[node] if user in given} for node in sorted(dealt)]

    def _moment(self, share: float) -> float:
        """Return the time before which a share of the training interactions lies."""
        place = round(share * len(self.train))
        return self.train[place].ts if 0 < place < len(self.train) else math.inf if place else -math.inf

    def clicks(self, catalogue: Catalogue) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
        """Return training (hidden items included) and test interactions as (user, item row)."""
        train, test = (
            [(event.user_id, row) for event in part if (row := catalogue.index(event.item_id)) is not None]
            for part in (self.train, self.test)
        )
        return train, test

    def hidden_rows(self, catalogue: Catalogue) -> frozenset[int]:
        """Return the item rows of the hidden items."""
        return frozenset(row for item in self.hidden if (row := catalogue.index(item)) is not None)

    def events(self, catalogue: Catalogue) -> TestEvents:
        """Return the test events.

        Raises
        ------
        EmptyData
            When there is none.
        """
        return build_test(*self.clicks(catalogue), len(catalogue), self.hidden_rows(catalogue))


def owners(dealt: Sequence[Mapping[str, object]]) -> dict[str, int]:
    """Return the node of each user."""
    return {user: node for node, users in enumerate(dealt) for user in users}
