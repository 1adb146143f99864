"""What a data set is, once it is read: items and interactions, whatever the source."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from common.errors import EmptyData
from common.events import Interaction
from common.items import Catalogue


@dataclass(frozen=True, slots=True)
class Dataset:
    """Items and what users did with them.

    Parameters
    ----------
    name
        As given on the command line.
    catalogue
        All items, in a fixed order.
    interactions
        In order of event time (ties keep the source's order).
    licence
        One line.
    source
        Where it came from, one line.
    dropped
        Reason to the number of source rows left out for it.
    """

    name: str
    catalogue: Catalogue
    interactions: tuple[Interaction, ...]
    licence: str
    source: str = ""
    dropped: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.interactions:
            raise EmptyData(f"data set {self.name!r} has no interaction", expected="at least one")


def in_time_order(interactions: list[Interaction]) -> tuple[Interaction, ...]:
    """Return the interactions by event time; ties keep the order they came in."""
    return tuple(sorted(interactions, key=lambda event: event.ts))
