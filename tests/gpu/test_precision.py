"""Training in half precision on a GPU against float32 on the same GPU."""

from pathlib import Path

import numpy as np
import pytest
import torch

from client import train as training
from client.train import TrainPlan, train
from common.encoder.adapter import TextEncoder, initial_adapter
from common.encoder.cache import open_or_build
from common.encoder.spec import EncoderSpec
from common.ids import rng_for
from tests.client.federation import make_data
from tests.encoders import WORDS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


def test_half_precision_is_near_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = TextEncoder.load(EncoderSpec.default(), "cuda")
    texts = [" ".join(rng_for("gpu", row).choice(WORDS, size=8)) for row in range(24)]
    cache = open_or_build(tmp_path, encoder, texts)
    base = initial_adapter({name: array.shape for name, array in encoder.adapter().items()}, 0)
    names = tuple(name for name in base if "lora_B" in name)
    plan = TrainPlan(names, "user", 1.0, 1, 0.0, 0.5, 4, 3, 0.05, 1.0, 1)
    half = train(plan, base, make_data(users=8), encoder, cache)
    monkeypatch.setattr(training, "HALF_PRECISION_DEVICES", ())
    full = train(plan, base, make_data(users=8), encoder, cache)
    assert half.loss == pytest.approx(full.loss, rel=0.02)
    assert all(array.dtype == np.float32 for array in half.arrays.values())
    whole, other = (np.concatenate([each.arrays[name].ravel() for name in names]) for each in (full, half))
    assert float(whole @ other / np.linalg.norm(whole) / np.linalg.norm(other)) > 0.98
