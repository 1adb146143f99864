"""Local training: it moves what it should, and an empty batch is never skipped."""

from dataclasses import replace

import numpy as np
import pytest

from client.dp import PrivateStep
from client.train import TrainPlan, train
from common.ids import arrays_sha256
from tests.client.federation import Bench, make_data

NEVER = 1e-9
"""A sample rate at which no record is ever drawn."""


def plan_for(bench: Bench, **changes: object) -> TrainPlan:
    plan = TrainPlan(
        trained=bench.b_names,
        unit="user",
        sample_rate=1.0,
        local_steps=2,
        noise_multiplier=0.0,
        clip=0.5,
        window=4,
        negatives=3,
        temperature=0.1,
        learning_rate=1.0,
        seed=1,
    )
    return replace(plan, **changes)  # type: ignore[arg-type]  # fields by name


def noise_of_empty_batches(bench: Bench, steps: int) -> tuple[float, float]:
    """Train on empty batches alone; return the deviation of the change and the promised one."""
    plan = plan_for(bench, sample_rate=NEVER, noise_multiplier=2.0, local_steps=steps)
    data = make_data()
    change = train(plan, bench.base, data, bench.encoder, bench.cache).arrays
    flat = np.concatenate([array.ravel() for array in change.values()])
    return float(flat.std()), 2.0 * plan.clip / (NEVER * len(data.histories)) * steps**0.5


@pytest.mark.parametrize("steps", [1, 4])
def test_every_empty_batch_adds_its_noise(bench: Bench, steps: int) -> None:
    found, promised = noise_of_empty_batches(bench, steps)
    assert found == pytest.approx(promised, rel=0.1)


def test_skipping_an_empty_batch_would_be_noticed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    accumulate, finish = PrivateStep.accumulate, PrivateStep.finish
    fed: list[PrivateStep] = []

    def noticing(step: PrivateStep) -> None:
        fed.append(step)
        accumulate(step)

    def skipping(step: PrivateStep) -> None:
        if step in fed:
            finish(step)

    monkeypatch.setattr(PrivateStep, "accumulate", noticing)
    monkeypatch.setattr(PrivateStep, "finish", skipping)
    found, promised = noise_of_empty_batches(bench, 4)
    assert found != pytest.approx(promised, rel=0.1)


def test_training_moves_every_named_tensor_and_no_other(bench: Bench) -> None:
    trained = train(plan_for(bench), bench.base, make_data(), bench.encoder, bench.cache)
    assert set(trained.arrays) == set(bench.b_names)
    assert all(np.abs(array).max() > 0 for array in trained.arrays.values())
    after = bench.encoder.adapter()
    for name, array in bench.base.items():
        if name in bench.b_names:
            np.testing.assert_allclose(after[name] - array, trained.arrays[name], atol=1e-7)
        else:
            np.testing.assert_array_equal(after[name], array)


def test_training_lowers_the_loss(bench: Bench) -> None:
    plan = plan_for(bench, local_steps=30, learning_rate=0.3)
    data = make_data(users=3, clicks=4)  # as long as the window: every step sees the same clicks
    long = train(plan, bench.base, data, bench.encoder, bench.cache)
    short = train(replace(plan, local_steps=1), bench.base, data, bench.encoder, bench.cache)
    assert long.loss < short.loss


def test_the_same_plan_gives_the_same_change_whatever_was_trained_before(bench: Bench) -> None:
    plan, data = plan_for(bench, noise_multiplier=1.0, sample_rate=0.5), make_data()
    first = train(plan, bench.base, data, bench.encoder, bench.cache)
    train(plan_for(bench, seed=9, trained=tuple(bench.base)), bench.base, make_data(2), bench.encoder, bench.cache)
    again = train(plan, bench.base, data, bench.encoder, bench.cache)
    assert arrays_sha256(first.arrays.items()) == arrays_sha256(again.arrays.items())
    other = train(replace(plan, seed=2), bench.base, data, bench.encoder, bench.cache)
    assert arrays_sha256(first.arrays.items()) != arrays_sha256(other.arrays.items())


def test_how_records_are_grouped_does_not_matter(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, data = plan_for(bench, noise_multiplier=0.3), make_data(users=7)
    whole = train(plan, bench.base, data, bench.encoder, bench.cache)
    monkeypatch.setattr("client.train.RECORDS_A_PASS", 2)
    monkeypatch.setattr("client.train.TEXTS_A_FORWARD", 5)
    parts = train(plan, bench.base, data, bench.encoder, bench.cache)
    assert whole.loss == pytest.approx(parts.loss, rel=1e-5)
    for name, array in whole.arrays.items():
        np.testing.assert_allclose(parts.arrays[name], array, rtol=0, atol=1e-5)


def test_one_user_changes_the_step_by_no_more_than_twice_the_clip(bench: Bench) -> None:
    plan = plan_for(bench, local_steps=1, temperature=1e-3)  # gradients far beyond the clip
    data = make_data(users=3, clicks=4)
    last = max(data.histories)
    other = type(data)({**data.histories, last: (data.histories[last] + 7) % data.items}, data.items)
    first = train(plan, bench.base, data, bench.encoder, bench.cache)
    second = train(plan, bench.base, other, bench.encoder, bench.cache)
    apart = sum(((first.arrays[n] - second.arrays[n]) ** 2).sum() for n in bench.b_names) ** 0.5
    assert 0 < apart * first.expected_records <= 2 * plan.clip * (1 + 1e-4)


def test_a_failure_leaves_the_encoder_fit_for_the_next(bench: Bench) -> None:
    plan, data = plan_for(bench), make_data()
    first = train(plan, bench.base, data, bench.encoder, bench.cache)
    with pytest.raises(IndexError):
        train(plan, bench.base, type(data)({"u": np.array([0, 999])}, 1000), bench.encoder, bench.cache)
    again = train(plan, bench.base, data, bench.encoder, bench.cache)
    assert arrays_sha256(first.arrays.items()) == arrays_sha256(again.arrays.items())
