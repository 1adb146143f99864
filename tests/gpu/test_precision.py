"""Training in half precision on a GPU against float32 on the same GPU."""

from pathlib import Path

import numpy as np
import pytest

from client import train as training
from client.train import TrainPlan, train
from common.encoder.adapter import initial_adapter
from common.encoder.spec import DEFAULT_ENCODER
from tests.client.federation import make_bench, make_data
from tests.gpu.marks import GPU

pytestmark = GPU


def test_half_precision_is_near_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = make_bench(DEFAULT_ENCODER, tmp_path, "cuda")
    base, names = initial_adapter({name: array.shape for name, array in bench.base.items()}, 0), bench.b_names
    plan = TrainPlan(names, "user", 1.0, 1, 0.0, 0.5, 4, 3, 0.05, 1.0, 1)
    half = train(plan, base, make_data(users=8), bench.encoder, bench.cache)
    monkeypatch.setattr(training, "HALF_PRECISION_DEVICES", ())
    full = train(plan, base, make_data(users=8), bench.encoder, bench.cache)
    assert half.loss == pytest.approx(full.loss, rel=0.02)
    assert all(array.dtype == np.float32 for array in half.arrays.values())
    whole, other = (np.concatenate([each.arrays[name].ravel() for name in names]) for each in (full, half))
    assert float(whole @ other / np.linalg.norm(whole) / np.linalg.norm(other)) > 0.98
