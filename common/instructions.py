"""What the server asks of a node in one round: public values, no data."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

import msgspec

from common.errors import InvalidSetting
from common.privacy import Noise, PrivacyUnit

Scalar = str | int | float | bool | list[str]
Uplink = Literal["float32", "int8"]
"""How an update's numbers travel from a node: as they are, or rounded to 8 bits; see `common.quantise`."""


@dataclass(frozen=True, slots=True)
class Objective:
    """The next-click objective and its local optimiser.

    Parameters
    ----------
    window
        W, the most clicks in a record.
    negatives
        Sampled items a record.
    temperature
        Divides cosine similarities.
    local_steps
        Gradient steps a round.
    learning_rate
        Of the local steps.
    clip
        C, the bound on a record's gradient norm; applied without DP too. Under unit "client" it also bounds the norm of
        a node's whole update.
    anchor
        Strength of the pull towards the adapter that a round starts from, after each of several local steps; 0: none.
    replay
        Chance that a user's record is made of clicks that the node no longer holds but remembers; 0: never.
    """

    window: int = 12
    negatives: int = 16
    temperature: float = 0.05
    local_steps: int = 1
    learning_rate: float = 1.0
    clip: float = 0.5
    anchor: float = 0.0
    replay: float = 0.0

    def __post_init__(self) -> None:
        for name, least in (("window", 2), ("negatives", 1), ("local_steps", 1)):
            if getattr(self, name) < least:
                raise InvalidSetting(f"{name}={getattr(self, name)}", expected=f"{name} >= {least}")
        for name in ("temperature", "learning_rate", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise InvalidSetting(f"{name}={getattr(self, name)}", expected=f"a finite {name} > 0")
        if not 0 <= self.anchor < math.inf:
            raise InvalidSetting(f"anchor {self.anchor}", expected="a finite anchor >= 0")
        if self.anchor and self.local_steps < 2:
            raise InvalidSetting(
                f"anchor {self.anchor} over one local step",
                expected="two steps or more: one begins at the anchor, so the pull would only shorten it",
                mend="raise --local-steps, or leave out --anchor",
            )
        if not 0 <= self.replay < 1:
            raise InvalidSetting(f"replay {self.replay}", expected="0 <= replay < 1")

    def flat(self) -> dict[str, Scalar]:
        """Return one flat mapping; what came later is left out where it is 0, so that older requests keep their names.

        A node derives its noise from a request's every word, and a ledger knows a release by it.
        """
        later = {name for name in ("anchor", "replay") if not getattr(self, name)}
        return {name: value for name, value in asdict(self).items() if name not in later}


@dataclass(frozen=True, slots=True)
class PrivacyTerms:
    """The guarantee that a node must keep.

    Parameters
    ----------
    unit
        What is protected.
    epsilon
        Budget of every client over the whole run; infinite with unit "off".
    delta
        Of the guarantee.
    sample_rate
        q of the Poisson sampling of records at a node.
    noise
        Who adds the noise.
    cohort_rate
        Chance of each node, on its own, to be asked in a round. 1: no amplification by sampling nodes is claimed.
    """

    unit: PrivacyUnit = "user"
    epsilon: float = 8.0
    delta: float = 1e-4
    sample_rate: float = 0.3
    noise: Noise = "local"
    cohort_rate: float = 1.0

    def __post_init__(self) -> None:
        for name, rate in (("sample rate", self.sample_rate), ("cohort rate", self.cohort_rate)):
            if not 0 < rate <= 1:
                raise InvalidSetting(f"{name} {rate}", expected="0 < rate <= 1")
        if self.cohort_rate < 1 and (self.unit, self.noise) != ("client", "server"):
            raise InvalidSetting(
                f"cohort rate {self.cohort_rate} with unit {self.unit!r} and noise {self.noise!r}",
                expected="unit 'client' and noise 'server': elsewhere it is seen who takes part, so nothing is gained",
            )
        if self.unit != "off" and not self.epsilon > 0:
            raise InvalidSetting(
                f"epsilon {self.epsilon}", expected="epsilon > 0", mend="use --privacy off for no guarantee"
            )
        if not 0 < self.delta < 1:
            raise InvalidSetting(f"delta {self.delta}", expected="0 < delta < 1")

    @property
    def rate(self) -> float:
        """Return the sampling rate of what is protected: of nodes under unit "client", else of records."""
        return self.cohort_rate if self.unit == "client" else self.sample_rate

    @property
    def undivided(self) -> bool:
        """Tell whether a node answers with a sum over its records, not divided by how many it expects."""
        return self.noise != "local" and self.unit != "client"


@dataclass(frozen=True, slots=True)
class SecureTerms:
    """What the nodes of a cohort must agree on before they hide their updates in a sum.

    Parameters
    ----------
    cohort
        Nodes asked.
    threshold
        The least number of nodes whose updates may be released as a sum, and of those who must help to unmask it.
    colluders
        Nodes that may tell the server all they know.

    Raises
    ------
    InvalidSetting
        For a threshold at which a server could learn more than one sum: one that tells some nodes that a node dropped
        out and others that it survived needs `threshold` answers of each kind, and colluders give both. With
        2 t > n + c there are not enough (Bonawitz et al., 2017, "Practical secure aggregation").
    """

    cohort: int
    threshold: int
    colluders: int = 0

    def __post_init__(self) -> None:
        enough = 2 * self.threshold > self.cohort + self.colluders and self.noisers >= 2
        if self.colluders < 0 or self.threshold > self.cohort or not enough:
            raise InvalidSetting(
                f"secure aggregation over {self.cohort} nodes with a threshold of {self.threshold} and "
                f"{self.colluders} colluders",
                expected="(cohort + colluders) / 2 < threshold <= cohort, with two honest nodes below it",
                consequence="a lying server could unmask a single node",
                mend="raise --min-replies or --cohort",
            )

    @property
    def noisers(self) -> int:
        """The least number of nodes in a sum whose noise the server does not learn."""
        return self.threshold - self.colluders


def refuse_unkept(objective: Objective, privacy: PrivacyTerms) -> None:
    """Refuse what no guarantee can be computed for.

    Raises
    ------
    InvalidSetting
        For several local steps under one noise for all nodes: the second step depends on all records of the first,
        which nothing has noised, so clipping no longer bounds what one record does to the sum.
    """
    if privacy.undivided and objective.local_steps > 1:
        raise InvalidSetting(
            f"noise {privacy.noise!r} over {objective.local_steps} local steps with unit {privacy.unit!r}",
            expected="one local step: a second would depend on records of the first that no noise hides yet",
            mend="use --local-steps 1, --noise local, or --privacy client",
        )


def refuse_early_rounding(uplink: Uplink, privacy: PrivacyTerms) -> None:
    """Refuse to round what no noise hides yet.

    Raises
    ------
    InvalidSetting
        Rounding after the noise reads nothing but what is released anyway. Before it, it moves two neighbouring inputs
        further apart than the clipping bound that the noise is sized for.
    """
    if uplink != "float32" and privacy.noise != "local" and privacy.unit != "off":
        raise InvalidSetting(
            f"uplink {uplink!r} with noise {privacy.noise!r}",
            expected="noise 'local': rounding is free after a node's own noise, and breaks the bound before another's",
            mend="use --uplink float32, or --noise local",
        )


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """One node's work in one round.

    Parameters
    ----------
    run
        Name of the run; with `round` and `base_version` it names the release in the node's ledger.
    round
        From 1.
    base_version
        What the adapter in the message is.
    strategy
        For the record.
    trained
        Names of the adapter tensors to train.
    encoder_sha256
        The base weights that the adapter belongs to.
    planned_steps
        Steps that this node will take over all rounds of the run, so the noise spends the budget and no more. With one
        noise for all nodes: the most that any node will take.
    objective, privacy
        How to train, and under which guarantee.
    noise_multiplier
        Sigma of the one noise for all nodes; 0 with noise "local", where each node calibrates its own.
    uplink
        How the update's numbers travel.
    """

    run: str
    round: int
    base_version: str
    strategy: str
    trained: tuple[str, ...]
    encoder_sha256: str
    planned_steps: int
    objective: Objective
    privacy: PrivacyTerms
    noise_multiplier: float = 0.0
    uplink: Uplink = "float32"

    def __post_init__(self) -> None:
        refuse_unkept(self.objective, self.privacy)
        refuse_early_rounding(self.uplink, self.privacy)
        one_for_all = self.privacy.noise != "local" and self.privacy.unit != "off"
        if not (0 < self.noise_multiplier < math.inf if one_for_all else self.noise_multiplier == 0):
            raise InvalidSetting(
                f"noise multiplier {self.noise_multiplier} with noise {self.privacy.noise!r}",
                expected="a finite one above 0" if one_for_all else "0",
            )

    def flat(self) -> dict[str, Scalar]:
        """Return one flat mapping of scalars and lists, as Flower's ConfigRecord takes it."""
        # the usual uplink is left out, as what came later is in an objective
        left_out = {"objective", "privacy", "trained"} | ({"uplink"} if self.uplink == "float32" else set())
        own = {key: value for key, value in asdict(self).items() if key not in left_out}
        nested = {f"objective.{key}": value for key, value in self.objective.flat().items()}
        terms = {f"privacy.{key}": value for key, value in asdict(self.privacy).items()}
        return {**own, "trained": list(self.trained), **nested, **terms}

    @classmethod
    def from_flat(cls, flat: Mapping[str, object]) -> "TrainRequest":
        """Read `flat` back.

        Raises
        ------
        InvalidSetting
            When a field is missing or mistyped, naming it.
        """
        tree: dict[str, object] = {}
        for key, value in flat.items():
            group, dot, leaf = key.partition(".")
            if dot:
                inner = tree.setdefault(group, {})
                assert isinstance(inner, dict)  # noqa: S101  groups never share a name with a scalar
                inner[leaf] = value
            else:
                tree[key] = value
        try:
            return msgspec.convert(tree, cls)
        except msgspec.ValidationError as error:
            raise InvalidSetting(
                f"a train request with {error}", expected="a request of this program version"
            ) from error
