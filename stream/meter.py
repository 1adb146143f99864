"""What a stream worker tells whoever watches it; `Unwatched` listens to nothing."""

from collections.abc import Mapping
from typing import Protocol

from stream.state import Outcome


class Meter(Protocol):
    """Watches a stream worker. Nothing it does may change what is learned."""

    def applied(self, outcome: Outcome, seconds: float) -> None:
        """One record was applied, in so many seconds of wall time."""

    def polled(self, behind: Mapping[int, int]) -> None:
        """Records came; so many offsets are ahead in each partition."""

    def alarms(self, count: int) -> None:
        """So many drift alarms were raised so far."""

    def checkpointed(self, seconds: float, size: int) -> None:
        """A checkpoint of `size` bytes of state was written in so many seconds."""

    def assigned(self, partitions: int) -> None:
        """The worker reads so many partitions from now on."""


class Unwatched:
    """The meter of a worker that nobody watches."""

    def applied(self, outcome: Outcome, seconds: float) -> None:
        """Nobody watches."""

    def polled(self, behind: Mapping[int, int]) -> None:
        """Nobody watches."""

    def alarms(self, count: int) -> None:
        """Nobody watches."""

    def checkpointed(self, seconds: float, size: int) -> None:
        """Nobody watches."""

    def assigned(self, partitions: int) -> None:
        """Nobody watches."""
