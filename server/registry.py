"""The store of models: immutable versions, movable names that point at them.

Layout::

    store.json                 what the store was made for
    catalogue.jsonl            the items, one a line, in the order of all item arrays
    versions/<version>/        immutable: files and a manifest with their SHA-256s
    pointers/<name>            the version that the name stands for ("current", "champion", ...), and a check

A version is visible only once it is whole (written aside, synced, renamed), and a pointer is replaced in one step. So a
reader, or whoever comes after a crash, finds the old state or the new one. So much for a local folder; how other places
keep the same promises, and which one is weaker there, is said in `server.storage.remote`.
"""

import hashlib
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from common.errors import (
    ArtifactCorrupt,
    InvalidSetting,
    NoModel,
    StoreError,
    StoreMismatch,
    VersionExists,
    VersionNotFound,
)
from common.items import Catalogue
from common.manifests import Manifest
from common.store import map_bytes, unpack_arrays, view_arrays
from server.storage import storage_at
from server.storage.base import VERSIONS, Storage
from server.storage.local import LocalStorage
from server.store_info import STORE_NAME, StoreInfo, read_description, refuse_difference, write_description

CURRENT = "current"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SHOWN = 10


class Registry:
    """One store: its catalogue, its versions, its pointers.

    Made by `Registry.create` or `Registry.open`.

    Parameters
    ----------
    storage
        Where it lies.
    info
        What the store was made for.
    catalogue
        The items in the order of all item arrays.
    """

    def __init__(self, storage: Storage, info: StoreInfo, catalogue: Catalogue) -> None:
        self.storage, self.info, self.catalogue = storage, info, catalogue

    @classmethod
    def create(cls, root: Path | str, info: StoreInfo, catalogue: Catalogue) -> "Registry":
        """Make the store, or open it when it is there already and was made for the same.

        `created_at` and `program` may differ: they say when and by whom, not what for.

        Raises
        ------
        StoreMismatch
            When a store of another encoder, data set or catalogue lies there, naming the difference.
        """
        storage = storage_at(root)
        try:
            storage.read(STORE_NAME)
        except (FileNotFoundError, NotADirectoryError):
            pass
        else:
            existing = cls.of(storage)
            refuse_difference(existing.address, (existing.info, existing.catalogue), (info, catalogue))
            return existing
        write_description(storage, info, catalogue)
        return cls(storage, info, catalogue)

    @classmethod
    def open(cls, root: Path | str) -> "Registry":
        """Open an existing store: a folder, or an address like ``s3://bucket/prefix``.

        Raises
        ------
        NoModel
            When `root` is no store.
        StoreMismatch
            When it has another format.
        ArtifactCorrupt
            When store.json or the catalogue is damaged.
        """
        return cls.of(storage_at(root))

    @classmethod
    def of(cls, storage: Storage) -> "Registry":
        """Open the store that lies in a storage; errors as for `open`."""
        return cls(storage, *read_description(storage))

    @property
    def address(self) -> str:
        """What a person would type to name the store."""
        return self.storage.address

    @property
    def is_local(self) -> bool:
        """Whether the store is a folder of this machine."""
        return isinstance(self.storage, LocalStorage)

    @property
    def root(self) -> Path:
        """The folder of a local store.

        Raises
        ------
        StoreError
            When the store is remote.
        """
        return self._local().root

    def _local(self) -> LocalStorage:
        if isinstance(self.storage, LocalStorage):
            return self.storage
        raise StoreError(f"the store {self.address} is remote", expected="a local folder, which is needed here")

    def publish(self, files: Mapping[str, bytes], manifest: Manifest) -> Manifest:
        """Write `manifest.version` as an immutable folder; no pointer moves.

        Parameters
        ----------
        files
            Relative name ("adapter/adapter_model.safetensors") to content.
        manifest
            Names the version; its `files` are filled in.

        Returns
        -------
        Manifest
            As written.

        Raises
        ------
        StoreMismatch
            When it was made with another base encoder than the store's.
        VersionExists
            When the version exists: of two publishers of one version the first wins, whole.
        """
        _checked_name("version", manifest.version)
        if manifest.base_sha256 != self.info.encoder_sha256:
            raise StoreMismatch(
                f"version {manifest.version!r} was made with encoder {manifest.base_encoder!r} "
                f"(SHA-256 {manifest.base_sha256 or 'not given'})",
                expected=f"{self.info.encoder!r} (SHA-256 {self.info.encoder_sha256})",
                consequence="nothing was written",
                mend="use another --store for another encoder",
            )
        try:
            return self.storage.publish(manifest.version, files, manifest)
        except FileExistsError as error:
            raise VersionExists(
                f"version {manifest.version!r} of {self.address} exists already",
                expected="a new version name",
                consequence="versions are immutable, so nothing was written",
                mend="stop the other process that publishes to this store",
            ) from error

    def names(self) -> tuple[str, ...]:
        """Return the names of all whole versions, sorted; nothing is read."""
        return tuple(name for name in self.storage.versions() if _NAME.fullmatch(name))

    def versions(self) -> tuple[Manifest, ...]:
        """Return the manifests of all whole versions, oldest first.

        Raises
        ------
        ArtifactCorrupt
            When a manifest cannot be read, or was changed since it was published.
        """
        found, damaged = self.examine()
        if damaged:
            raise next(iter(damaged.values()))
        return found

    def examine(self) -> tuple[tuple[Manifest, ...], dict[str, ArtifactCorrupt]]:
        """Return the manifests that can be read, oldest first, and what is wrong with each of the others."""
        found: list[Manifest] = []
        damaged: dict[str, ArtifactCorrupt] = {}
        for name in self.names():
            try:
                found.append(self.manifest(name))
            except VersionNotFound:
                continue  # somebody has just removed it
            except ArtifactCorrupt as error:
                if self.storage.has(name):
                    damaged[name] = error
        return tuple(sorted(found, key=lambda manifest: (manifest.created_at, manifest.version))), damaged

    def resolve(self, version: str) -> str:
        """Return the version's name, given that or the name of a pointer.

        Raises
        ------
        VersionNotFound
            When there is none, naming those that exist.
        """
        if _NAME.fullmatch(version):
            if self.storage.has(version):
                return version
            target = self.pointer(version)
            if target is not None and _NAME.fullmatch(target) and self.storage.has(target):
                return target
        raise VersionNotFound(f"no version {version!r} in {self.address}", expected=self._known())

    def manifest(self, version: str) -> Manifest:
        """Return the manifest of a version or pointer name.

        Raises
        ------
        VersionNotFound
            When there is none, naming those that exist.
        ArtifactCorrupt
            When it cannot be read, or was changed since it was published.
        """
        name = self.resolve(version)
        manifest = self.storage.manifest(name)
        if manifest.version != name:
            raise ArtifactCorrupt(
                f"version {name!r} of {self.address} holds the manifest of {manifest.version!r}",
                expected="its own",
                consequence="it is not used",
                mend="roll back to another version",
            )
        return manifest

    def folder(self, version: str) -> Path:
        """Return where a version of a local store lies; errors as for `resolve` and `root`."""
        return self._local().folder(self.resolve(version))

    def read(self, version: str, file: str) -> bytes:
        """Return one file of a version or pointer name.

        Raises
        ------
        ArtifactCorrupt
            When it is missing, or its SHA-256 is not what the manifest says.
        """
        name, path, expected = self._listed(version, file)
        with _unreadable(path):
            raw = self.storage.read_file(name, file)
        _compare(path, hashlib.sha256(raw).hexdigest(), expected)
        return raw

    def arrays(self, version: str, file: str, *, mapped: bool = False) -> dict[str, np.ndarray]:
        """Read one safetensors file of a version.

        Parameters
        ----------
        mapped
            Whether the arrays of a local store may be left where they are, read only: for a caller that soon lets go
            of them, since a disk may change what was compared. A remote store's are always read.

        Raises
        ------
        ArtifactCorrupt
            When it is missing, or its SHA-256 or a tensor is not what the manifest says.
        """
        if not (mapped and self.is_local):
            return unpack_arrays(self.read(version, file), f"{self.address}/{VERSIONS}/{version}/{file}")
        name, path, expected = self._listed(version, file)
        with _unreadable(path):
            raw = map_bytes(self._local().folder(name) / file)
        _compare(path, hashlib.sha256(raw.data).hexdigest(), expected)
        return view_arrays(raw, path)

    def _listed(self, version: str, file: str) -> tuple[str, str, str]:
        """Return the version's name, the file's path, and the SHA-256 that the manifest has of it."""
        manifest = self.manifest(version)
        path = f"{self.address}/{VERSIONS}/{manifest.version}/{file}"
        if file not in manifest.files:
            raise ArtifactCorrupt(f"{path} is not in the manifest", expected=f"a version with {file}")
        return manifest.version, path, manifest.files[file]

    def pointers(self) -> dict[str, str]:
        """Return each name that is set, and the version that it stands for."""
        targets = {name: self.pointer(name) for name in self.storage.pointers() if _NAME.fullmatch(name)}
        return {name: target for name, target in targets.items() if target is not None}

    def pointer(self, name: str) -> str | None:
        """Return the version that the name points at, or None when the name is not set."""
        return self.storage.pointer(_checked_name("pointer", name))

    def point(self, name: str, version: str) -> None:
        """Let the name stand for the version, in one step.

        Raises
        ------
        VersionNotFound
            When there is no such version; the pointer stays where it was.
        """
        _checked_name("pointer", name)
        if not (_NAME.fullmatch(version) and self.storage.point(name, version)):
            raise VersionNotFound(
                f"no version {version!r} in {self.address}",
                expected=self._known(),
                consequence=f"{name!r} stays at {self.pointer(name) or 'nothing'}",
            )

    def current(self) -> Manifest:
        """Return the manifest that `current` points at.

        Raises
        ------
        NoModel
            When nothing was published yet.
        """
        while (version := self.pointer(CURRENT)) is not None:
            try:
                return self.manifest(version)
            except (VersionNotFound, ArtifactCorrupt):
                # it may have been removed after the name moved on
                if self.pointer(CURRENT) == version:
                    raise
        raise NoModel(
            f"{self.address} holds no current model",
            expected="a published version",
            mend=f"anabranch simulate --store {self.address}",
        )

    def verify(self, version: str, but: Collection[str] = ()) -> Manifest:
        """Re-hash every file of a version and return its manifest.

        Parameters
        ----------
        but
            Files that are left out, because the caller goes on to read them, which compares them too.

        Raises
        ------
        ArtifactCorrupt
            When a file is missing or differs, naming it.
        """
        manifest = self.manifest(version)
        for file, expected in manifest.files.items():
            if file in but:
                continue
            path = f"{self.address}/{VERSIONS}/{manifest.version}/{file}"
            with _unreadable(path):
                found = self.storage.sha256(manifest.version, file)
            _compare(path, found, expected)
        return manifest

    def _known(self) -> str:
        names = self.names()
        if not names:
            return "a published version (there is none yet)"
        more = f"{len(names) - _SHOWN} older ones, " if len(names) > _SHOWN else ""
        return f"one of {more}{', '.join(names[-_SHOWN:])}"


@contextmanager
def _unreadable(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ArtifactCorrupt(
            f"{path} cannot be read: {error.strerror or error}",
            expected="every file of the manifest",
            consequence="the version is not used",
            mend="roll back to another version",
        ) from error


def _compare(path: str, found: str, expected: str) -> None:
    if found != expected:
        raise ArtifactCorrupt(
            f"{path} has SHA-256 {found}",
            expected=expected,
            consequence="the version is not used",
            mend="roll back to another version",
        )


def _checked_name(kind: str, name: str) -> str:
    if not _NAME.fullmatch(name):
        raise InvalidSetting(
            f"{kind} name {name!r}", expected="1 to 100 letters, digits, dots, dashes or underscores, no leading dot"
        )
    return name
