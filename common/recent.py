"""What a user did since a snapshot of the stream learner was taken."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Recent:
    """The events of one user that a snapshot does not hold, by item id.

    Parameters
    ----------
    liked
        Oldest first, repeats included.
    tried
        Liked, or rated without liking, oldest first.
    rejected
        Skipped, sent back or rated low, and not liked since.
    """

    liked: tuple[str, ...] = ()
    tried: tuple[str, ...] = ()
    rejected: tuple[str, ...] = ()


NOTHING = Recent()


class RecentEvents(Protocol):
    """Where an edge finds what happened since the snapshot that it serves."""

    def since(self, user_id: str, offsets: Mapping[str, Mapping[str, int]]) -> Recent:
        """Return the user's events at or above the offsets (topic to partition, as text, to the next offset)."""
        ...

    def lag(self) -> int | None:
        """Return how many records of the topic are not read yet, or None while no broker answers."""
        ...
