"""Per-record gradients against the obvious way, one record at a time."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from client import train as training
from client.dataset import Record
from client.dp import RecordHooks
from client.objective import flatten, record_losses
from client.train import TrainPlan
from tests.client.federation import ITEMS, Bench
from tests.oracles.gradients import gradients_one_by_one, record_loss_slowly

TEMPERATURE = 0.2


@st.composite
def record_lists(draw: st.DrawFn) -> list[Record]:
    """Draw records of windows of 2 to 6 clicks with the same number of negatives."""
    rows = st.integers(0, ITEMS - 1)
    negatives = draw(st.integers(1, 4))
    return [
        Record(
            np.array(draw(st.lists(rows, min_size=2, max_size=6)), dtype=np.int64),
            np.array(draw(st.lists(rows, min_size=negatives, max_size=negatives)), dtype=np.int64),
        )
        for _ in range(draw(st.integers(1, 5)))
    ]


def plan_for(names: tuple[str, ...]) -> TrainPlan:
    return TrainPlan(names, "user", 1.0, 1, 0.0, 1.0, 6, 4, TEMPERATURE, 1.0, 0)


def by_record(bench: Bench, names: tuple[str, ...], records: list[Record], chunk: int) -> dict[str, torch.Tensor]:
    """Return each tensor's gradients by record, texts going through in groups of `chunk`."""
    with pytest.MonkeyPatch.context() as patch, bench.hooked(names) as hooks:
        patch.setattr(training, "TEXTS_A_FORWARD", chunk)
        losses = training._backward(records, plan_for(names), bench.encoder, bench.cache, hooks)
        assert len(losses) == len(records)
        found = {}
        for name, parameter in bench.encoder.trainable(names).items():
            found[name] = parameter.grad_sample.clone()  # type: ignore[attr-defined]  # opacus sets it
            parameter.grad_sample = None  # type: ignore[attr-defined]  # Opacus sets it
            parameter.grad = None
    return found


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * max(1.0, float(expected.abs().max())))


@settings(max_examples=25)
@given(record_lists(), st.integers(2, 40), st.sampled_from(["lora_B", "lora"]))
def test_they_equal_those_one_by_one(bench: Bench, records: list[Record], chunk: int, part: str) -> None:
    names = tuple(sorted(name for name in bench.base if part in name))
    found = by_record(bench, names, records, chunk)
    bench.encoder.set_adapter(bench.base)
    parameters = bench.encoder.trainable(names)
    slow = gradients_one_by_one(bench.encoder, list(parameters.values()), bench.texts, records, TEMPERATURE)
    for column, name in enumerate(parameters):
        assert_close(found[name], torch.stack([row[column] for row in slow]))


@settings(max_examples=20)
@given(record_lists(), record_lists())
def test_a_record_does_not_feel_its_company(bench: Bench, first: list[Record], others: list[Record]) -> None:
    wanted = first[0]
    company = [Record(each.window, np.resize(each.negatives, len(wanted.negatives))) for each in others]
    alone = by_record(bench, bench.b_names, [wanted], 96)
    among = by_record(bench, bench.b_names, [*company, wanted], 96)
    for name in bench.b_names:
        assert_close(among[name][-1], alone[name][0])


@given(record_lists(), st.integers(0, 2**32 - 1))
def test_losses_equal_those_of_the_slow_loop(records: list[Record], seed: int) -> None:
    batch = flatten(records)
    table = torch.nn.functional.normalize(torch.from_numpy(np.random.default_rng(seed).standard_normal((ITEMS, 8))))
    vectors = table[torch.from_numpy(batch.rows)].float()
    found = record_losses(vectors, batch, TEMPERATURE)
    for number, record in enumerate(records):
        own = vectors[torch.from_numpy(np.flatnonzero(batch.record == number))]
        torch.testing.assert_close(
            found[number], record_loss_slowly(own, len(record.window), TEMPERATURE), rtol=1e-4, atol=1e-5
        )


def test_after_training_no_hook_is_left(bench: Bench) -> None:
    records = [Record(np.array([0, 1]), np.array([2]))]
    for _ in range(2):  # a hook that stayed would make the second fail
        by_record(bench, bench.b_names, records, 96)
    assert not any(module._forward_hooks or module._backward_hooks for module in bench.encoder.modules())


def test_a_backward_pass_is_quiet(bench: Bench, recwarn: pytest.WarningsRecorder) -> None:
    by_record(bench, bench.b_names, [Record(np.array([0, 1]), np.array([2]))], 96)
    assert [str(each.message) for each in recwarn] == []


def test_the_hooks_hold_nothing_after_the_backward_pass(bench: Bench) -> None:
    with bench.hooked(bench.b_names) as hooks:
        records = [Record(np.array([0, 1]), np.array([2]))]
        training._backward(records, plan_for(bench.b_names), bench.encoder, bench.cache, hooks)
        assert isinstance(hooks, RecordHooks)
        assert not any(hooks._seen.values())
