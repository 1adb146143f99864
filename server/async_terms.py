"""How a run goes on without rounds, and what such a run refuses to promise.

Nodes are kept busy up to a number at once. Whoever answers is asked again, or another in its place; when K usable
answers are there, the server takes a step and the next version is there. Nobody waits for the slowest. (FedBuff: Nguyen
et al., 2022, "Federated learning with buffered asynchronous aggregation", arXiv 2106.06639.)
"""

import math
from collections.abc import Collection
from dataclasses import dataclass

from common.errors import InvalidSetting
from common.instructions import PrivacyTerms
from server.aggregate.stale import CARRIED

SLACK = 1.25
"""By how much a node may take part more often than its even share, unless it is told: a fifth may then be slow."""


@dataclass(frozen=True, slots=True)
class AsyncTerms:
    """A run without rounds.

    Parameters
    ----------
    buffer
        K, the usable updates that make a version.
    max_staleness
        Versions that an update's base may be behind the newest one; what is further behind goes to quarantine.
    participations
        The most times that any node takes part; its noise is sized for so many. 0: an even share and a quarter more.
    stragglers
        Share of the nodes that are twenty times slower; in a simulation alone.
    """

    buffer: int
    max_staleness: int = 10
    participations: int = 0
    stragglers: float = 0.0

    def __post_init__(self) -> None:
        for name, least in (("buffer", 1), ("max_staleness", 0), ("participations", 0)):
            if getattr(self, name) < least:
                raise InvalidSetting(f"{name}={getattr(self, name)}", expected=f"{name} >= {least}")
        if not 0 <= self.stragglers < 1:
            raise InvalidSetting(f"a share of {self.stragglers} stragglers", expected="0 <= stragglers < 1")

    def most_participations(self, versions: int, at_once: int, nodes: int) -> int:
        """Return the most times that any node takes part; it depends on no data, so nodes may calibrate by it.

        Raises
        ------
        InvalidSetting
            When all nodes together could not fill the buffers.
        """
        needed = versions * self.buffer
        if not self.participations:
            return math.ceil(SLACK * (needed + at_once) / max(1, nodes))
        if self.participations * nodes < needed:
            raise InvalidSetting(
                f"{self.participations} participations of each of {nodes} nodes for {needed} updates",
                expected=f"at least {math.ceil(needed / nodes)} each",
                mend="raise --participations, or lower --rounds or --buffer",
            )
        return self.participations

    def refuse_unkept(
        self, strategy: str, privacy: PrivacyTerms, *, secure: bool, ranks: Collection[int], min_replies: int
    ) -> None:
        """Refuse what has no meaning without rounds, or no guarantee that could be computed.

        Raises
        ------
        InvalidSetting
            Saying why.
        """
        if strategy not in CARRIED:
            raise InvalidSetting(
                f"strategy {strategy!r} without rounds",
                expected=f"one whose updates mean something at a newer adapter: {', '.join(sorted(CARRIED))}",
                mend="use one of those, or --mode sync",
            )
        if secure:
            raise InvalidSetting(
                "secure aggregation without rounds",
                expected="a cohort that answers together: masks cancel only in the sum that was agreed on beforehand",
                mend="leave out --secure-aggregation, or use --mode sync",
            )
        if privacy.noise != "local" and privacy.unit != "off":
            raise InvalidSetting(
                f"noise {privacy.noise!r} without rounds",
                expected="noise 'local': one noise for all is sized for a cohort that is fixed, or drawn by chance, "
                "before anybody answers, and who fills a buffer is neither",
                mend="use --noise local, or --mode sync",
            )
        if ranks:
            raise InvalidSetting(
                f"nodes of ranks {sorted(set(ranks))} without rounds",
                expected="the full rank: columns change their meaning from version to version",
                mend="leave out --ranks, or use --mode sync",
            )
        if min_replies > 1:
            raise InvalidSetting(
                f"at least {min_replies} replies without rounds",
                expected="--buffer alone: a version is made of so many, and of no fewer",
                mend="leave out --min-replies",
            )


def weight_of(staleness: int) -> float:
    """Return what an update counts whose base is so many versions behind: ``1 / sqrt(1 + staleness)``, as in FedBuff.

    >>> [round(weight_of(behind), 3) for behind in (0, 1, 3, 8)]
    [1.0, 0.707, 0.5, 0.333]
    """
    return 1.0 / math.sqrt(1.0 + staleness)
