"""What the registry needs of the place where a store lies. Every storage passes the laws of `tests/contracts/`."""

import hashlib
from collections.abc import Mapping
from typing import Protocol

from common.manifests import Manifest

VERSIONS = "versions"
POINTERS = "pointers"


class Storage(Protocol):
    """A place for immutable versions and movable names. Names of versions and pointers were checked by the caller."""

    @property
    def address(self) -> str:
        """What a person would type to name the place."""
        ...

    def read(self, name: str) -> bytes:
        """Return the content of a file at the top; `FileNotFoundError` when there is none."""
        ...

    def write(self, name: str, content: bytes) -> None:
        """Replace a file at the top, or create it: readers see the old content or the new one."""
        ...

    def versions(self) -> tuple[str, ...]:
        """Return the names of all whole versions, sorted."""
        ...

    def has(self, version: str) -> bool:
        """Tell whether the version is there, and whole."""
        ...

    def publish(self, version: str, files: Mapping[str, bytes], manifest: Manifest) -> Manifest:
        """Make a version visible, all of it at once; return its manifest as written.

        Raises
        ------
        FileExistsError
            When it is there already: of two publishers of one version one wins, and the other gets this.
        """
        ...

    def manifest(self, version: str) -> Manifest:
        """Return a version's manifest.

        Raises
        ------
        ArtifactCorrupt
            When it cannot be read or was changed since it was published.
        """
        ...

    def read_file(self, version: str, name: str) -> bytes:
        """Return one file of a version, unchecked; `OSError` when it cannot be read."""
        ...

    def sha256(self, version: str, name: str) -> str:
        """Return the SHA-256 of one file of a version; `OSError` when it cannot be read."""
        ...

    def size(self, version: str) -> int:
        """Return how many bytes the version takes."""
        ...

    def pointers(self) -> tuple[str, ...]:
        """Return the names that are set, sorted."""
        ...

    def pointer(self, name: str) -> str | None:
        """Return the version that a name stands for, or None when it is not set.

        Raises
        ------
        ArtifactCorrupt
            When it cannot be read.
        """
        ...

    def point(self, name: str, version: str) -> bool:
        """Let a name stand for a version, in one step; False, and no change, when there is no such version."""
        ...

    def delete(self, version: str) -> bool:
        """Remove a version; False, and no change, when there is none or a name stands for it.

        It disappears for readers at once; one that has just begun to read it finds files missing.
        """
        ...

    def sweep(self, before: int) -> int:
        """Remove what dead publishers left behind before a time (milliseconds); return how many pieces."""
        ...


def decoded_pointer(raw: bytes) -> str:
    """Return the version that a pointer's content names.

    Raises
    ------
    ValueError
        When it is no text, or its check does not fit the name: a flipped digit would name another version.
    """
    words = raw.decode("utf-8").split()
    # a name alone is what a person, or a store of before, wrote
    if not 1 <= len(words) <= 2 or words[1:] not in ([], [_check(words[0])]):
        raise ValueError(f"{raw[:60]!r} is not a version and its check")
    return words[0]


def encoded_pointer(version: str) -> bytes:
    """Return a pointer's content: the version and a check of its name."""
    return f"{version} {_check(version)}\n".encode()


def _check(version: str) -> str:
    return hashlib.sha256(version.encode()).hexdigest()[:16]
