"""A checker-board store with its stream, and a real service over it."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from server.registry import Registry
from server.serving.app import create_app
from server.serving.bundle import Bundle, load_bundle
from server.serving.query import QueryTexts
from server.serving.reload import FixedSource
from server.serving.run import serve_in_thread
from tests.server.serving.stores import WordEncoder, board_snapshot, new_store, publish, publish_stream


def board_store(root: Path) -> Registry:
    """Make a store with one version and one snapshot."""
    registry = new_store(root)
    publish(registry, "v000001", seed=1)
    publish_stream(registry.root, "s1", board_snapshot(registry.catalogue))
    return registry


@pytest.fixture
def store(tmp_path: Path) -> Registry:
    return board_store(tmp_path / "store")


@pytest.fixture
def bundle(store: Registry) -> Bundle:
    return load_bundle(store)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve a board store; gives the URL."""
    registry = board_store(tmp_path_factory.mktemp("service") / "store")
    source = FixedSource(registry, load_bundle(registry))
    app = create_app(source, QueryTexts(lambda name: WordEncoder()), clock=lambda: 12_000, new_id=lambda: "r1")
    with serve_in_thread(app) as running:
        yield running.url


@pytest.fixture
def client(service: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service, timeout=30.0) as client:
        yield client


@pytest.fixture
def queries() -> QueryTexts:
    return QueryTexts(lambda name: WordEncoder())
