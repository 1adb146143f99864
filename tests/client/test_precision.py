"""Half precision in the forward pass: it runs, stays near float32, and sums in float32."""

import numpy as np
import pytest
import torch

from client import train as training
from client.train import train
from tests.client.federation import Bench, make_data
from tests.client.test_train import plan_for


def test_on_a_processor_it_is_off(bench: Bench) -> None:
    assert bench.encoder.device.type not in training.HALF_PRECISION_DEVICES


def test_switched_on_it_stays_near_float32(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, data = plan_for(bench, local_steps=1), make_data(users=6)
    full = train(plan, bench.base, data, bench.encoder, bench.cache)
    monkeypatch.setattr(training, "HALF_PRECISION_DEVICES", ("cpu",))
    half = train(plan, bench.base, data, bench.encoder, bench.cache)
    assert half.loss != full.loss
    assert half.loss == pytest.approx(full.loss, rel=0.05)
    for name in bench.b_names:
        assert half.arrays[name].dtype == np.float32
    whole, other = (np.concatenate([t.arrays[name].ravel() for name in bench.b_names]) for t in (full, half))
    assert float(whole @ other / np.linalg.norm(whole) / np.linalg.norm(other)) > 0.98


def test_gradients_are_added_up_in_float32(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "HALF_PRECISION_DEVICES", ("cpu",))
    records = make_data().population("user", 4).draw(1.0, 3, np.random.default_rng(0))
    with bench.hooked(bench.b_names) as hooks:
        losses = training.losses_of(records, 0.1, bench.encoder, bench.cache, hooks)
        assert losses.dtype == torch.float32
        hooks.backward(losses)
        for parameter in bench.encoder.trainable(bench.b_names).values():
            sample = parameter.grad_sample  # type: ignore[attr-defined]  # opacus sets it
            assert sample.dtype == torch.float32
            # were a text's gradient a half, every element would be one too
            assert not torch.equal(sample, sample.to(torch.bfloat16).to(torch.float32))
            parameter.grad_sample, parameter.grad = None, None  # type: ignore[attr-defined]  # opacus sets it
