"""What a stream worker tells whoever watches it; `Unwatched` listens to nothing."""

from collections.abc import Mapping
from typing import Protocol

from stream.state import Outcome


class Meter(Protocol):
    """Watches a stream worker. Nothing it does may change what is learned."""

    def applied(self, outcome: Outcome, seconds: float) -> None:
        """Take note of one applied record, and of the seconds of wall time that it took."""

    def polled(self, behind: Mapping[int, int]) -> None:
        """Take note of how many offsets are ahead in each partition."""

    def alarms(self, count: int) -> None:
        """Take note of the drift alarms so far."""

    def checkpointed(self, seconds: float, size: int) -> None:
        """Take note of a checkpoint: the seconds it took, and the bytes of its state."""

    def assigned(self, partitions: int) -> None:
        """Take note of an assignment: the worker reads so many partitions from now on."""


class Unwatched:
    """The meter of a worker that nobody watches."""

    def applied(self, outcome: Outcome, seconds: float) -> None:
        """Do nothing."""

    def polled(self, behind: Mapping[int, int]) -> None:
        """Do nothing."""

    def alarms(self, count: int) -> None:
        """Do nothing."""

    def checkpointed(self, seconds: float, size: int) -> None:
        """Do nothing."""

    def assigned(self, partitions: int) -> None:
        """Do nothing."""
