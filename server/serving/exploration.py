"""A slate that is not always the best one, and how probable each of its items was.

Slot by slot, with probability epsilon any item of the pool that is left, each alike, and else the best one left
(epsilon-greedy; Sutton and Barto, 2018, section 2.2). So an item's probability, given those above it, is
``epsilon / m`` with m items left, and ``1 - epsilon`` more for the best one. Their product is that of the slate.

With these, clicks on logged slates say what another way to choose would have earned, without bias as long as it only
shows items of the pool: the mean of ``reward * product(p_other / p_logged)`` (inverse propensity scoring; Horvitz and
Thompson, 1952). The fewer slots count in the reward, the fewer factors are needed, and the narrower the answer.
"""

import numpy as np

POLICY = "epsilon-greedy"


def explored(pool: int, k: int, epsilon: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return the places that are shown, int64, and the probability of each given those before it, float64.

    Parameters
    ----------
    pool
        So many places, the best first.
    k
        At most so many are shown.
    epsilon
        0 to 1.
    rng
        Decides.
    """
    left = list(range(pool))
    shown: list[int] = []
    probable: list[float] = []
    for _ in range(min(k, pool)):
        at = int(rng.integers(len(left))) if rng.random() < epsilon else 0
        probable.append(epsilon / len(left) + (1.0 - epsilon if at == 0 else 0.0))
        shown.append(left.pop(at))
    return np.array(shown, dtype=np.int64), np.array(probable)
