"""What a whole federated run will do: the same plan on the same data gives the same adapter."""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence, ValuesView
from dataclasses import dataclass
from itertools import repeat

import numpy as np

from common.errors import InvalidSetting
from common.ids import rng_for
from common.instructions import (
    Objective,
    PrivacyTerms,
    SecureTerms,
    TrainRequest,
    Uplink,
    refuse_early_rounding,
    refuse_unkept,
)
from server.aggregate import MEAN_SUFFICES, bears_ranks, strategy_named
from server.aggregate.base import PlainStep
from server.async_terms import AsyncTerms


@dataclass(frozen=True, slots=True)
class Start:
    """The published version that a run starts from.

    Parameters
    ----------
    version
        Its name.
    adapter_sha256
        Hash of its adapter.
    number
        The number that the store's newest version had; the run's versions are numbered from there.
    epsilon
        What it claims; no version made of it claims less. None without a guarantee.
    elsewhere
        It lies in another store.
    """

    version: str
    adapter_sha256: str
    number: int
    epsilon: float | None
    elsewhere: bool


class SameForAll(Mapping[int, int]):
    """One value for each of many nodes, without a table of them.

    Parameters
    ----------
    nodes
        Sorted, as a fleet gives them.
    value
        Of each.
    """

    def __init__(self, nodes: Sequence[int], value: int) -> None:
        self._nodes, self.value = nodes, value

    def __getitem__(self, node: int) -> int:
        place = bisect_left(self._nodes, node)
        if place == len(self._nodes) or self._nodes[place] != node:
            raise KeyError(node)
        return self.value

    def __iter__(self) -> Iterator[int]:
        return iter(self._nodes)

    def __len__(self) -> int:
        return len(self._nodes)

    def values(self) -> ValuesView[int]:
        """Return the value as often as there are nodes; a `Mapping` would look each of them up."""
        return _Repeated(self)


class _Repeated(ValuesView[int]):
    _mapping: SameForAll

    def __iter__(self) -> Iterator[int]:
        return repeat(self._mapping.value, len(self._mapping))


@dataclass(frozen=True, slots=True)
class RunPlan:
    """A whole federated run; the same plan on the same data gives the same adapter.

    Parameters
    ----------
    run
        Its name, part of every ledger entry.
    seed
        Of everything.
    rounds
        How many.
    cohort
        Nodes asked a round; with a cohort rate below 1, how many are expected.
    strategy
        Name of the aggregation strategy.
    server_learning_rate
        Of the server's optimiser.
    encoder_sha256
        The base weights.
    objective, privacy
        What nodes do, and under which guarantee.
    min_replies
        A round with fewer usable updates fails. Under secure aggregation also the threshold of its secret sharing.
    timeout_s
        Patience with the slowest node of a round.
    secure_aggregation
        The server learns the sum of the updates, and no single one.
    colluders
        Nodes of a cohort that may tell the server all they know; under secure aggregation only.
    bad_share
        Share of a cohort that a robust rule must bear; None leaves it at the rule's own.
    ranks
        Ranks that nodes train, dealt to them in turn; empty: all train the adapter's own.
    start
        The version that the run starts from; None starts anew.
    uplink
        How the numbers of updates travel from the nodes.
    asynchronous
        How it goes on without rounds; `rounds` then counts versions, and `cohort` nodes at work at once. None: rounds.

    Raises
    ------
    InvalidSetting
        For numbers out of range, and where the guarantee would not hold, saying why.
    """

    run: str
    seed: int
    rounds: int
    cohort: int
    strategy: str
    server_learning_rate: float
    encoder_sha256: str
    objective: Objective
    privacy: PrivacyTerms
    min_replies: int = 1
    timeout_s: float = 600.0
    secure_aggregation: bool = False
    colluders: int = 0
    bad_share: float | None = None
    ranks: tuple[int, ...] = ()
    start: Start | None = None
    uplink: Uplink = "float32"
    asynchronous: AsyncTerms | None = None

    def __post_init__(self) -> None:
        for name in ("rounds", "cohort", "min_replies"):
            if getattr(self, name) < 1:
                raise InvalidSetting(f"{name}={getattr(self, name)}", expected=f"{name} >= 1")
        if self.bad_share is not None:
            strategy_named(self.strategy, PlainStep(), bad_share=self.bad_share)
        refuse_unkept(self.objective, self.privacy)
        self._refuse_early_rounding()
        if self.asynchronous is not None:
            self.asynchronous.refuse_unkept(
                self.strategy,
                self.privacy,
                secure=self.secure_aggregation,
                ranks=self.ranks,
                min_replies=self.min_replies,
            )
        self._refuse_ranks()
        self._refuse_uncounted_start()
        self._refuse_impossible_replies()
        self._refuse_open_shares()
        if self.only_sum and self.strategy not in MEAN_SUFFICES:
            raise InvalidSetting(
                f"strategy {self.strategy!r} where only the sum of the updates is known",
                expected=f"one that needs no more than their mean: {', '.join(sorted(MEAN_SUFFICES))}",
                mend="use --noise local without --secure-aggregation, or one of those strategies",
            )

    def _refuse_early_rounding(self) -> None:
        refuse_early_rounding(self.uplink, self.privacy)
        if self.secure_aggregation and self.uplink != "float32":
            raise InvalidSetting(
                f"uplink {self.uplink!r} under secure aggregation",
                expected="float32: a secret sum rounds to a grid of its own, the same for all nodes",
                mend="leave out --uplink or --secure-aggregation",
            )

    def _refuse_ranks(self) -> None:
        if not self.ranks:
            return
        if min(self.ranks) < 1:
            raise InvalidSetting(f"ranks {list(self.ranks)}", expected="whole numbers from 1")
        if self.only_sum or not bears_ranks(self.strategy):
            found = "only the sum of the updates is known" if self.only_sum else f"strategy {self.strategy!r} compares"
            raise InvalidSetting(
                f"nodes of ranks {list(self.ranks)} where {found}",
                expected="each update by itself and a strategy that averages: a column is averaged over its holders",
                mend="leave out --ranks, or use --noise local without --secure-aggregation and no robust rule",
            )

    def _refuse_uncounted_start(self) -> None:
        if self.start is not None and self.drawn_by_chance:
            raise InvalidSetting(
                "a start from a version where cohorts are drawn by chance",
                expected="ledgers of all that was spent: a node that was never asked has no entry of the earlier run",
                mend="leave out --from-version, or use --secure-aggregation, or --noise local",
            )

    def _refuse_impossible_replies(self) -> None:
        if self.drawn_by_chance and self.min_replies > 1:
            raise InvalidSetting(
                f"min_replies={self.min_replies} with cohorts drawn by chance",
                expected="1: to refuse small cohorts would change the chances that the guarantee is computed from",
            )
        if self.min_replies > self.cohort:
            raise InvalidSetting(
                f"min_replies={self.min_replies}", expected=f"at most the {self.cohort} nodes of a cohort"
            )

    def _refuse_open_shares(self) -> None:
        if not self.secure_aggregation:
            if self.privacy.noise == "shared" or self.colluders:
                raise InvalidSetting(
                    f"noise {self.privacy.noise!r} and {self.colluders} colluders without secure aggregation",
                    expected="secure aggregation: a share of the noise hides nothing when updates are seen one by one",
                    mend="add --secure-aggregation",
                )
            return
        if self.drawn_by_chance:
            raise InvalidSetting(
                "secure aggregation of cohorts drawn by chance",
                expected="a cohort of fixed size: an empty or single one cannot be hidden in a sum",
            )
        SecureTerms(self.cohort, self.min_replies, self.colluders)

    @property
    def drawn_by_chance(self) -> bool:
        """Tell whether each node is asked by a chance of its own (Poisson) and not as one of a fixed number."""
        return self.privacy.cohort_rate < 1

    @property
    def only_sum(self) -> bool:
        """Tell whether the strategy gets one update, the mean of all."""
        return self.secure_aggregation or self.privacy.noise != "local"

    def cohort_of(self, number: int, nodes: tuple[int, ...]) -> tuple[int, ...]:
        """Return the nodes of a round, sorted; a pure function of seed and number.

        A fixed-size sample without replacement, or with a cohort rate below 1 each node by a chance of its own.
        """
        return tuple(nodes[index] for index in self._drawn(number, len(nodes)).tolist())

    def _drawn(self, number: int, count: int) -> np.ndarray:
        """Return the places of a round's nodes among all of them, sorted."""
        if self.drawn_by_chance:
            return np.flatnonzero(rng_for("chance", self.seed, number).random(count) < self.privacy.cohort_rate)
        if self.cohort > count:
            raise InvalidSetting(f"a cohort of {self.cohort}", expected=f"at most the {count} nodes there are")
        return np.sort(rng_for("cohort", self.seed, number).choice(count, size=self.cohort, replace=False))

    def participations(self, nodes: tuple[int, ...]) -> Mapping[int, int]:
        """Return how many rounds each node takes part in; it depends on no data, so nodes may calibrate by it.

        Drawn by chance, every node takes part in every round with that chance; without rounds it is the most of each.
        """
        if self.asynchronous is not None:
            return SameForAll(nodes, self.asynchronous.most_participations(self.rounds, self.cohort, len(nodes)))
        if self.drawn_by_chance:
            return SameForAll(nodes, self.rounds)
        counts = np.zeros(len(nodes), dtype=np.int64)
        for number in range(1, self.rounds + 1):
            counts[self._drawn(number, len(nodes))] += 1
        return {nodes[index]: int(counts[index]) for index in np.flatnonzero(counts).tolist()}

    def planned_steps(self, nodes: tuple[int, ...]) -> Mapping[int, int]:
        """Return the steps that each node's noise must last for; with one noise for all nodes, the most of any."""
        steps = 1 if self.privacy.unit == "client" else self.objective.local_steps
        rounds = self.participations(nodes)
        if isinstance(rounds, SameForAll):
            return SameForAll(nodes, rounds.value * steps)
        planned = {node: count * steps for node, count in rounds.items()}
        if self.privacy.noise == "local":
            return planned
        return dict.fromkeys(planned, max(planned.values(), default=steps))

    def request(
        self, number: int, base_version: str, trained: tuple[str, ...], planned_steps: int, sigma: float = 0.0
    ) -> TrainRequest:
        """Return what a node is asked in a round, or errand, of this number."""
        return TrainRequest(
            run=self.run,
            round=number,
            base_version=base_version,
            strategy=self.strategy,
            trained=trained,
            encoder_sha256=self.encoder_sha256,
            planned_steps=planned_steps,
            objective=self.objective,
            privacy=self.privacy,
            noise_multiplier=sigma,
            uplink=self.uplink,
        )

    def refuse_large_delta(self, nodes: tuple[int, ...]) -> None:
        """Refuse a delta that is no guarantee over so many nodes, where a node is what is protected."""
        if self.privacy.unit == "client" and self.privacy.delta * len(nodes) >= 1:
            raise InvalidSetting(
                f"delta {self.privacy.delta} over {len(nodes)} nodes",
                expected=f"delta below 1/{len(nodes)}",
                mend="lower --delta",
            )


def least_threshold(cohort: int, colluders: int) -> int:
    """Return the usual threshold: two thirds of the cohort, or more where the colluders ask for it."""
    return min(cohort, max(-(-2 * cohort // 3), (cohort + colluders) // 2 + 1, colluders + 2))
