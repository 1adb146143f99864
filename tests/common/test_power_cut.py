"""The power goes at any moment of a write: every content that the disk may then hold is the old one or the new one."""

from pathlib import Path

import pytest

from common.disk import Content, Disk, parts_of
from common.errors import ArtifactCorrupt
from common.manifests import Manifest
from common.store import publish_folder, verify_folder, write_atomic
from tests.common.power_cut import Node, RecordingDisk, lay_out

FILES = {"a.bin": b"first", "deep/er/b.bin": b"second"}
MANIFEST = Manifest("adapter", "v1", (), 0)


def left_behind(disk: RecordingDisk, folder: Path) -> list[Path]:
    """Make each tree that a power cut could leave real."""
    roots = []
    for number, tree in enumerate(disk.trees):
        roots.append(folder / str(number))
        roots[-1].mkdir(parents=True)
        lay_out(tree, roots[-1])
    return roots


def test_a_file_is_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    (tmp_path / "root" / "names").mkdir(parents=True)
    (tmp_path / "root" / "names" / "file").write_bytes(b"old content")
    disk = RecordingDisk(tmp_path / "root")
    write_atomic(tmp_path / "root" / "names" / "file", b"new, longer content", disk)
    found = {(root / "names" / "file").read_bytes() for root in left_behind(disk, tmp_path / "left")}
    assert found == {b"old content", b"new, longer content"}


def test_what_was_written_stays(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    disk = RecordingDisk(tmp_path / "root")
    write_atomic(tmp_path / "root" / "deep" / "er" / "file", b"content", disk)
    published = publish_folder(tmp_path / "root" / "versions" / "v1", FILES, MANIFEST, disk)
    assert disk.now == RecordingDisk(tmp_path / "root").now  # as the real disk has it, and nothing else
    assert verify_folder(tmp_path / "root" / "versions" / "v1") == published


def test_an_artifact_is_whole_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    disk = RecordingDisk(tmp_path / "root")
    published = publish_folder(tmp_path / "root" / "versions" / "v1", FILES, MANIFEST, disk)
    seen = set()
    for root in left_behind(disk, tmp_path / "left"):
        artifact = root / "versions" / "v1"
        seen.add(artifact.exists())
        if artifact.exists():
            assert verify_folder(artifact) == published
    assert seen == {False, True}


class Forgetful(RecordingDisk):
    """Leaves one kind of step out, as a careless edit would."""

    left_out = ""

    def write(self, path: Path, content: Content) -> None:
        if self.left_out == "sync a file":
            self._node(path.parent).change({path.name: Node(content=b"".join(parts_of(content)))})
            path.write_bytes(b"".join(parts_of(content)))
        else:
            super().write(path, content)

    def sync_folder(self, folder: Path) -> None:
        if self.left_out != "sync a folder":
            super().sync_folder(folder)


@pytest.mark.parametrize("left_out", ["sync a file", "sync a folder"])
def test_a_step_left_out_is_noticed(tmp_path: Path, left_out: str) -> None:
    (tmp_path / "root" / "versions").mkdir(parents=True)
    disk = Forgetful(tmp_path / "root")
    disk.left_out = left_out
    publish_folder(tmp_path / "root" / "versions" / "v1", FILES, MANIFEST, disk)
    damaged = 0
    for root in left_behind(disk, tmp_path / "left"):
        try:
            verify_folder(root / "versions" / "v1")
        except ArtifactCorrupt:
            damaged += (root / "versions" / "v1").exists()
    assert damaged


def test_the_real_disk_syncs_before_it_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr("os.fsync", synced.append)
    Disk().write(tmp_path / "file", b"1")
    Disk().sync_folder(tmp_path)
    assert len(synced) == 2
