"""What every test may ask for, and how Hypothesis runs."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.brokers import embedded, impatient, kafka, servers, topic
from tests.server import object_store

__all__ = ["embedded", "impatient", "kafka", "servers", "topic"]  # fixtures

# derandomised: a failure here is a failure everywhere; no deadline: CI machines are slow at times
settings.register_profile(
    "ci", derandomize=True, deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("search", deadline=None, max_examples=2000)
settings.load_profile("ci")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Give the folder of real data that lies beside the checkout, or skip."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the folder shared/data with real data is not beside the checkout")
    return folder


@pytest.fixture(scope="session")
def s3() -> Iterator[dict[str, str]]:
    """Give the environment in which s3fs finds a server on loopback.

    One server a session: fsspec keeps the connection that a process made first, whatever the environment says later.
    """
    with object_store.running() as environment:
        yield environment


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of a tiny BERT; torch gets one thread, as in a worker."""
    import torch

    from tests.encoders import save_tiny_bert

    torch.set_num_threads(1)
    return save_tiny_bert(tmp_path_factory.mktemp("encoders") / "tiny")
