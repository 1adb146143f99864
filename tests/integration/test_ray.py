"""Flower's simulation on Ray comes to the adapter of worker processes; where Ray is not installed nothing is tested."""

from pathlib import Path

import pytest

from server.async_terms import AsyncTerms
from tests.integration.test_federated import settings_for, simulate

pytest.importorskip("ray", reason="the extra `ray` is not installed")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own: files and sockets that it leaves to the collector
@pytest.mark.parametrize("without_rounds", [False, True])
def test_nodes_on_ray_come_to_the_adapter_of_worker_processes(
    tiny_bert: Path, tmp_path: Path, without_rounds: bool
) -> None:
    how = {"asynchronous": AsyncTerms(2, stragglers=0.3), "uplink": "int8"} if without_rounds else {}
    expected = simulate(tmp_path / "in-process", settings_for(tiny_bert, workers=2, **how))
    found = simulate(tmp_path / "ray", settings_for(tiny_bert, workers=2, engine="flower", **how))
    assert found.state.adapter_sha256 == expected.state.adapter_sha256
    for told in ("clients", "traffic", "staleness", "privacy"):
        assert found.as_json()[told] == expected.as_json()[told]
