"""The one door to Google's dp-accounting: epsilon by code that shares nothing with what charged the ledgers.

Two bounds, for two questions. Renyi divergences of whole orders are finite sums, so the two programs must agree to
rounding. Between whole orders they do not: Opacus sums an alternating series, which agrees with numerical integration,
while dp-accounting 0.6 bounds it from above. The privacy loss distribution (PLD) answers the other question, whether
the epsilon that is reported is an upper bound that wastes little.
"""

from dataclasses import dataclass

from common.errors import PrivacyError
from common.privacy import PrivacySpend

ORDERS = tuple(range(2, 64))
"""Whole orders, as far as Opacus' own list goes."""

PLD_INTERVAL = 1e-3
"""Grid of the privacy loss; against a ten times finer one epsilon grows by less than 0.001."""


@dataclass(frozen=True, slots=True)
class IndependentEpsilon:
    """Two upper bounds on the epsilon of a spend: from whole Renyi orders, and from the privacy loss distribution."""

    rdp: float
    pld: float


def independent_epsilon(spend: PrivacySpend) -> IndependentEpsilon:
    """Return epsilon of a spend, computed by dp-accounting.

    Raises
    ------
    PrivacyError
        When dp-accounting is not installed.
    """
    try:
        from dp_accounting import GaussianDpEvent, NeighboringRelation, PoissonSampledDpEvent
        from dp_accounting.pld import PLDAccountant
        from dp_accounting.rdp import RdpAccountant
    except ImportError as error:
        raise PrivacyError(
            "dp-accounting is not installed",
            expected="an accountant independent of the one that charged",
            consequence="nothing was verified",
            mend="pip install 'dp-accounting>=0.6,<0.7'",
        ) from error
    neighbours = NeighboringRelation.ADD_OR_REMOVE_ONE
    rdp = RdpAccountant(orders=list(ORDERS), neighboring_relation=neighbours)
    pld = PLDAccountant(neighboring_relation=neighbours, value_discretization_interval=PLD_INTERVAL)
    for sigma, rate, count in spend.steps:
        event = PoissonSampledDpEvent(rate, GaussianDpEvent(sigma))
        rdp.compose(event, count)
        pld.compose(event, count)
    return IndependentEpsilon(float(rdp.get_epsilon(spend.delta)), float(pld.get_epsilon(spend.delta)))
