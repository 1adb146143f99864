"""Flower's simulation on Ray comes to the adapter of worker processes; where Ray is not installed nothing is tested."""

from pathlib import Path

import pytest

from tests.integration.test_federated import settings_for, simulate

pytest.importorskip("ray", reason="the extra `ray` is not installed")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own: files and sockets that it leaves to the collector
def test_nodes_on_ray_come_to_the_adapter_of_worker_processes(tiny_bert: Path, tmp_path: Path) -> None:
    expected = simulate(tmp_path / "in-process", settings_for(tiny_bert, workers=2))
    found = simulate(tmp_path / "ray", settings_for(tiny_bert, workers=2, engine="flower"))
    assert found.state.adapter_sha256 == expected.state.adapter_sha256
    assert found.as_json()["clients"] == expected.as_json()["clients"]
