"""The nodes' accountant, lent to a server that adds one noise for all: composed here, since the two never meet."""

from client.dp import calibrate_sigma, lowest_epsilon
from common.privacy import PrivacySpend


class LentAccountant:
    """`common.privacy.Accountant` by way of `client.dp`."""

    def sigma(self, epsilon: float, delta: float, sample_rate: float, steps: int) -> float:
        """Return the noise multiplier that spends `epsilon` over all `steps`."""
        return calibrate_sigma(epsilon, delta, sample_rate, steps)

    def epsilon(self, spend: PrivacySpend) -> float:
        """Return the lower of two upper bounds on the epsilon of the spend."""
        return lowest_epsilon(spend)
