"""What a simulated federation is asked to do."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

from common.encoder.spec import DEFAULT_ENCODER
from common.errors import InvalidSetting, UnknownName
from common.instructions import Objective, PrivacyTerms, Uplink
from common.privacy import Noise, PrivacyUnit
from server.aggregate import STRATEGIES
from server.async_terms import AsyncTerms

ENGINES = ("inprocess", "flower")
MODES = ("sync", "async")
UNITS: tuple[PrivacyUnit, ...] = ("user", "example", "client", "off")
NOISES: tuple[Noise, ...] = ("local", "server", "shared")


@dataclass(frozen=True, slots=True)
class SimulationSettings:
    """What to simulate.

    Parameters
    ----------
    clients, cohort, rounds
        Nodes, nodes a round, rounds.
    strategy
        A name of `server.aggregate.STRATEGIES`.
    privacy, objective
        Handed to the nodes. With unit "client" and a trusted server that adds the noise, each node is asked by a chance
        of its own, ``cohort / clients``, and the guarantee counts on it.
    server_learning_rate
        Of the server's optimiser.
    engine
        "inprocess": worker processes of this program; "flower": Flower's own simulation, on Ray.
    ray_address
        Of a Ray cluster that runs already; None starts Ray on this machine.
    encoder
        Name, hub id or folder.
    device
        "auto", "cpu", "cuda" or "mps".
    seed
        Of everything; the same seed and data give the same adapter.
    workers
        Processes that nodes are simulated in; 0 means one a core, and at most four where they share a GPU.
    evaluate_every
        Rounds between published versions; 0 publishes only the last.
    resume
        Go on from the last whole round of the store.
    secure_aggregation, colluders
        The server learns only the sum of a cohort's updates; so many of its nodes may tell the server all they know.
    hide_cold
        Share of the items that no node is trained on, to test on cold ones.
    patience
        Versions in a row that the quality gate holds back before the run ends; 0 never ends it.
    min_replies
        A round with fewer usable updates fails; 0: one, or two thirds of the cohort under secure aggregation.
    bad_share
        Share of a cohort that a robust rule must bear; None leaves it at the rule's own, a fifth.
    ranks
        Ranks that nodes train, dealt to them in turn; empty: all train the encoder's.
    from_version
        The version that the run starts from, or the name of a pointer ("current"); None starts anew.
    from_store
        The store that holds it; None: the same.
    timeout_s
        Patience with the slowest node of a round.
    since, until
        Shares of the training part, in time order: nodes hold only the clicks in between.
    uplink
        How the numbers of updates travel from the nodes: "float32", or "int8" in 8 bits.
    asynchronous
        How to go on without rounds: `rounds` then counts versions, `cohort` nodes at work at once. None: rounds.
    """

    clients: int = 10
    cohort: int = 10
    rounds: int = 12
    strategy: str = "fedsvd"
    privacy: PrivacyTerms = field(default_factory=PrivacyTerms)
    objective: Objective = field(default_factory=Objective)
    server_learning_rate: float = 1e-2
    engine: str = "inprocess"
    encoder: str = DEFAULT_ENCODER
    device: str = "auto"
    seed: int = 0
    workers: int = 0
    evaluate_every: int = 0
    resume: bool = False
    secure_aggregation: bool = False
    colluders: int = 0
    min_replies: int = 0
    hide_cold: float = 0.0
    patience: int = 0
    bad_share: float | None = None
    ranks: tuple[int, ...] = ()
    from_version: str | None = None
    from_store: Path | None = None
    since: float = 0.0
    until: float = 1.0
    ray_address: str | None = None
    timeout_s: float = 600.0
    uplink: Uplink = "float32"
    asynchronous: AsyncTerms | None = None

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise UnknownName("engine", self.engine, list(ENGINES), mend="leave out --engine")
        if self.ray_address is not None and self.engine != "flower":
            raise InvalidSetting(
                f"Ray at {self.ray_address} for engine {self.engine!r}",
                expected="engine 'flower'",
                mend="add --engine flower",
            )
        if not self.timeout_s > 0:
            raise InvalidSetting(f"a timeout of {self.timeout_s} s", expected="more than 0")
        if self.uplink not in get_args(Uplink):
            raise UnknownName("uplink", self.uplink, list(get_args(Uplink)))
        if self.strategy not in STRATEGIES:
            raise UnknownName("strategy", self.strategy, list(STRATEGIES))
        if self.clients < 1 or not 1 <= self.cohort <= self.clients:
            raise InvalidSetting(
                f"a cohort of {self.cohort} out of {self.clients} clients",
                expected="1 <= cohort <= clients",
                mend="ask for fewer with --cohort, or for more --clients",
            )
        if not 0 <= self.since < self.until <= 1:
            raise InvalidSetting(
                f"training data since {self.since} until {self.until}", expected="0 <= since < until <= 1"
            )
        if self.from_store is not None and self.from_version is None:
            raise InvalidSetting(
                f"from store {self.from_store} without a version",
                expected="a version",
                mend="add --from-version current",
            )


def asynchronous_terms(
    mode: str, *, buffer: int, at_once: int, max_staleness: int | None, participations: int, stragglers: float
) -> AsyncTerms | None:
    """Return the terms of a run without rounds, or None for one of rounds.

    Parameters
    ----------
    mode
        "sync" or "async".
    buffer
        Usable updates a version; 0: half as many as there are nodes at work.
    at_once
        Nodes at work.
    max_staleness
        None: 10.
    participations, stragglers
        As `AsyncTerms` has them.

    Raises
    ------
    UnknownName
        For another mode.
    InvalidSetting
        For what only a run without rounds has, in one of rounds.
    """
    if mode not in MODES:
        raise UnknownName("mode", mode, list(MODES))
    if mode == "async":
        usual = AsyncTerms(buffer or max(1, at_once // 2), participations=participations, stragglers=stragglers)
        return usual if max_staleness is None else replace(usual, max_staleness=max_staleness)
    if buffer or participations or stragglers or max_staleness is not None:
        raise InvalidSetting(
            "a buffer, a staleness, participations or stragglers in a run of rounds",
            expected="mode 'async'",
            mend="add --mode async",
        )
    return None


def privacy_terms(unit: str, *, epsilon: float, delta: float, sample_rate: float, noise: str = "local") -> PrivacyTerms:
    """Return the terms for a unit and a place of the noise, given by name.

    Raises
    ------
    UnknownName
        Another unit than `UNITS`, another place than `NOISES`.
    """
    if unit not in UNITS:
        raise UnknownName("privacy unit", unit, list(UNITS))
    if noise not in NOISES:
        raise UnknownName("place of the noise", noise, list(NOISES))
    return PrivacyTerms(unit, epsilon, delta, sample_rate, noise)
