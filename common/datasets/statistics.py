"""What a data set holds, in numbers."""

from dataclasses import dataclass

from common.datasets.base import Dataset
from common.settings import is_positive


@dataclass(frozen=True, slots=True)
class DatasetStatistics:
    """Counts over one data set.

    Parameters
    ----------
    users
        Distinct users that did anything.
    items
        Items of the catalogue, touched or not.
    interactions
        All of them.
    positives
        Those that count as liking the item.
    density
        Share of the user-item pairs that occur.
    first_ts, last_ts
        Milliseconds of event time.
    items_without_text
        Items that an encoder can say nothing about.
    """

    users: int
    items: int
    interactions: int
    positives: int
    density: float
    first_ts: int
    last_ts: int
    items_without_text: int


def statistics_of(dataset: Dataset) -> DatasetStatistics:
    """Count."""
    events = dataset.interactions
    users = len({event.user_id for event in events})
    pairs = len({(event.user_id, event.item_id) for event in events})
    return DatasetStatistics(
        users=users,
        items=len(dataset.catalogue),
        interactions=len(events),
        positives=sum(map(is_positive, events)),
        density=pairs / (users * len(dataset.catalogue)),
        first_ts=events[0].ts,
        last_ts=events[-1].ts,
        items_without_text=sum(not item.text.strip() for item in dataset.catalogue),
    )
