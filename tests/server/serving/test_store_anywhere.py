"""What is served is whole, wherever the store lies: a flipped byte in any file of a version keeps it out."""

import logging
from pathlib import Path

import pytest

from common.errors import ArtifactCorrupt
from server.registry import Registry
from server.serving.bundle import load_bundle
from server.serving.recommend import Question, recommend
from server.serving.reload import ReloadingSource
from server.store_info import StoreInfo
from tests.server.serving.stores import SHA256, checker_board, publish, version_files


def test_a_version_with_a_flipped_byte_in_any_file_is_never_served(
    store: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    now = [0.0]
    source = ReloadingSource(store.root, monotonic=lambda: now[0])
    assert source.refresh()
    publish(store, "v000002", seed=2, parents=("v000001",))
    folder = store.folder("v000002")
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert set(version_files(store, 2)) | {"manifest.json", "manifest.sha256"} == set(names)
    for name in names:
        whole = (folder / name).read_bytes()
        for at in {0, len(whole) // 2, len(whole) - 1}:
            (folder / name).write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            now[0] += 3600.0  # past the time for which a refused version is not tried again
            with caplog.at_level(logging.WARNING):
                assert not source.refresh()
            assert source.bundle().version == "v000001", name
            with pytest.raises(ArtifactCorrupt):
                load_bundle(store)
        (folder / name).write_bytes(whole)
    assert "model v000002 is not taken up, v000001 stays" in caplog.text
    now[0] += 3600.0
    assert source.refresh()
    assert source.bundle().version == "v000002"


def test_a_remote_store_is_served_and_followed(tmp_path: Path) -> None:
    address = f"memory://{tmp_path.name}/served"
    local = publish_in(str(tmp_path / "local"), "v000001")
    remote = publish_in(address, "v000001")
    ask = Question(None, ("0", "2"), None, 3, True, False)
    expected = recommend(load_bundle(local), ask, None, "r1")
    found = recommend(load_bundle(remote), ask, None, "r1")
    assert [item.item_id for item in found.items] == [item.item_id for item in expected.items]
    source = ReloadingSource(address)
    assert source.refresh()
    assert source.bundle().stream is None
    assert not source.refresh()
    publish(remote, "v000002", seed=2)
    assert source.refresh()
    assert source.bundle().version == "v000002"
    assert source.models() == (("v000001", "v000002"), "v000002")


def publish_in(address: str, version: str) -> Registry:

    registry = Registry.create(address, StoreInfo("words", SHA256, "checker-board", 1_000), checker_board())
    publish(registry, version, seed=1)
    return registry
