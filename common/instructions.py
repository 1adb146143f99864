"""What the server asks of a node in one round: public values, no data."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import msgspec

from common.errors import InvalidSetting
from common.privacy import PrivacyUnit

Scalar = str | int | float | bool | list[str]


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
        C, the bound on a record's gradient norm; applied without DP too.
    """

    window: int = 12
    negatives: int = 16
    temperature: float = 0.05
    local_steps: int = 1
    learning_rate: float = 1.0
    clip: float = 0.5

    def __post_init__(self) -> None:
        for name, least in (("window", 2), ("negatives", 1), ("local_steps", 1)):
            if getattr(self, name) < least:
                raise InvalidSetting(f"{name}={getattr(self, name)}", expected=f"{name} >= {least}")
        for name in ("temperature", "learning_rate", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise InvalidSetting(f"{name}={getattr(self, name)}", expected=f"a finite {name} > 0")


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
        q of the Poisson sampling.
    """

    unit: PrivacyUnit = "user"
    epsilon: float = 8.0
    delta: float = 1e-4
    sample_rate: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.sample_rate <= 1:
            raise InvalidSetting(f"sample rate {self.sample_rate}", expected="0 < rate <= 1")
        if self.unit != "off" and not self.epsilon > 0:
            raise InvalidSetting(
                f"epsilon {self.epsilon}", expected="epsilon > 0", mend="use --privacy off for no guarantee"
            )
        if not 0 < self.delta < 1:
            raise InvalidSetting(f"delta {self.delta}", expected="0 < delta < 1")


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
        Steps that this node will take over all rounds of the run, so the noise spends the budget and no more.
    objective, privacy
        How to train, and under which guarantee.
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

    def flat(self) -> dict[str, Scalar]:
        """Return one flat mapping of scalars and lists, as Flower's ConfigRecord takes it."""
        own = {key: value for key, value in asdict(self).items() if key not in ("objective", "privacy", "trained")}
        nested = {f"objective.{key}": value for key, value in asdict(self.objective).items()}
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
