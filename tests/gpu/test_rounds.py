"""Whole rounds on a GPU: as on a processor, and to the same adapter from one seed however many workers share it."""

from pathlib import Path

import numpy as np

from client.train import train
from common.encoder.spec import DEFAULT_ENCODER
from common.ids import arrays_sha256
from common.instructions import PrivacyTerms
from tests.client.federation import make_bench, make_data
from tests.client.test_train import plan_for
from tests.gpu.marks import GPU
from tests.integration.test_federated import settings_for, simulate

pytestmark = GPU


def test_training_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    bench = make_bench(DEFAULT_ENCODER, tmp_path, "cuda")
    plan, data = plan_for(bench, noise_multiplier=1.0, local_steps=3), make_data(users=70)
    first, again = (train(plan, bench.base, data, bench.encoder, bench.cache) for _ in range(2))
    assert arrays_sha256(first.arrays.items()) == arrays_sha256(again.arrays.items())


def test_a_seed_gives_the_same_adapter_from_one_worker_and_from_two(tiny_bert: Path, tmp_path: Path) -> None:
    results = [
        simulate(tmp_path / str(number), settings_for(tiny_bert, device="cuda", cohort=3, workers=workers))
        for number, workers in enumerate([1, 1, 2])
    ]
    for result in results:
        told = result.as_json()
        assert (told["rounds_run"], told["clients"]["replied"], told["clients"]["failed"]) == (2, 6, 0)
    assert len({result.state.adapter_sha256 for result in results}) == 1
    assert results[2].manifest.metrics == results[0].manifest.metrics


def test_a_round_asks_for_what_it_asks_for_on_a_processor(tiny_bert: Path, tmp_path: Path) -> None:
    off = PrivacyTerms("off", float("inf"), 1e-3, 1.0)
    changes = [
        simulate(tmp_path / device, settings_for(tiny_bert, device=device, rounds=1, privacy=off)).state.adapter
        for device in ("cpu", "cuda")
    ]
    here, there = (
        np.concatenate(
            [(each[name] @ each[name.replace("lora_B", "lora_A")]).ravel() for name in each if "lora_B" in name]
        )
        for each in changes
    )
    assert float(here @ there / np.linalg.norm(here) / np.linalg.norm(there)) > 0.9
