"""What a simulation asks of a GPU, on machines without one."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from anabranch import simulation
from anabranch.parts import Parts
from anabranch.simulation import Simulation
from common.errors import InvalidSetting
from tests.integration.test_federated import make_dataset, settings_for, simulate


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_refused_before_anything_is_written(tiny_bert: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match=r"device 'cuda' is not here.*--device auto"):
        simulate(tmp_path / "store", settings_for(tiny_bert, device="cuda"))
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(("device", "asked", "started"), [("cpu", 0, 9), ("cuda", 0, 4), ("cuda", 7, 7)])
def test_few_workers_share_a_gpu_unless_told_otherwise(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, asked: int, started: int
) -> None:
    found: list[int] = []

    @contextmanager
    def counted(configs: object, workers: int) -> Iterator[None]:
        found.append(workers)
        yield

    monkeypatch.setattr(simulation, "resolve_device", torch.device)
    monkeypatch.setattr(simulation, "in_process", counted)
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    run = Simulation(
        make_dataset(), tmp_path, settings_for(tiny_bert, clients=9, cohort=9, device=device, workers=asked)
    )
    with run._engine(run._deal(Parts.of(make_dataset(), 0.0, 0))):
        pass
    assert found == [started]
