"""One bench for all tests of the client."""

from pathlib import Path

import pytest

from tests.client.federation import Bench, make_bench


@pytest.fixture(scope="session")
def bench(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return make_bench(tiny_bert, tmp_path_factory.mktemp("bench"))
