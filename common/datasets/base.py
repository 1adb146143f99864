"""What a data set is, once it is read: items and interactions, whatever the source."""

from dataclasses import dataclass

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
    """

    name: str
    catalogue: Catalogue
    interactions: tuple[Interaction, ...]
    licence: str

    def __post_init__(self) -> None:
        if not self.interactions:
            raise EmptyData(f"data set {self.name!r} has no interaction", expected="at least one")
