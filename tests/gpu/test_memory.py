"""A GPU whose memory is nearly full, for real: half a pass, and an error when that does not fit either."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from client import train as training
from client.train import Trained, TrainPlan, train
from common.encoder.spec import DEFAULT_ENCODER
from common.errors import OutOfMemory
from tests.client.federation import Bench, make_bench, make_data
from tests.client.test_train import plan_for
from tests.gpu.marks import GPU

pytestmark = GPU
RECORDS = 64


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return make_bench(DEFAULT_ENCODER, tmp_path, "cuda")


def large(bench: Bench) -> TrainPlan:
    """Return a step of 64 records of more than 400 texts: gigabytes in one pass."""
    return replace(plan_for(bench), local_steps=1, negatives=400)


def run(bench: Bench) -> tuple[Trained, int]:
    """Train, and return how much memory that took, in bytes."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_reserved()
    trained = train(large(bench), bench.base, make_data(users=RECORDS), bench.encoder, bench.cache)
    peak = torch.cuda.max_memory_reserved() - before
    torch.cuda.empty_cache()
    return trained, peak


def fill(left: int) -> torch.Tensor:
    """Take all of the free memory but so much of it."""
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    return torch.empty(free - left, dtype=torch.uint8, device="cuda")


def test_a_pass_that_does_not_fit_is_done_in_halves(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run(bench)  # what cuBLAS keeps is there then
    whole, most = run(bench)
    with monkeypatch.context() as patch:
        patch.setattr(training, "GPU_RECORDS_A_PASS", RECORDS // 2)
        least = run(bench)[1]
    assert least < 0.7 * most
    filling = fill((most + least) // 2)
    halves, _ = run(bench)
    del filling
    torch.cuda.empty_cache()
    assert [record.getMessage() for record in caplog.records] == [
        f"no memory for {RECORDS} records to train on at once; going on with {RECORDS // 2}"
    ]
    assert halves.loss == pytest.approx(whole.loss, rel=1e-3)
    flat = [np.concatenate([array.ravel() for array in each.arrays.values()]) for each in (whole, halves)]
    assert float(np.linalg.norm(flat[0] - flat[1]) / np.linalg.norm(flat[0])) < 0.05


def test_a_half_that_does_not_fit_is_an_error_that_says_what_to_do(bench: Bench) -> None:
    run(bench)
    filling = fill(64 * 2**20)
    with pytest.raises(OutOfMemory, match=r"no memory for 32 records to train on: .*--workers.*--device cpu"):
        run(bench)
    del filling
    torch.cuda.empty_cache()
    run(bench)
