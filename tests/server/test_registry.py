"""The store: what is visible is whole, what does not fit is refused with its reason."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.errors import ArtifactCorrupt, InvalidSetting, NoModel, StoreError, StoreMismatch, VersionNotFound
from common.items import Catalogue, Item
from common.store import unpack_arrays
from server.registry import Registry
from server.serving.bundle import ADAPTER_FILE, VECTORS_FILE, VECTORS_TENSOR
from server.store_info import StoreInfo
from tests.server.serving.stores import (
    SHA256,
    checker_board,
    new_store,
    publish,
    version_files,
    version_manifest,
)

INFO = StoreInfo("words", SHA256, "checker-board", 1_000)


def test_a_store_opens_with_what_it_was_made_with(tmp_path: Path) -> None:
    item = Item("a\n", "Ä", "text 日本", ("x",), 5, {"v": (1.0, 2.5)})
    made = Registry.create(tmp_path / "deep" / "store", INFO, Catalogue([item]))
    opened = Registry.open(made.root)
    assert opened.info == INFO
    assert tuple(opened.catalogue) == (item,)


def test_creating_again_for_the_same_opens(tmp_path: Path) -> None:
    new_store(tmp_path)
    again = Registry.create(tmp_path, replace(INFO, created_at=9, program="other"), checker_board())
    assert again.info.created_at == 1_000


@pytest.mark.parametrize(
    ("info", "items", "named"),
    [
        (replace(INFO, data="other"), 20, "data 'checker-board'"),
        (replace(INFO, encoder="bert"), 20, "encoder 'words'"),
        (replace(INFO, encoder_sha256="6" * 64), 20, "encoder_sha256"),
        (INFO, 21, "number of items 20"),
    ],
)
def test_creating_for_something_else_is_refused(tmp_path: Path, info: StoreInfo, items: int, named: str) -> None:
    new_store(tmp_path)
    with pytest.raises(StoreMismatch, match=named):
        Registry.create(tmp_path, info, checker_board(items))


def test_a_changed_item_is_refused_by_name(tmp_path: Path) -> None:
    new_store(tmp_path)
    items = list(checker_board())
    items[3] = replace(items[3], text="another text")
    with pytest.raises(StoreMismatch, match=r"item 3 '3'; expected item 3 '3 with other content'"):
        Registry.create(tmp_path, INFO, Catalogue(items))


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(NoModel, match=r"is no model store; expected a folder with store\.json"):
        Registry.open(tmp_path)


def test_another_format_is_refused(tmp_path: Path) -> None:
    new_store(tmp_path)
    path = tmp_path / "store.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(StoreMismatch, match="store format 2; expected format 1"):
        Registry.open(tmp_path)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"format": 1}', b'\xff{"format": 1}'])
def test_a_damaged_store_file_is_found(tmp_path: Path, content: bytes) -> None:
    new_store(tmp_path)
    (tmp_path / "store.json").write_bytes(content)
    with pytest.raises((ArtifactCorrupt, StoreMismatch)):
        Registry.open(tmp_path)


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def test_a_flipped_byte_of_the_catalogue_is_found(tmp_path: Path) -> None:
    new_store(tmp_path)
    flip(tmp_path / "catalogue.jsonl")
    with pytest.raises(ArtifactCorrupt, match="SHA-256"):
        Registry.open(tmp_path)


@pytest.mark.parametrize("name", [VECTORS_FILE, ADAPTER_FILE])
def test_a_flipped_byte_of_a_version_is_found(tmp_path: Path, name: str) -> None:
    registry = new_store(tmp_path)
    publish(registry, "v000001")
    flip(registry.folder("v000001") / name)
    with pytest.raises(ArtifactCorrupt, match="SHA-256"):
        registry.arrays("v000001", name)
    with pytest.raises(ArtifactCorrupt, match=Path(name).name):
        registry.verify("current")


def test_a_version_reads_back(tmp_path: Path) -> None:
    registry = new_store(tmp_path)
    files = version_files(registry, 1)
    published = registry.publish(files, version_manifest("v000001"))
    expected = unpack_arrays(files[VECTORS_FILE], "here")[VECTORS_TENSOR]
    assert np.array_equal(registry.arrays("v000001", VECTORS_FILE)[VECTORS_TENSOR], expected)
    assert registry.manifest("v000001") == published == registry.verify("v000001")
    assert set(published.files) == set(files)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    registry = new_store(tmp_path)
    publish(registry, "v000001")
    with pytest.raises(ArtifactCorrupt, match=r"other\.safetensors is not in the manifest"):
        registry.arrays("v000001", "other.safetensors")
    (registry.folder("v000001") / VECTORS_FILE).unlink()
    with pytest.raises(ArtifactCorrupt, match=r"item_vectors\.safetensors cannot be read"):
        registry.arrays("v000001", VECTORS_FILE)


def test_pointers_move_and_versions_are_listed_oldest_first(tmp_path: Path) -> None:
    registry = new_store(tmp_path)
    assert registry.pointer("current") is None
    with pytest.raises(NoModel, match="holds no current model"):
        registry.current()
    for version in ("v000002", "v000001"):
        publish(registry, version)
    registry.point("champion", "v000002")
    (tmp_path / "versions" / ".v000003.abc.tmp").mkdir()
    assert [manifest.version for manifest in registry.versions()] == ["v000002", "v000001"]
    assert registry.names() == ("v000001", "v000002")
    assert registry.current().version == "v000001"
    assert registry.manifest("champion").version == "v000002"
    registry.point("current", "v000002")
    assert registry.current().version == "v000002"


def test_an_unknown_version_is_refused_and_the_known_ones_are_named(tmp_path: Path) -> None:
    registry = new_store(tmp_path)
    with pytest.raises(VersionNotFound, match="there is none yet"):
        registry.manifest("v000001")
    for number in range(1, 13):
        publish(registry, f"v{number:06d}")
    with pytest.raises(VersionNotFound, match=r"one of 2 older ones, v000003, .*, v000012"):
        registry.manifest("v000099")
    with pytest.raises(VersionNotFound, match="'current' stays at v000012"):
        registry.point("current", "champion")
    assert registry.pointer("current") == "v000012"


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", ".hidden", "a\n", "x" * 101])
def test_names_cannot_leave_the_store(tmp_path: Path, name: str) -> None:
    registry = new_store(tmp_path)
    with pytest.raises(InvalidSetting):
        registry.publish({}, version_manifest(name))
    with pytest.raises(InvalidSetting):
        registry.pointer(name)
    with pytest.raises(VersionNotFound):
        registry.folder(name)
    with pytest.raises(VersionNotFound):
        registry.point("current", name)


def test_another_encoder_is_refused(tmp_path: Path) -> None:
    registry = new_store(tmp_path)
    with pytest.raises(StoreMismatch, match=r"'bert'.*nothing was written"):
        registry.publish({}, replace(version_manifest("v1"), base_encoder="bert", base_sha256="7" * 64))
    assert registry.names() == ()


def test_one_of_two_publishers_wins_whole(tmp_path: Path) -> None:
    registry = new_store(tmp_path)
    contents = [version_files(registry, seed) for seed in range(4)]
    barrier = threading.Barrier(len(contents))
    outcomes: list[str | int] = []

    def run(seed: int) -> None:
        barrier.wait()
        try:
            registry.publish(contents[seed], version_manifest("v000001"))
        except StoreError as error:
            outcomes.append(str(error))
        else:
            outcomes.append(seed)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(len(contents))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [outcome for outcome in outcomes if isinstance(outcome, int)]
    assert len(winners) == 1
    assert all("exists already" in outcome for outcome in outcomes if isinstance(outcome, str))
    assert (registry.folder("v000001") / VECTORS_FILE).read_bytes() == contents[winners[0]][VECTORS_FILE]
    registry.verify("v000001")


KILLED_PUBLISHER = """
import os, signal, sys
from pathlib import Path
from server.registry import Registry
from tests.server.serving.stores import publish

registry = Registry.open(Path(sys.argv[1]))
left = int(sys.argv[2])


def killing(real):
    def step(*args, **kwargs):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    return step


os.fsync, os.rename, os.replace = killing(os.fsync), killing(os.rename), killing(os.replace)
publish(registry, "v000002", seed=2, parents=("v000001",))
"""


def test_kill_9_at_every_step_of_a_publish_leaves_a_whole_current(tmp_path: Path) -> None:
    registry = new_store(tmp_path)
    publish(registry, "v000001", seed=1)
    states = set()
    for step in range(40):
        died = subprocess.run(
            [sys.executable, "-c", KILLED_PUBLISHER, str(tmp_path), str(step)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert died.returncode in (0, -signal.SIGKILL), died.stderr.decode()
        current = Registry.open(tmp_path).current()
        assert registry.verify("current").version == current.version
        assert all(registry.verify(name) for name in registry.names())
        states.add((current.version, registry.names()))
        if died.returncode == 0:
            break
        if "v000002" in registry.names():
            # versions are immutable; what comes after a crash points at the version that is there
            shutil.rmtree(registry.folder("v000002"))
            registry.point("current", "v000001")
    else:
        pytest.fail("the publisher never came to its end")
    both = ("v000001", "v000002")
    assert states == {("v000001", ("v000001",)), ("v000001", both), ("v000002", both)}
