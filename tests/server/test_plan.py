"""A plan refuses what no guarantee holds for, and draws cohorts as its accounting assumes."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InvalidSetting
from common.instructions import Objective, PrivacyTerms
from server.plan import RunPlan, SameForAll, least_threshold
from tests.oracles import planning
from tests.server.test_rounds import plan_of

NODES = tuple(range(1, 41))
BY_CHANCE = PrivacyTerms("client", 8.0, 1e-4, 0.2, "server", 0.25)
SERVER = PrivacyTerms("user", 8.0, 1e-4, 0.2, "server")
SHARED = PrivacyTerms("user", 8.0, 1e-4, 0.2, "shared")


def test_drawn_by_chance_each_node_comes_in_on_its_own() -> None:
    plan = plan_of(privacy=BY_CHANCE)
    seen = np.array([[node in plan.cohort_of(number, NODES) for node in NODES] for number in range(1, 501)])
    sizes = seen.sum(1)
    # binomial, 40 nodes at one in four: mean 10, variance 7.5; six standard errors
    assert abs(sizes.mean() - 10) < 6 * math.sqrt(7.5 / 500)
    assert sizes.var() == pytest.approx(7.5, rel=6 * math.sqrt(2 / 500))
    assert np.all(np.abs(seen.mean(0) - 0.25) < 6 * math.sqrt(0.25 * 0.75 / 500))
    pairs = np.corrcoef(seen.T.astype(float))
    assert np.abs(pairs[~np.eye(len(NODES), dtype=bool)]).max() < 6 / math.sqrt(500)


@given(
    seed=st.integers(0, 2**32),
    nodes=st.sets(st.integers(2, 10**6), min_size=6, max_size=60).map(lambda found: tuple(sorted(found))),
    terms=st.sampled_from([BY_CHANCE, SERVER, replace(SERVER, noise="local"), replace(BY_CHANCE, cohort_rate=1.0)]),
    rounds=st.integers(1, 6),
)
def test_plans_are_those_of_the_definition(seed: int, nodes: tuple[int, ...], terms: PrivacyTerms, rounds: int) -> None:
    plan = plan_of(seed=seed, privacy=terms, cohort=5, rounds=rounds)
    for number in range(1, rounds + 1):
        assert plan.cohort_of(number, nodes) == planning.cohort_of(plan, number, nodes)
    assert plan.planned_steps(nodes) == planning.planned_steps(plan, nodes)


def test_the_same_for_all_is_a_table_without_one() -> None:
    same = SameForAll((2, 5, 9), 7)
    assert same == {2: 7, 5: 7, 9: 7}
    assert list(same.values()) == [7, 7, 7]
    assert [node in same for node in (1, 2, 3, 9, 10)] == [False, True, False, True, False]


def test_drawn_by_chance_it_is_fixed_by_seed_and_round_and_may_be_nobody() -> None:
    plan = plan_of(privacy=BY_CHANCE)
    assert plan.cohort_of(3, NODES) == plan.cohort_of(3, NODES)
    assert plan.cohort_of(3, NODES) != replace(plan, seed=1).cohort_of(3, NODES)
    few = [plan.cohort_of(number, NODES[:3]) for number in range(1, 400)]
    assert () in few
    assert NODES[:3] in few


def test_drawn_by_chance_every_round_counts_for_every_node() -> None:
    plan = plan_of(privacy=BY_CHANCE, rounds=7, objective=Objective(local_steps=3))
    assert plan.planned_steps(NODES) == dict.fromkeys(NODES, 7)


def test_one_noise_lasts_for_the_node_that_is_asked_most() -> None:
    local, server = plan_of(rounds=9), plan_of(rounds=9, privacy=SERVER)
    counts = local.planned_steps(NODES[:6])
    assert len(set(counts.values())) > 1
    assert server.planned_steps(NODES[:6]) == dict.fromkeys(counts, max(counts.values()))


SECURE = {"secure_aggregation": True, "cohort": 5, "min_replies": 4}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"privacy": SERVER, "objective": Objective(local_steps=2)}, "2 local steps with unit 'user'"),
        ({"privacy": SHARED}, "noise 'shared' and 0 colluders without secure aggregation"),
        ({"colluders": 1}, "noise 'local' and 1 colluders without secure aggregation"),
        ({"privacy": BY_CHANCE, "min_replies": 2}, "min_replies=2 with cohorts drawn by chance"),
        ({**SECURE, "privacy": BY_CHANCE, "min_replies": 1}, "secure aggregation of cohorts drawn by chance"),
        ({"min_replies": 4}, "min_replies=4; expected at most the 3 nodes of a cohort"),
        ({**SECURE, "min_replies": 2}, "over 5 nodes with a threshold of 2 and 0 colluders"),
        ({**SECURE, "colluders": 3}, "over 5 nodes with a threshold of 4 and 3 colluders"),
        ({**SECURE, "colluders": -1}, "-1 colluders"),
        ({**SECURE, "cohort": 1, "min_replies": 1}, "over 1 nodes"),
        ({"privacy": SERVER, "strategy": "krum"}, "strategy 'krum' where only the sum of the updates is known"),
        ({**SECURE, "strategy": "median"}, "strategy 'median' where only the sum"),
    ],
)
def test_what_would_not_hold_is_refused(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(InvalidSetting) as caught:
        plan_of(**changes)
    assert reason in str(caught.value)


def test_what_holds_is_taken() -> None:
    plans: list[RunPlan] = [
        plan_of(privacy=SERVER),
        plan_of(**SECURE),
        plan_of(**SECURE, privacy=SHARED, colluders=2),
        plan_of(**SECURE, privacy=replace(SHARED, unit="client"), objective=Objective(local_steps=3)),
    ]
    assert all(plan.only_sum for plan in plans)
    assert not plan_of().only_sum


@pytest.mark.parametrize(
    ("cohort", "colluders", "threshold"), [(3, 0, 2), (4, 0, 3), (5, 0, 4), (5, 2, 4), (10, 4, 8), (20, 0, 14)]
)
def test_the_usual_threshold_is_two_thirds_or_what_the_colluders_ask(
    cohort: int, colluders: int, threshold: int
) -> None:
    assert least_threshold(cohort, colluders) == threshold
    plan_of(secure_aggregation=True, cohort=cohort, colluders=colluders, min_replies=threshold)


# -- ranks and bad clients -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("terms", [SERVER, replace(SERVER, unit="client")])
def test_several_ranks_are_refused_where_only_a_sum_is_known(terms: PrivacyTerms) -> None:
    with pytest.raises(InvalidSetting, match="only the sum of the updates is known"):
        plan_of(privacy=terms, ranks=(2, 4))
    with pytest.raises(InvalidSetting, match="only the sum of the updates is known"):
        plan_of(ranks=(2, 4), secure_aggregation=True, min_replies=3)


@pytest.mark.parametrize("strategy", ["median", "trimmed-mean", "krum", "multi-krum"])
def test_several_ranks_are_refused_by_rules_that_compare(strategy: str) -> None:
    with pytest.raises(InvalidSetting, match="compares"):
        plan_of(strategy=strategy, ranks=(2, 4))
    assert plan_of(strategy=strategy, bad_share=0.3).bad_share == 0.3


def test_strategies_that_average_take_ranks_from_one() -> None:
    for strategy in ("fedsvd", "ffa", "rolora", "fedit", "fedex"):
        assert plan_of(strategy=strategy, ranks=(2, 4)).ranks == (2, 4)
    with pytest.raises(InvalidSetting, match="whole numbers from 1"):
        plan_of(ranks=(2, 0))


def test_a_share_of_bad_clients_is_for_rules_that_bear_some() -> None:
    with pytest.raises(InvalidSetting, match="with strategy 'fedsvd'"):
        plan_of(bad_share=0.1)
    with pytest.raises(InvalidSetting, match="less than one half"):
        plan_of(strategy="krum", bad_share=0.5)
