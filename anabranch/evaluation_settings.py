"""What an evaluation trains: one node with everything, federated without privacy, federated with each guarantee."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from anabranch.simulation_settings import SimulationSettings, privacy_terms
from common.errors import InvalidSetting
from common.instructions import PrivacyTerms
from common.privacy import Noise, PrivacyUnit
from server.aggregate import MEAN_SUFFICES

CENTRALISED, FEDERATED = "centralised", "federated"
QUICK_CLIENTS, QUICK_ROUNDS, QUICK_TEXTS = 4, 2, 6
QUICK_DATA = "synthetic:users=80,items=80,events=2400"


@dataclass(frozen=True, slots=True)
class EvaluationSettings:
    """What to evaluate.

    Parameters
    ----------
    base
        The federated run; its privacy terms give delta and sample rate. `evaluate_every` sets the points of the curves.
    units, noises, epsilons
        A row is trained for each combination.

    Raises
    ------
    InvalidSetting
        For a value given twice, or unit "off", which is a row anyway.
    """

    base: SimulationSettings
    units: tuple[PrivacyUnit, ...] = ("user",)
    noises: tuple[Noise, ...] = ("local",)
    epsilons: tuple[float, ...] = (1.0, 3.0, 8.0, 16.0)

    def __post_init__(self) -> None:
        for name in ("units", "noises", "epsilons"):
            given = getattr(self, name)
            if len(set(given)) < len(given):
                raise InvalidSetting(f"{name} {', '.join(map(str, given))}", expected="each only once")
        if "off" in self.units:
            raise InvalidSetting(
                "unit off", expected="user, example or client", mend="leave it out: it is a row anyway"
            )

    @classmethod
    def named(
        cls, base: SimulationSettings, *, units: Sequence[str], noises: Sequence[str], epsilons: Sequence[float]
    ) -> "EvaluationSettings":
        """Return the settings for units and noises given by name.

        Raises
        ------
        UnknownName
            For a name that is none.
        """
        terms = base.privacy

        def checked(unit: str, noise: str) -> PrivacyTerms:
            return privacy_terms(unit, epsilon=1.0, delta=terms.delta, sample_rate=terms.sample_rate, noise=noise)

        known = tuple(checked(unit, "local").unit for unit in units)
        places = tuple(checked("user", noise).noise for noise in noises)
        return cls(base, known, places, tuple(epsilons))

    def runs(self) -> dict[str, SimulationSettings]:
        """Return the simulation of each trained row, by the row's name.

        The centralised row sees as many records as the federated one: as many steps, and in each the users that a
        cohort would draw, out of everybody.
        """
        base = replace(self.base, resume=True, patience=0)
        # the same strategy, so that only federation differs; a rule that compares updates has no use for one
        alone = base.strategy if base.strategy in MEAN_SUFFICES else "fedsvd"
        terms = base.privacy
        off = replace(terms, unit="off", epsilon=float("inf"), noise="local")
        everybody = replace(off, sample_rate=terms.sample_rate * base.cohort / base.clients)
        private = {
            row_name(unit, noise, epsilon): self._private(replace(terms, unit=unit, noise=noise, epsilon=epsilon))
            for unit in self.units
            for noise in self.noises
            for epsilon in self.epsilons
        }
        central = replace(base, clients=1, cohort=1, strategy=alone, privacy=everybody, secure_aggregation=False)
        plain = replace(base, privacy=off, secure_aggregation=False)
        return {CENTRALISED: central, FEDERATED: plain, **private}

    def _private(self, terms: PrivacyTerms) -> SimulationSettings:
        secure = self.base.secure_aggregation or terms.noise == "shared"
        return replace(self.base, resume=True, patience=0, privacy=terms, secure_aggregation=secure)


def row_name(unit: str, noise: str, epsilon: float) -> str:
    """Return the name of a private row, "user_epsilon_8" or, with noise elsewhere, "user_shared_epsilon_8"."""
    return f"{unit}{'' if noise == 'local' else f'_{noise}'}_epsilon_{epsilon:g}"


def quick(settings: EvaluationSettings) -> EvaluationSettings:
    """Return the same path in little: two rounds over at most four nodes, short windows, the outermost epsilons."""
    base = settings.base
    clients = min(base.clients, QUICK_CLIENTS)
    small = replace(
        base,
        clients=clients,
        cohort=min(base.cohort, clients),
        rounds=QUICK_ROUNDS,
        evaluate_every=1,
        objective=replace(base.objective, window=QUICK_TEXTS, negatives=QUICK_TEXTS),
    )
    ends = tuple(dict.fromkeys((min(settings.epsilons), max(settings.epsilons))))
    return replace(settings, base=small, epsilons=ends)
