"""Clipping, noise and accounting: what the guarantee rests on."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants import PRVAccountant, RDPAccountant

from client import dp
from client.dp import PrivateStep, calibrate_sigma, epsilon_of, epsilon_within, lowest_epsilon, rdp_bound
from common.errors import InvalidSetting, UnknownName
from common.privacy import PrivacySpend
from tests.client.federation import Bench
from tests.oracles.renyi import renyi_by_integration


class Steps:
    """A `PrivateStep` on the bench's first two B matrices, fed with gradients by hand."""

    def __init__(
        self, bench: Bench, *, sigma: float = 0.0, clip: float = 1.0, expected: float = 1.0, seed: int = 0
    ) -> None:
        bench.encoder.set_adapter(bench.base)
        self.parameters = list(bench.encoder.trainable(bench.b_names[:2]).values())
        self.before = [parameter.detach().clone() for parameter in self.parameters]
        self.step = PrivateStep(
            self.parameters,
            hooks=None,  # type: ignore[arg-type]  # gradients come by hand
            learning_rate=1.0,
            noise_multiplier=sigma,
            clip=clip,
            expected_records=expected,
            generator=torch.Generator().manual_seed(seed),
        )

    def feed(self, *by_record: torch.Tensor) -> None:
        """Hand in one gradient tensor a record, flat over both parameters."""
        sizes = [parameter.numel() for parameter in self.parameters]
        parts = torch.split(torch.stack(by_record), sizes, dim=1)
        for parameter, part in zip(self.parameters, parts, strict=True):
            parameter.grad_sample = part.reshape(-1, *parameter.shape).clone()  # type: ignore[attr-defined]  # as opacus does
        self.step.accumulate()

    def moved(self) -> torch.Tensor:
        """Finish the step and return how far the parameters went against the gradient, flat."""
        self.step.finish()
        return torch.cat([(b - p.detach()).flatten() for b, p in zip(self.before, self.parameters, strict=True)])

    @property
    def size(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters)


def gradient(size: int, seed: int, norm: float) -> torch.Tensor:
    raw = torch.from_numpy(np.random.default_rng(seed).standard_normal(size)).float()
    return torch.mul(raw, norm / float(raw.norm()))


# -- clipping --------------------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(st.lists(st.floats(1e-3, 1e18), min_size=1, max_size=4), st.sampled_from([0.1, 0.5, 2.0]))
def test_the_sum_is_of_clipped_records(bench: Bench, norms: list[float], clip: float) -> None:
    steps = Steps(bench, clip=clip)
    records = [gradient(steps.size, seed, norm) for seed, norm in enumerate(norms)]
    for record in records:  # one by one: several passes are one step
        steps.feed(record)
    expected = sum(record * min(1.0, clip / float(record.norm())) for record in records)
    torch.testing.assert_close(steps.moved(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("size", [1e30, 3e38, math.inf, -math.inf, math.nan])
def test_no_record_moves_the_model_by_more_than_the_clip(bench: Bench, size: float) -> None:
    steps = Steps(bench, clip=0.5)
    wild = torch.full((steps.size,), size)
    steps.feed(wild)
    assert float(steps.moved().norm()) <= 0.5 * (1 + 1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_record_that_is_no_number_says_nothing_and_spoils_nothing(bench: Bench, bad: float) -> None:
    steps = Steps(bench, clip=0.5)
    good = gradient(steps.size, 1, 0.3)
    broken = gradient(steps.size, 2, 0.3)
    broken[-1] = bad  # in the second parameter alone: the first one's part must go too
    steps.feed(good, broken)
    torch.testing.assert_close(steps.moved(), good, rtol=1e-5, atol=1e-6)


def test_the_mean_is_over_the_expected_number_of_records(bench: Bench) -> None:
    steps = Steps(bench, clip=1.0, expected=7.5)
    record = gradient(steps.size, 0, 1.0)
    steps.feed(record)
    torch.testing.assert_close(steps.moved(), record / 7.5, rtol=1e-4, atol=1e-6)


# -- noise -----------------------------------------------------------------------------------------------------------


def test_an_empty_batch_is_noise_alone(bench: Bench) -> None:
    steps = Steps(bench, sigma=2.0, clip=0.5, expected=4.0)
    moved = steps.moved()  # nothing was fed
    assert int((moved != 0).sum()) == steps.size
    assert 0.15 < float(moved.std()) < 0.35  # 2.0 * 0.5 / 4.0 = 0.25


def test_the_noise_has_the_promised_size(bench: Bench) -> None:
    sigma, clip, expected = 1.7, 0.4, 3.0
    draws = torch.cat([Steps(bench, sigma=sigma, clip=clip, expected=expected, seed=s).moved() for s in range(60)])
    promised = sigma * clip / expected
    n = draws.numel()
    assert float(draws.std()) == pytest.approx(promised, rel=4 / math.sqrt(2 * n))
    assert float(draws.mean()) == pytest.approx(0.0, abs=4 * promised / math.sqrt(n))


def test_noise_is_added_once_however_many_passes(bench: Bench) -> None:
    sigma, passes = 1.0, 9
    steps = Steps(bench, sigma=sigma, clip=1.0)
    for _ in range(passes):
        steps.feed(torch.zeros(steps.size))
    noise = steps.moved()
    assert float(noise.std()) == pytest.approx(sigma, rel=4 / math.sqrt(2 * noise.numel()))


def test_noise_comes_from_the_generator_alone(bench: Bench) -> None:
    torch.manual_seed(1)
    first = Steps(bench, sigma=1.0, seed=5).moved()
    torch.manual_seed(2)
    torch.testing.assert_close(Steps(bench, sigma=1.0, seed=5).moved(), first, rtol=0, atol=0)
    assert not torch.equal(Steps(bench, sigma=1.0, seed=6).moved(), first)


# -- accounting ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epsilon", "rate", "steps"),
    [
        (0.06, 0.02, 1000),
        (0.5, 0.02, 1000),
        (8.0, 0.2, 12),
        (0.5, 1.0, 10),
        (8.0, 1.0, 1),
        (40.0, 0.9, 1),
        (100.0, 0.2, 5),
    ],
)
def test_a_calibrated_run_spends_the_budget_and_no_more(epsilon: float, rate: float, steps: int) -> None:
    sigma = calibrate_sigma(epsilon, 1e-3, rate, steps)
    spent = lowest_epsilon(PrivacySpend("user", 1e-3, ((sigma, rate, steps),)))
    assert 0.98 * epsilon <= spent <= epsilon


@pytest.mark.parametrize(("epsilon", "rate", "steps"), [(0.04, 1.0, 1000), (8.0, 1e-6, 1), (1000.0, 0.2, 5)])
def test_where_the_tighter_accountant_gives_no_bound_the_other_calibrates(
    epsilon: float, rate: float, steps: int
) -> None:
    sigma = calibrate_sigma(epsilon, 1e-3, rate, steps)
    spend = PrivacySpend("user", 1e-3, ((sigma, rate, steps),))
    assert 0.7 * epsilon <= epsilon_of(spend, "rdp") <= epsilon
    assert lowest_epsilon(spend) <= epsilon


def test_a_run_that_only_the_tighter_accountant_keeps_within_the_budget_fits() -> None:
    sigma = calibrate_sigma(8.0, 1e-4, 0.2, 12)
    whole = PrivacySpend("user", 1e-4, ((sigma, 0.2, 12),))
    assert epsilon_of(whole, "rdp") > 8.0
    assert epsilon_within(8.0, whole) == lowest_epsilon(whole) <= 8.0
    # within the budget the cheap bound is enough, and beyond it none is
    assert epsilon_within(100.0, whole) == epsilon_of(whole, "rdp")
    assert epsilon_within(8.0, whole + PrivacySpend("user", 1e-4, ((sigma, 0.2, 1),))) > 8.0


def test_rounds_compose_to_what_one_accountant_says_of_all_steps() -> None:
    rounds, steps, rate, sigma, delta = 20, 50, 0.02, 1.0, 1e-5
    each = PrivacySpend("user", delta, ((sigma, rate, steps),))
    total = PrivacySpend("user", delta)
    for _ in range(rounds):
        total += each
    for name, engine in (("prv", PRVAccountant()), ("rdp", RDPAccountant())):
        for _ in range(rounds * steps):
            engine.step(noise_multiplier=sigma, sample_rate=rate)
        assert epsilon_of(total, name) == pytest.approx(engine.get_epsilon(delta=delta), abs=1e-6)
    # an accountant that is born again each round reports one round's epsilon for ever
    assert epsilon_of(each) == pytest.approx(1.15, abs=0.02)
    assert epsilon_of(total) == pytest.approx(3.91, abs=0.02)


@pytest.mark.parametrize("kinds", [[(1.0, 0.1), (3.0, 0.5), (1.0, 0.1)], [(0.7, 1.0)]])
def test_the_tighter_accountant_reports_less_and_both_only_grow(kinds: list[tuple[float, float]]) -> None:
    before = {"prv": 0.0, "rdp": 0.0}
    total = PrivacySpend("user", 1e-4)
    for sigma, rate in kinds:
        total += PrivacySpend("user", 1e-4, ((sigma, rate, 3),))
        now = {name: epsilon_of(total, name) for name in before}
        assert now["prv"] <= now["rdp"] + 0.01
        assert all(now[name] > before[name] for name in before)
        before = now


@pytest.mark.parametrize("accountant", ["prv", "rdp"])
def test_small_nodes_cost_what_was_measured(accountant: str) -> None:
    expected = {"prv": 19.0, "rdp": 20.7}[accountant]
    assert epsilon_of(PrivacySpend("user", 1e-5, ((1.0, 0.5, 30),)), accountant) == pytest.approx(expected, abs=2.0)


def test_no_noise_is_no_guarantee() -> None:
    assert epsilon_of(PrivacySpend("user", 1e-4, ((0.0, 0.1, 1),))) == math.inf
    assert epsilon_of(PrivacySpend("user", 1e-4, ((1.0, 0.1, 5), (0.0, 0.1, 1)))) == math.inf


def test_nothing_costs_nothing() -> None:
    assert epsilon_of(PrivacySpend("user", 1e-4)) == 0.0


@pytest.mark.parametrize(
    ("epsilon", "delta", "rate", "steps"),
    [
        (0.0, 1e-4, 0.1, 1),
        (-1.0, 1e-4, 0.1, 1),
        (math.nan, 1e-4, 0.1, 1),
        (math.inf, 1e-4, 0.1, 1),
        (1.0, 0.0, 0.1, 1),
        (1.0, 1.0, 0.1, 1),
        (1.0, math.nan, 0.1, 1),
        (1.0, 1e-4, 0.0, 1),
        (1.0, 1e-4, 1.1, 1),
        (1.0, 1e-4, 0.1, 0),
        (1e-6, 1e-4, 0.1, 1),
    ],
)
def test_impossible_numbers_are_refused(epsilon: float, delta: float, rate: float, steps: int) -> None:
    with pytest.raises(InvalidSetting, match="epsilon"):
        calibrate_sigma(epsilon, delta, rate, steps)


def test_an_unknown_accountant_is_refused() -> None:
    with pytest.raises(UnknownName, match="unknown accountant 'moments'"):
        epsilon_of(PrivacySpend("user", 1e-4), "moments")


# -- accounting against others ---------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(
    st.sampled_from([0.4, 0.8, 1.0, 2.1, 6.0]),
    st.sampled_from([0.01, 0.2, 0.5, 0.9]),
    st.sampled_from([1.1, 1.5, 1.9, 2.0, 2.3, 3.7, 5.0, 7.3, 10.9, 24.0]),
)
def test_renyi_divergences_equal_numerical_integration(sigma: float, rate: float, order: float) -> None:
    found = dp._rdp_of_step(sigma, rate)[RDPAccountant.DEFAULT_ALPHAS.index(order)]
    assert found == pytest.approx(renyi_by_integration(sigma, rate, order), rel=1e-7, abs=1e-9)


def test_whole_orders_alone_give_a_looser_bound() -> None:
    spend = PrivacySpend("user", 1e-4, ((0.9, 0.2, 20), (2.0, 0.1, 7)))
    assert rdp_bound(spend, range(2, 64)) >= epsilon_of(spend, "rdp")
    assert rdp_bound(spend, range(2, 64)) == pytest.approx(epsilon_of(spend, "rdp"), rel=0.2)
