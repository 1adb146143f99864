"""A store on any file system that fsspec knows: object stores above all, where nothing can be renamed or locked.

Layout below the address::

    store.json, catalogue.jsonl, pointers/<name>     as in a local folder
    versions/<version>/published                     one line: the attempt that won, and its manifest's SHA-256
    versions/<version>/<attempt>/                    the files and the manifest, as in a local version
    versions/<version>/deleting                      somebody is about to remove the version

A version exists from the moment that ``published`` does. That object is put on the condition that there is none: of two
publishers one wins. Where a file system knows no such condition (fsspec then ignores or emulates it), two that publish
in the same instant may both believe that they won; the later one did, and its version is whole.

Pointers are single objects, replaced whole; of two that move one at once the later wins. Removing and pointing watch
each other: a remover first leaves a mark, then looks at the pointers; who moves a pointer looks for the mark afterwards
and moves it back. At least one of the two sees the other. In between, a reader may find a pointer to a version that is
just gone; it stays with what it has.
"""

import hashlib
import importlib
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from common.errors import AnabranchError, ArtifactCorrupt, StoreError, StoreUnreachable
from common.manifests import Manifest
from common.store import MANIFEST_NAME, SEAL_NAME, seal, unseal
from server.storage.base import POINTERS, VERSIONS, decoded_pointer, encoded_pointer

PUBLISHED = "published"
DELETING = "deleting"


class RemoteStorage:
    """A prefix of an object store, or of another file system.

    Parameters
    ----------
    address
        Like ``s3://bucket/prefix``; credentials and endpoints come from where the file system looks for them.

    Raises
    ------
    StoreError
        When the file system's package is not installed.
    """

    def __init__(self, address: str) -> None:
        self._address = address.rstrip("/")
        try:
            # listings must not be remembered: other processes publish
            opened = importlib.import_module("fsspec").url_to_fs(self._address, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise StoreError(
                f"the store {address} cannot be opened here: {error}",
                expected="the packages for remote stores",
                mend="pip install 'anabranch[remote]' for s3://, or the package that fsspec names for another scheme",
            ) from error
        self._files: Any = opened[0]
        self._root: str = opened[1].rstrip("/")

    @property
    def address(self) -> str:
        """The address, without a slash at its end."""
        return self._address

    def read(self, name: str) -> bytes:
        """Return the content of an object."""
        with self._asking(name):
            content: bytes = self._files.cat_file(f"{self._root}/{name}")
            return content

    def write(self, name: str, content: bytes) -> None:
        """Put an object whole."""
        with self._writing(name):
            self._files.pipe_file(f"{self._root}/{name}", content)

    def versions(self) -> tuple[str, ...]:
        """Return the names of all versions that somebody finished, sorted."""
        parts = (name.split("/") for name in self._below(VERSIONS))
        return tuple(sorted(part[0] for part in parts if part[1:] == [PUBLISHED]))

    def has(self, version: str) -> bool:
        """Tell whether somebody finished the version."""
        return self._exists(f"{VERSIONS}/{version}/{PUBLISHED}")

    def publish(self, version: str, files: Mapping[str, bytes], manifest: Manifest) -> Manifest:
        """Put the files under a name of this attempt's own, then the object that makes them the version.

        Raises
        ------
        FileExistsError
            When it is there already.
        """
        if self.has(version):
            raise FileExistsError(f"{self._address}/{VERSIONS}/{version}")
        attempt = uuid.uuid4().hex
        written, sealed = seal(files, manifest)
        for name, content in {**files, **sealed}.items():
            self.write(f"{VERSIONS}/{version}/{attempt}/{name}", content)
        line = f"{attempt} {hashlib.sha256(sealed[MANIFEST_NAME]).hexdigest()}\n".encode()
        if not self._claim(f"{VERSIONS}/{version}/{PUBLISHED}", line):
            with suppress(StoreError, OSError):
                self._files.rm(f"{self._root}/{VERSIONS}/{version}/{attempt}", recursive=True)
            raise FileExistsError(f"{self._address}/{VERSIONS}/{version}")
        return written

    def manifest(self, version: str) -> Manifest:
        """Return a version's manifest, held against what was published."""
        attempt, expected = self._published(version)
        name = f"{VERSIONS}/{version}/{attempt}/{MANIFEST_NAME}"
        try:
            raw = self.read(name)
            sealed = self.read(f"{VERSIONS}/{version}/{attempt}/{SEAL_NAME}")
        except OSError as error:
            raise ArtifactCorrupt(f"{self._address}/{name} cannot be read: {error}", expected="a manifest") from error
        found = hashlib.sha256(raw).hexdigest()
        if found != expected:
            raise ArtifactCorrupt(
                f"{self._address}/{name} has SHA-256 {found}",
                expected=f"{expected}, as published",
                consequence="the version is not used",
                mend="roll back to another version",
            )
        return unseal(raw, sealed, f"{self._address}/{name}")

    def read_file(self, version: str, name: str) -> bytes:
        """Return one file of a version."""
        return self.read(f"{VERSIONS}/{version}/{self._published(version)[0]}/{name}")

    def sha256(self, version: str, name: str) -> str:
        """Return the SHA-256 of one file of a version."""
        return hashlib.sha256(self.read_file(version, name)).hexdigest()

    def size(self, version: str) -> int:
        """Return how many bytes the objects of a version hold, other attempts included."""
        total = 0
        for name in self._full(f"{VERSIONS}/{version}"):
            # somebody else may be removing it
            with suppress(FileNotFoundError), self._asking(name):
                total += int(self._files.size(f"{self._root}/{name}") or 0)
        return total

    def pointers(self) -> tuple[str, ...]:
        """Return the names that are set, sorted."""
        return tuple(sorted(name for name in self._below(POINTERS) if "/" not in name))

    def pointer(self, name: str) -> str | None:
        """Return the version that a name stands for, or None."""
        try:
            return decoded_pointer(self.read(f"{POINTERS}/{name}"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise ArtifactCorrupt(
                f"pointer {self._address}/{POINTERS}/{name} cannot be read: {error}", mend="anabranch model promote"
            ) from error

    def point(self, name: str, version: str) -> bool:
        """Let a name stand for a version, and take it back when somebody is removing that."""
        if not self._stays(version):
            return False
        before = None
        with suppress(ArtifactCorrupt):  # moving a damaged pointer mends it
            before = self.pointer(name)
        self.write(f"{POINTERS}/{name}", encoded_pointer(version))
        if self._stays(version):
            return True
        if before is None:
            self._remove(f"{POINTERS}/{name}")
        else:
            self.write(f"{POINTERS}/{name}", encoded_pointer(before))
        return False

    def delete(self, version: str) -> bool:
        """Leave a mark, look at the pointers, then remove the version: what makes it visible first."""
        if not self.has(version):
            return False
        mark = f"{VERSIONS}/{version}/{DELETING}"
        self.write(mark, b"\n")
        if version in map(self.pointer, self.pointers()):
            self._remove(mark)
            return False
        self._remove(f"{VERSIONS}/{version}/{PUBLISHED}")
        for name in self._full(f"{VERSIONS}/{version}"):
            if not name.endswith(f"/{DELETING}"):
                self._remove(name)
        # the mark last: a pointer that is moved meanwhile finds it
        self._remove(mark)
        return True

    def sweep(self, before: int) -> int:
        """Remove marks and attempts of the dead; what was put after a time may belong to somebody alive."""
        published = {}
        for version in self.versions():
            # one that is removed just now, or damaged: its pieces are not touched
            with suppress(ArtifactCorrupt):
                published[version] = self._published(version)[0]
        removed = 0
        for name in self._below(VERSIONS):
            version, part = name.split("/")[:2]
            kept = part == PUBLISHED or part == published.get(version)
            with suppress(FileNotFoundError):
                if not kept and self._changed(f"{VERSIONS}/{name}") < before:
                    self._remove(f"{VERSIONS}/{name}")
                    removed += 1
        return removed

    def _published(self, version: str) -> tuple[str, str]:
        """Return the attempt that a version is, and its manifest's SHA-256."""
        name = f"{VERSIONS}/{version}/{PUBLISHED}"
        try:
            words = self.read(name).decode("ascii").split()
        except (OSError, UnicodeDecodeError) as error:
            raise ArtifactCorrupt(f"{self._address}/{name} cannot be read: {error}", expected="a version") from error
        if len(words) != 2:
            raise ArtifactCorrupt(
                f"{self._address}/{name} holds {len(words)} words", expected="an attempt and a SHA-256"
            )
        return words[0], words[1]

    def _stays(self, version: str) -> bool:
        return self.has(version) and not self._exists(f"{VERSIONS}/{version}/{DELETING}")

    def _claim(self, name: str, line: bytes) -> bool:
        """Put an object if there is none; tell whether it is ours."""
        try:
            with self._writing(name):
                self._files.pipe_file(f"{self._root}/{name}", line, mode="create")
        except (FileExistsError, StoreError):
            if not self._exists(name):
                raise
        # read in any case: a put that was sent again after its answer got lost was refused by its own object
        return self.read(name) == line

    def _exists(self, name: str) -> bool:
        with self._asking(name):
            return bool(self._files.exists(f"{self._root}/{name}"))

    def _full(self, folder: str) -> list[str]:
        return [f"{folder}/{name}" for name in self._below(folder)]

    def _below(self, folder: str) -> list[str]:
        """Return the names of all objects below a folder, relative to it."""
        start = f"{self._root}/{folder}/"
        with self._asking(folder):
            return [name[len(start) :] for name in self._files.find(start) if name.startswith(start)]

    def _changed(self, name: str) -> int:
        with self._asking(name):
            moment: datetime = self._files.modified(f"{self._root}/{name}")
        return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1_000)

    def _remove(self, name: str) -> None:
        with suppress(FileNotFoundError), self._asking(name):
            self._files.rm_file(f"{self._root}/{name}")

    @contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        try:
            with self._asking(name):
                yield
        except FileNotFoundError as error:
            raise StoreError(
                f"{self._address}/{name} cannot be written: {error}",
                expected="a bucket or folder that exists",
                mend="make the bucket first",
            ) from error

    @contextmanager
    def _asking(self, name: str) -> Iterator[None]:
        """Tell of a store that does not answer; that a file is there or not is an answer."""
        try:
            yield
        except (FileNotFoundError, FileExistsError, AnabranchError):
            raise
        except Exception as error:  # each file system has its own errors, which share no base
            raise StoreUnreachable(
                f"{self._address}/{name} cannot be reached: {type(error).__name__}: {error}",
                expected="a store that answers",
                mend="check the address, the credentials and the endpoint",
            ) from error
