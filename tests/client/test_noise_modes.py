"""What leaves a node when the noise is added elsewhere, and when the node itself is the unit."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from client.dp import epsilon_of
from client.node import Node, SecretSum
from client.train import TrainPlan, train
from common.errors import BudgetExceeded, InvalidSetting
from common.instructions import Objective, PrivacyTerms, TrainRequest
from common.privacy import Noise, PrivacySpend, PrivacyUnit
from common.updates import AdapterUpdate
from tests.client.federation import Bench, make_data, make_request
from tests.client.test_node import answer, entries, same

ONE_STEP = Objective(window=4, negatives=3, learning_rate=0.5)
SUM = SecretSum("an attempt", 4)
SIGMA = 2.0


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node("node-1", make_data(), tmp_path / "ledger.sqlite", 7)


def terms(unit: PrivacyUnit, noise: Noise, cohort_rate: float = 1.0) -> PrivacyTerms:
    return PrivacyTerms(unit, math.inf if unit == "off" else 8.0, 1e-3, 1.0, noise, cohort_rate)


def asked(bench: Bench, unit: PrivacyUnit, noise: Noise, **changes: object) -> TrainRequest:
    sigma = 0.0 if noise == "local" or unit == "off" else SIGMA
    fields: dict[str, object] = {"objective": ONE_STEP, "privacy": terms(unit, noise), "noise_multiplier": sigma}
    return make_request(bench, **(fields | changes))


def flat(update: AdapterUpdate) -> np.ndarray:
    return np.concatenate([update.arrays[name].ravel().astype(np.float64) for name in sorted(update.arrays)])


def test_undivided_it_is_the_same_step_times_the_expected_records(bench: Bench) -> None:
    plan = TrainPlan(bench.b_names, "user", 1.0, 1, 0.0, 0.5, 4, 3, 0.05, 0.5, seed=5)
    data = make_data()
    mean, total = (
        train(each, bench.base, data, bench.encoder, bench.cache) for each in (plan, replace(plan, undivided=True))
    )
    assert mean.expected_records == total.expected_records == 4.0
    for name in bench.b_names:
        # the mean went through the weights, which round to float32
        np.testing.assert_allclose(total.arrays[name], 4.0 * mean.arrays[name], atol=1e-6)


def test_for_a_trusted_server_it_is_a_clipped_sum_without_noise(node: Node, bench: Bench) -> None:
    update = answer(node, bench, asked(bench, "user", "server", noise_multiplier=100.0))
    assert update.meta.examples == 4.0
    assert 0 < np.linalg.norm(flat(update)) <= 4 * ONE_STEP.clip * ONE_STEP.learning_rate


def test_for_a_trusted_server_it_charges_all_the_same(node: Node, bench: Bench) -> None:
    update = answer(node, bench, asked(bench, "user", "server"))
    assert update.meta.privacy == PrivacySpend("user", 1e-3, ((SIGMA, 1.0, 1),))
    assert update.meta.epsilon is not None
    assert update.meta.epsilon <= epsilon_of(PrivacySpend("user", 1e-3, ((SIGMA, 1.0, 1),))) + 1e-9
    assert entries(node) == 1
    assert update.meta.metrics == {}
    with pytest.raises(BudgetExceeded):
        answer(node, bench, asked(bench, "user", "server", round=2, noise_multiplier=0.05))


def test_an_empty_draw_for_a_trusted_server_is_a_charged_zero(node: Node, bench: Bench) -> None:
    never = replace(terms("user", "server"), sample_rate=1e-9)
    update = answer(node, bench, asked(bench, "user", "server", privacy=never))
    assert not flat(update).any()
    assert entries(node) == 1


@pytest.mark.parametrize("unit", ["user", "example"])
@pytest.mark.parametrize("noise", ["server", "shared"])
def test_several_steps_under_one_noise_are_refused_with_the_reason(
    bench: Bench, unit: PrivacyUnit, noise: Noise
) -> None:
    with pytest.raises(InvalidSetting, match=r"2 local steps .*; expected one local step: .*; to mend it"):
        asked(bench, unit, noise, objective=replace(ONE_STEP, local_steps=2))


def test_a_share_of_the_noise_is_not_given_in_the_open(node: Node, bench: Bench) -> None:
    with pytest.raises(InvalidSetting, match="a share of the noise hides nothing by itself"):
        answer(node, bench, asked(bench, "user", "shared"))
    assert entries(node) == 0


def shares(node: Node, bench: Bench, unit: PrivacyUnit, rounds: int) -> np.ndarray:
    """Return the noise alone of several releases: no record is ever drawn."""
    # under unit "client" nothing drawn is a zero update too
    never = replace(terms(unit, "shared"), sample_rate=1e-9, epsilon=1e6)
    updates = [
        node.answer(
            asked(bench, unit, "shared", privacy=never, round=number), bench.base, bench.encoder, bench.cache, SUM
        )
        for number in range(1, rounds + 1)
    ]
    return np.concatenate([flat(update) for update in updates])


@pytest.mark.parametrize(("unit", "scale"), [("user", ONE_STEP.learning_rate), ("client", 1.0)])
def test_a_share_has_its_part_of_the_variance(node: Node, bench: Bench, unit: PrivacyUnit, scale: float) -> None:
    noise = shares(node, bench, unit, 20)
    expected = SIGMA * ONE_STEP.clip * scale / math.sqrt(SUM.noisers)
    assert noise.std() == pytest.approx(expected, rel=6 / math.sqrt(2 * noise.size))  # six standard errors
    assert abs(noise.mean()) < 6 * expected / math.sqrt(noise.size)


def test_a_real_node_gives_each_attempt_noise_of_its_own_and_charges_it(bench: Bench, tmp_path: Path) -> None:
    request = asked(bench, "user", "shared")
    real = Node("n", make_data(), tmp_path / "real.sqlite", None)
    played = Node("n", make_data(), tmp_path / "played.sqlite", 3)
    for each, charges in ((real, 2), (played, 1)):
        first, second = (
            each.answer(request, bench.base, bench.encoder, bench.cache, SecretSum(name, 4)) for name in ("one", "two")
        )
        assert same(first, second) is (charges == 1)
        assert entries(each) == charges


def test_a_whole_update_is_bounded_however_many_steps_it_took(node: Node, bench: Bench) -> None:
    goal = Objective(window=4, negatives=3, local_steps=4, learning_rate=50.0)
    update = answer(node, bench, asked(bench, "client", "server", objective=goal))
    assert np.linalg.norm(flat(update)) == pytest.approx(goal.clip, rel=1e-5)
    assert update.meta.examples == 1.0  # how many users it has is what the unit hides
    assert update.meta.privacy == PrivacySpend("client", 1e-3, ((SIGMA, 1.0, 1),))


def test_a_whole_update_can_carry_its_own_noise(node: Node, bench: Bench) -> None:
    request = asked(bench, "client", "local", planned_steps=2)
    update = answer(node, bench, request)
    assert update.meta.privacy is not None
    ((sigma, rate, steps),) = update.meta.privacy.steps
    assert (rate, steps) == (1.0, 1)
    assert epsilon_of(PrivacySpend("client", 1e-3, ((sigma, 1.0, 2),))) <= 8.0
    assert np.linalg.norm(flat(update)) > 2 * ONE_STEP.clip  # noise of sigma C in every number


def test_drawn_by_chance_the_first_round_charges_the_whole_run(node: Node, bench: Bench) -> None:
    by_chance = terms("client", "server", cohort_rate=0.25)
    first, second = (
        answer(node, bench, asked(bench, "client", "server", privacy=by_chance, planned_steps=6, round=number))
        for number in (2, 5)
    )
    assert first.meta.privacy == PrivacySpend("client", 1e-3, ((SIGMA, 0.25, 6),))
    assert first.meta.epsilon == second.meta.epsilon
    assert not same(first, second)
    assert entries(node, "client") == 1


def test_chance_is_claimed_only_where_it_hides_something() -> None:
    for unit, noise in (("user", "server"), ("client", "local"), ("client", "shared")):
        with pytest.raises(InvalidSetting, match=r"cohort rate 0\.5 with unit"):
            terms(unit, noise, cohort_rate=0.5)  # type: ignore[arg-type]  # literals by name
    with pytest.raises(InvalidSetting, match="cohort rate 0"):
        terms("client", "server", cohort_rate=0.0)


def test_a_request_without_the_noise_it_promises_is_refused(bench: Bench) -> None:
    for sigma in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(InvalidSetting, match="noise multiplier"):
            asked(bench, "user", "server", noise_multiplier=sigma)
    with pytest.raises(InvalidSetting, match=r"noise multiplier 1\.0 with noise 'local'"):
        asked(bench, "user", "local", noise_multiplier=1.0)


def test_a_secret_sum_takes_no_rounded_update(node: Node, bench: Bench) -> None:
    request = asked(bench, "user", "local", uplink="int8")
    with pytest.raises(InvalidSetting, match="a sum rounds to a grid of its own"):
        node.answer(request, bench.base, bench.encoder, bench.cache, SUM)
    assert not node.ledger_path.exists()
    with pytest.raises(InvalidSetting, match="breaks the bound before another's"):
        asked(bench, "user", "server", uplink="int8")
