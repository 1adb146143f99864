"""A store in a local folder: a version becomes visible by one rename, a pointer moves by another."""

import fcntl
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from common.disk import DISK, Disk
from common.errors import ArtifactCorrupt
from common.manifests import Manifest
from common.store import file_sha256, publish_folder, read_manifest, write_atomic
from server.storage.base import POINTERS, VERSIONS, decoded_pointer, encoded_pointer

LOCK_NAME = ".lock"


class LocalStorage:
    """A folder. What has a leading dot is nobody's: half a version, or one that is being removed.

    Parameters
    ----------
    root
        The folder; made on the first write.
    disk
        What writes.
    """

    def __init__(self, root: Path, disk: Disk = DISK) -> None:
        self.root, self._disk = root, disk

    @property
    def address(self) -> str:
        """The folder's path."""
        return str(self.root)

    def folder(self, version: str) -> Path:
        """Return where a version lies, or would."""
        return self.root / VERSIONS / version

    def read(self, name: str) -> bytes:
        """Return the content of a file at the top."""
        return (self.root / name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        """Replace a file at the top in one step that survives a power cut."""
        write_atomic(self.root / name, content, self._disk)

    def versions(self) -> tuple[str, ...]:
        """Return the names of all versions, sorted."""
        return tuple(sorted(path.name for path in self._listed(VERSIONS) if path.is_dir()))

    def has(self, version: str) -> bool:
        """Tell whether the version is there; it is whole then, since it came by a rename."""
        return self.folder(version).is_dir()

    def publish(self, version: str, files: Mapping[str, bytes], manifest: Manifest) -> Manifest:
        """Write the version aside, sync it, rename it.

        Raises
        ------
        FileExistsError
            When it is there already.
        """
        try:
            return publish_folder(self.folder(version), files, manifest, self._disk)
        except OSError as error:
            # another publisher was faster: a rename onto a folder with content is refused by either name
            if self.has(version):
                raise FileExistsError(str(self.folder(version))) from error
            raise

    def manifest(self, version: str) -> Manifest:
        """Return a version's manifest, held against its seal."""
        return read_manifest(self.folder(version))

    def read_file(self, version: str, name: str) -> bytes:
        """Return one file of a version."""
        return (self.folder(version) / name).read_bytes()

    def sha256(self, version: str, name: str) -> str:
        """Return the SHA-256 of one file of a version, without holding it in memory."""
        return file_sha256(self.folder(version) / name)

    def size(self, version: str) -> int:
        """Return how many bytes the files of a version hold."""
        total = 0
        # somebody else may be removing it
        with suppress(FileNotFoundError):
            for path in self.folder(version).rglob("*"):
                total += path.stat().st_size if path.is_file() else 0
        return total

    def pointers(self) -> tuple[str, ...]:
        """Return the names that are set, sorted."""
        return tuple(sorted(path.name for path in self._listed(POINTERS) if path.is_file()))

    def pointer(self, name: str) -> str | None:
        """Return the version that a name stands for, or None."""
        path = self.root / POINTERS / name
        try:
            return decoded_pointer(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise ArtifactCorrupt(f"pointer {path} cannot be read: {error}", mend="anabranch model promote") from error

    def point(self, name: str, version: str) -> bool:
        """Let a name stand for a version; nobody removes the version meanwhile."""
        if not self.has(version):
            return False
        with self._alone():
            if not self.has(version):
                return False
            self.write(f"{POINTERS}/{name}", encoded_pointer(version))
            return True

    def delete(self, version: str) -> bool:
        """Rename a version away, then remove it; no name is moved to it meanwhile."""
        aside = self.folder(f".{version}.{uuid.uuid4().hex}.deleted")
        with self._alone():
            if not self.has(version) or version in map(self.pointer, self.pointers()):
                return False
            self._disk.rename(self.folder(version), aside)
            self._disk.sync_folder(aside.parent)
        self._disk.remove_tree(aside)
        return True

    def sweep(self, before: int) -> int:
        """Remove what has a leading dot and was last changed before a time."""
        removed = 0
        for folder in (self.root, self.root / VERSIONS, self.root / POINTERS):
            for path in folder.glob(".*") if folder.is_dir() else ():
                if not path.name.endswith((".tmp", ".deleted")) or _changed(path) >= before:
                    continue
                self._disk.remove_tree(path) if path.is_dir() else self._disk.remove(path)
                removed += 1
        return removed

    def _listed(self, folder: str) -> Iterator[Path]:
        if (self.root / folder).is_dir():
            yield from (path for path in (self.root / folder).iterdir() if not path.name.startswith("."))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the lock under which pointers move and versions go; the system frees it when a holder dies."""
        handle = os.open(self.root / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def _changed(path: Path) -> int:
    """Return when a piece was last changed, in milliseconds; one that is gone by now counts as new."""
    try:
        return path.stat().st_mtime_ns // 1_000_000
    except FileNotFoundError:
        return 1 << 62
