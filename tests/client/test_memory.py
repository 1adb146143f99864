"""A GPU's memory that is too small: the same step in halves, and never a record twice."""

import numpy as np
import pytest
import torch

from client.dp import PrivateStep, RecordHooks
from client.train import train
from common.errors import OutOfMemory
from common.ids import arrays_sha256
from tests.client.federation import Bench, make_data
from tests.client.test_train import plan_for


def limit(monkeypatch: pytest.MonkeyPatch, records: int) -> list[int]:
    """Give the backward pass memory for so many records; it fails late, with half of the gradients there."""
    whole = RecordHooks.backward
    asked: list[int] = []

    def backward(hooks: RecordHooks, losses: torch.Tensor) -> None:
        asked.append(len(losses))
        whole(hooks, losses)
        if len(losses) > records:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    monkeypatch.setattr(RecordHooks, "backward", backward)
    return asked


def test_a_pass_is_halved_and_the_step_stays_the_same(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, data = plan_for(bench, noise_multiplier=0.5), make_data(users=9)
    whole = train(plan, bench.base, data, bench.encoder, bench.cache)
    asked = limit(monkeypatch, 4)
    parts = train(plan, bench.base, data, bench.encoder, bench.cache)
    assert asked == [9, 4, 4, 1, 4, 4, 1]
    assert parts.loss == pytest.approx(whole.loss, rel=1e-5)
    for name, array in whole.arrays.items():
        np.testing.assert_allclose(parts.arrays[name], array, rtol=0, atol=1e-5)


def test_half_a_pass_that_does_not_fit_ends_the_training(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, data = plan_for(bench), make_data(users=9)
    first = train(plan, bench.base, data, bench.encoder, bench.cache)
    with monkeypatch.context() as patch:
        limit(patch, 2)
        with pytest.raises(OutOfMemory, match="no memory for 4 records to train on"):
            train(plan, bench.base, data, bench.encoder, bench.cache)
    again = train(plan, bench.base, data, bench.encoder, bench.cache)
    assert arrays_sha256(first.arrays.items()) == arrays_sha256(again.arrays.items())


def test_a_failure_after_the_gradients_is_never_tried_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def fails(step: object) -> None:
        calls.append(1)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    monkeypatch.setattr(PrivateStep, "accumulate", fails)
    with pytest.raises(torch.OutOfMemoryError):
        train(plan_for(bench), bench.base, make_data(users=9), bench.encoder, bench.cache)
    assert len(calls) == 1
