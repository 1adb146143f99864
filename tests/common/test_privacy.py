"""Privacy spends compose, and only with their like."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import PrivacyError
from common.privacy import PrivacySpend

steps = st.lists(
    st.tuples(st.sampled_from([0.8, 1.0, 1.3]), st.sampled_from([0.01, 0.05]), st.integers(1, 50)), max_size=5
)
# a composed spend has its steps merged and sorted; start from such ones
spends = steps.map(lambda drawn: PrivacySpend("user", 1e-5) + PrivacySpend("user", 1e-5, tuple(drawn)))


def counted(spend: PrivacySpend) -> Counter[tuple[float, float]]:
    """Return the number of steps by noise and rate."""
    counts: Counter[tuple[float, float]] = Counter()
    for sigma, rate, count in spend.steps:
        counts[sigma, rate] += count
    return counts


@given(spends, spends, spends)
def test_composition_is_associative_and_commutative_exactly(a: PrivacySpend, b: PrivacySpend, c: PrivacySpend) -> None:
    assert (a + b) + c == a + (b + c)
    assert a + b == b + a


@given(spends)
def test_spending_nothing_is_the_unit(a: PrivacySpend) -> None:
    assert a + PrivacySpend("user", 1e-5) == a


@given(spends, spends)
def test_no_step_is_lost_or_invented(a: PrivacySpend, b: PrivacySpend) -> None:
    assert counted(a + b) == counted(a) + counted(b)


@given(spends)
def test_steps_are_merged_and_sorted(a: PrivacySpend) -> None:
    keys = [(sigma, rate) for sigma, rate, _ in (a + a).steps]
    assert keys == sorted(set(keys))


@pytest.mark.parametrize(
    "other", [PrivacySpend("example", 1e-5), PrivacySpend("client", 1e-5), PrivacySpend("user", 1e-6)]
)
def test_another_unit_or_delta_does_not_compose(other: PrivacySpend) -> None:
    with pytest.raises(PrivacyError, match="cannot be composed"):
        PrivacySpend("user", 1e-5) + other
