"""Storages of every kind, for the laws that all of them keep."""

import uuid
from dataclasses import dataclass
from pathlib import Path

import pytest

from server.storage import storage_at
from server.storage.base import Storage
from tests.server import object_store

KINDS = ("local", "memory", "s3")


@dataclass(frozen=True)
class Place:
    """An address that nobody used yet, and the environment in which another process finds it."""

    kind: str
    address: str
    environment: dict[str, str]

    def storage(self) -> Storage:
        return storage_at(self.address)


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Give an empty place of one kind."""
    if request.param == "local":
        return Place("local", str(tmp_path / "store"), {})
    if request.param == "memory":
        return Place("memory", f"memory://{uuid.uuid4().hex}/store", {})
    environment: dict[str, str] = request.getfixturevalue("s3")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return Place("s3", f"s3://{object_store.BUCKET}/{uuid.uuid4().hex}", environment)
