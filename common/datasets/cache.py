"""Data sets on this machine: whole, hashed, in the user's cache folder.

Each lies in ``<cache>/datasets/<name>`` with a manifest that holds the SHA-256 of every file. It is re-hashed on every
read, so a damaged copy is noticed before it is learned from.
"""

import os
import shutil
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from common.errors import ArtifactCorrupt, DatasetUnavailable
from common.manifests import Manifest
from common.store import MANIFEST_NAME, publish_folder, read_manifest, sync_folder, verify_folder

CACHE_VARIABLE = "ANABRANCH_CACHE"
KIND = "dataset"


def cache_folder(override: Path | None = None) -> Path:
    """Return the folder for what can be had again: `override`, else $ANABRANCH_CACHE, else the user's cache folder."""
    if override is not None:
        return override
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named).expanduser() if named else Path(platformdirs.user_cache_dir("anabranch", appauthor=False))


@dataclass(frozen=True, slots=True)
class CachedFiles:
    """The files of one data set, as they passed the check.

    Parameters
    ----------
    files
        Name to content.
    details
        What was noted when they were stored: "origin", "licence" and whatever its reader needs.
    """

    files: Mapping[str, bytes]
    details: Mapping[str, object]


class DatasetCache:
    """The data sets stored under one cache folder.

    Parameters
    ----------
    root
        The cache folder; made on the first write.
    """

    def __init__(self, root: Path) -> None:
        self.folder = root / "datasets"

    def names(self) -> tuple[str, ...]:
        """Return the names of what is stored, sorted."""
        if not self.folder.is_dir():
            return ()
        return tuple(sorted(path.parent.name for path in self.folder.glob(f"[!.]*/{MANIFEST_NAME}")))

    def path(self, name: str) -> Path:
        """Return the folder of a data set, stored or not."""
        return self.folder / name

    def holds(self, name: str) -> bool:
        """Tell whether the data set is stored, whole or damaged."""
        return self.path(name).is_dir()

    def details(self, name: str) -> Mapping[str, object]:
        """Return what was noted when the data set was stored, without reading its files.

        Raises
        ------
        ArtifactCorrupt
            When the manifest cannot be read.
        """
        return read_manifest(self.path(name)).details

    def read(self, name: str) -> CachedFiles:
        """Return the files of a stored data set, re-hashed.

        Raises
        ------
        ArtifactCorrupt
            When a file is missing, unreadable or not what was stored, naming it.
        """
        folder = self.path(name)
        try:
            manifest = verify_folder(folder)
            files = {file: (folder / file).read_bytes() for file in manifest.files}
        except OSError as error:
            raise ArtifactCorrupt(f"{folder} cannot be read: {error.strerror}") from error
        return CachedFiles(files, manifest.details)

    def write(self, name: str, files: Mapping[str, bytes], details: Mapping[str, object], created_at: int) -> None:
        """Store a data set, in the place of an older copy if there is one.

        The name is a link to a folder that never changes, and is moved to a new one in one step: a reader or a crash
        finds the old copy or the new one.

        Raises
        ------
        DatasetUnavailable
            When the cache folder cannot be written.
        """
        fresh = self.folder / f".{name}.{uuid.uuid4().hex}"
        link = fresh.with_name(f"{fresh.name}.link")
        target = self.path(name)
        manifest = Manifest(kind=KIND, version=name, parents=(), created_at=created_at, details=details)
        try:
            publish_folder(fresh, files, manifest)
            old = target.resolve() if target.is_symlink() else None
            link.symlink_to(fresh.name, target_is_directory=True)
            os.replace(link, target)
            sync_folder(self.folder)
        except OSError as error:
            shutil.rmtree(fresh, ignore_errors=True)
            with suppress(OSError):
                link.unlink(missing_ok=True)
            raise DatasetUnavailable(
                f"{self.folder} cannot be written: {error.strerror}",
                consequence=f"data set {name!r} was not stored",
                mend=f"free space, or name another folder in {CACHE_VARIABLE}",
            ) from error
        if old is not None and old.parent == self.folder.resolve():
            shutil.rmtree(old, ignore_errors=True)
