"""The privacy audit: below an honest claim, above a false one."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from anabranch.audit import AuditResult, AuditSettings, audit
from anabranch.audit_bound import lower_bound, p_value
from anabranch.commands import evaluate_audit
from client.dataset import NodeData
from client.train import TrainPlan, record_gradients, train
from common.encoder.adapter import TextEncoder, initial_adapter
from common.encoder.cache import HiddenCache, open_or_build
from common.encoder.spec import EncoderSpec
from common.errors import InvalidSetting, PrivacyError
from common.ids import rng_for
from common.instructions import PrivacyTerms
from tests.encoders import WORDS

ITEMS = 150
app = typer.Typer(pretty_exceptions_enable=False)
app.command("audit")(evaluate_audit.audit)


@pytest.fixture(scope="module")
def encoder(tiny_bert: Path) -> TextEncoder:
    return TextEncoder.load(EncoderSpec.from_name(str(tiny_bert)))


@pytest.fixture(scope="module")
def cache(encoder: TextEncoder, tmp_path_factory: pytest.TempPathFactory) -> HiddenCache:
    rng = rng_for("audited items")
    texts = [" ".join(rng.choice(WORDS, size=6)) for _ in range(ITEMS)]
    return open_or_build(tmp_path_factory.mktemp("audit"), encoder, texts)


def people(count: int) -> dict[str, np.ndarray]:
    rng = rng_for("audited people")
    return {f"u{number}": rng.integers(0, ITEMS, size=9) for number in range(count)}


def settings(**changes: Any) -> AuditSettings:
    """Return a small audit at sample rate 1, where accounting is quick."""
    fields: dict[str, Any] = {
        "canaries": 12,
        "guesses": 40,
        "runs": 5,
        "rounds": 2,
        "privacy": PrivacyTerms("user", 1.0, 1e-5, 1.0),
    }
    return AuditSettings(**{**fields, **changes})


# -- the bound -------------------------------------------------------------------------------------------------------


def test_the_bound_is_what_the_binomial_says() -> None:
    # all of r guesses right refute p <= 0.05 ** (1 / r) when delta is 0
    rate = 0.05 ** (1 / 100)
    found = lower_bound(100, 100, delta=0.0, canaries=100, confidence=0.95)
    assert found == pytest.approx(math.log(rate / (1 - rate)), abs=1e-4)
    assert p_value(3, 4, 0.0, delta=0.0, canaries=4) == pytest.approx(5 / 16)
    # 1 of 1 right has probability 3/4 at epsilon log 3; delta adds 2 m delta times the chance of 0 right
    assert p_value(1, 1, math.log(3), delta=0.01, canaries=5) == pytest.approx(0.75 + 2 * 5 * 0.01 * 0.25)


@given(st.integers(1, 60), st.integers(0, 60), st.sampled_from([0.0, 1e-5, 1e-3]))
def test_more_right_guesses_never_show_less(guesses: int, correct: int, delta: float) -> None:
    correct = min(correct, guesses)
    fewer = lower_bound(max(0, correct - 1), guesses, delta=delta, canaries=100, confidence=0.95)
    more = lower_bound(correct, guesses, delta=delta, canaries=100, confidence=0.95)
    assert fewer <= more + 1e-5
    assert lower_bound(correct, guesses, delta=1e-2, canaries=100, confidence=0.95) <= more + 1e-5
    if 2 * correct <= guesses:
        assert more == 0.0


@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_randomised_response_is_hardly_ever_refuted(epsilon: float) -> None:
    """Randomised response is the worst case of the theorem: refuted in 5% of the audits at most."""
    rng, audits, guesses = np.random.default_rng(0), 2_000, 60
    correct = rng.binomial(guesses, 1 / (1 + math.exp(-epsilon)), size=audits)
    bounds = {n: lower_bound(n, guesses, delta=0.0, canaries=guesses, confidence=0.95) for n in set(map(int, correct))}
    refuted = sum(bounds[int(n)] > epsilon for n in correct) / audits
    assert refuted <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / audits)
    assert refuted > 0.0


@pytest.mark.parametrize(
    ("correct", "guesses", "canaries", "confidence"),
    [(-1, 5, 5, 0.9), (6, 5, 5, 0.9), (1, 5, 4, 0.9), (0, 0, 4, 0.9), (1, 2, 2, 1.0), (1, 2, 2, 0.0)],
)
def test_impossible_counts_are_refused(correct: int, guesses: int, canaries: int, confidence: float) -> None:
    with pytest.raises(InvalidSetting, match="guesses on"):
        lower_bound(correct, guesses, delta=0.0, canaries=canaries, confidence=confidence)


# -- the attack ------------------------------------------------------------------------------------------------------


def test_with_the_noise_that_was_charged_the_claim_stands(encoder: TextEncoder, cache: HiddenCache) -> None:
    found = audit(people(5), encoder, cache, settings())
    assert 0.8 < found.claim <= 1.0
    assert found.bound <= found.claim
    assert not found.refuted
    assert (found.guesses, found.canaries) == (40, 60)


def test_without_noise_the_claim_is_refuted(encoder: TextEncoder, cache: HiddenCache) -> None:
    found = audit(people(5), encoder, cache, settings(noise=False))
    assert 0.8 < found.claim <= 1.0  # the ledger charged as if
    assert found.bound > found.claim
    assert found.refuted
    assert found.bound <= found.reachable


@pytest.mark.parametrize("unit", [pytest.param("user", marks=pytest.mark.slow), "example"])
def test_without_noise_each_unit_is_found_out_under_sampling(
    encoder: TextEncoder, cache: HiddenCache, unit: Any
) -> None:
    terms = PrivacyTerms(unit, 0.5, 1e-5, 0.5)
    found = audit({}, encoder, cache, settings(noise=False, rounds=3, runs=4, guesses=32, privacy=terms))
    assert found.bound > found.claim


def test_much_of_the_budget_is_seen_when_it_is_large(encoder: TextEncoder, cache: HiddenCache) -> None:
    """An attack that sees nothing would pass every claim: at epsilon 8 it must see something, and not too much."""
    found = audit({}, encoder, cache, settings(runs=10, rounds=1, privacy=PrivacyTerms("user", 8.0, 1e-5, 1.0)))
    assert 0.5 < found.bound <= found.claim


def test_the_same_seed_gives_the_same_audit(encoder: TextEncoder, cache: HiddenCache) -> None:
    small = settings(canaries=4, runs=1, rounds=1, guesses=2)
    assert audit({}, encoder, cache, small) == audit({}, encoder, cache, small)


def test_the_attackers_gradients_are_what_training_adds_up(encoder: TextEncoder, cache: HiddenCache) -> None:
    base = initial_adapter({name: array.shape for name, array in encoder.adapter().items()}, 0)
    names = tuple(name for name in base if "lora_B" in name)
    plan = TrainPlan(names, "user", 1.0, 1, 0.0, 0.1, 9, 8, 0.05, 1.0, 7)
    data = NodeData(people(6), ITEMS)
    drawn = data.population("user", 9).draw(1.0, 8, rng_for("records", plan.seed))
    each = record_gradients(plan, base, drawn, encoder, cache)
    assert np.all(np.linalg.norm(each, axis=1) <= 0.1 * (1 + 1e-5))
    whole = train(plan, base, data, encoder, cache)
    summed = np.concatenate([whole.arrays[name].ravel() for name in sorted(names)]) * whole.expected_records
    np.testing.assert_allclose(each.sum(axis=0), summed, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("epsilon", "rate"), [(0.5, 1.0), (2.0, 0.3), (4.0, 1.0)])
def test_no_honest_claim_is_refuted(
    encoder: TextEncoder, cache: HiddenCache, epsilon: float, rate: float, seed: int
) -> None:
    terms = PrivacyTerms("user", epsilon, 1e-5, rate)
    found = audit(
        people(10), encoder, cache, settings(runs=10, rounds=3, guesses=60, privacy=terms, seed=seed, confidence=0.99)
    )
    assert found.bound <= found.claim


# -- settings and command --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"canaries": 0}, "canaries=0"),
        ({"guesses": 3}, "3 guesses"),
        ({"guesses": 62}, "an even number from 2 to the 60 canaries"),
        ({"confidence": 1.0}, "confidence 1.0"),
        ({"privacy": PrivacyTerms("off")}, "unit 'off'"),
        ({"privacy": PrivacyTerms("user", noise="server")}, "noise 'server'"),
    ],
)
def test_impossible_audits_are_refused(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidSetting, match=match):
        settings(**changes)


def run(tiny_bert: Path, *arguments: str) -> tuple[str, BaseException | None]:
    words = ["--encoder", str(tiny_bert), "--people", "3", "--rounds", "1", "--sample-rate", "1", *arguments]
    result = CliRunner().invoke(app, words, env={"COLUMNS": "120"})
    return result.stdout, result.exception


def test_the_command_prints_claim_bound_and_guesses(tiny_bert: Path) -> None:
    few = ("--canaries", "8", "--runs", "2", "--guesses", "8")
    output, error = run(tiny_bert, *few)
    assert error is None
    for said in ("that the ledger claims", "lower bound at 95% confidence", "coin flips", "right guesses", "of 8"):
        assert said in output
    payload = json.loads(run(tiny_bert, *few, "--json")[0])
    assert payload["protocol"]["started_from"] == "a fresh adapter"
    row = payload["rows"]["audit"]
    assert row["lower_bound"] <= row["claim"]
    assert row["refuted"] is False


def test_the_command_fails_when_the_claim_is_false(tiny_bert: Path) -> None:
    output, error = run(tiny_bert, "--canaries", "12", "--runs", "4", "--guesses", "40", "--without-noise", "--json")
    assert isinstance(error, PrivacyError)
    assert "the claim is false" in str(error)
    row = json.loads(output)["rows"]["audit"]
    assert row["refuted"] is True
    assert row["lower_bound"] > row["claim"]


def test_it_is_said_when_an_audit_cannot_reach_the_claim(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    row = AuditResult(claim=3.0, bound=0.0, reachable=2.0, correct=5, guesses=10, canaries=10)
    shown = {"confidence": 0.95, "lower_bound": row.bound, "claim": row.claim, "reachable": row.reachable}
    evaluate_audit._draw(Console(), {**shown, "canaries": 10, "correct": 5, "guesses": 10})
    assert "above what so few guesses could refute" in capsys.readouterr().out
