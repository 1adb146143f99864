"""What a number of right guesses says about epsilon: a lower bound from one training run.

Steinke, Nasr and Jagielski (2023), "Privacy auditing with one (1) training run", arXiv 2305.08846, theorem 5.2: of a
mechanism that is (epsilon, delta)-differentially private in each of m independent coin flips, somebody who guesses r of
them is right v times with a probability of at most ``P[B >= v] + 2 m delta max_i P[v > B >= v - i] / i``, where B is
binomial with r trials and success ``e^epsilon / (1 + e^epsilon)``.
"""

import math

from common.errors import InvalidSetting

_TOLERANCE = 1e-6
_LARGEST = 64.0


def p_value(correct: int, guesses: int, epsilon: float, *, delta: float, canaries: int) -> float:
    """Return the largest probability of so many right guesses under (epsilon, delta)-differential privacy.

    Parameters
    ----------
    correct, guesses
        Right guesses, out of those made.
    epsilon, delta
        The guarantee to test.
    canaries
        Coin flips in all, those that nobody guessed too.
    """
    rate = 1.0 / (1.0 + math.exp(-epsilon))
    weights = [_binomial(guesses, count, rate) for count in range(guesses + 1)]
    beta = math.fsum(weights[correct:])
    alpha, below = 0.0, 0.0
    for i in range(1, correct + 1):
        below += weights[correct - i]
        alpha = max(alpha, below / i)
    return min(1.0, beta + 2.0 * canaries * delta * alpha)


def lower_bound(correct: int, guesses: int, *, delta: float, canaries: int, confidence: float) -> float:
    """Return the largest epsilon that so many right guesses refute at this confidence; 0 when they refute none.

    Raises
    ------
    InvalidSetting
        For counts or a confidence that make no sense.
    """
    if not 0 <= correct <= guesses <= canaries or guesses < 1 or not 0 < confidence < 1:
        raise InvalidSetting(
            f"{correct} right of {guesses} guesses on {canaries} canaries at confidence {confidence}",
            expected="0 <= right <= guesses <= canaries, at least one guess, 0 < confidence < 1",
        )

    def refuted(epsilon: float) -> bool:
        return p_value(correct, guesses, epsilon, delta=delta, canaries=canaries) < 1.0 - confidence

    if not refuted(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while refuted(high) and high < _LARGEST:
        low, high = high, 2.0 * high
    while high - low > _TOLERANCE:
        middle = (low + high) / 2.0
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def _binomial(trials: int, count: int, rate: float) -> float:
    if rate >= 1.0:  # beyond what a float tells from one
        return float(count == trials)
    ways = math.lgamma(trials + 1) - math.lgamma(count + 1) - math.lgamma(trials - count + 1)
    return math.exp(ways + count * math.log(rate) + (trials - count) * math.log1p(-rate))
