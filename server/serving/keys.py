"""API keys: 256 random bits each, of which only the SHA-256 is kept.

A slow hash protects passwords that people choose; nobody guesses 256 random bits, so a fast one is enough.
"""

import hashlib
import hmac
import logging
import os
import secrets
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, get_args

import msgspec

from common.clock import Clock, wall_clock
from common.disk import DISK
from common.errors import ServiceError, UnknownName, UsageError

log = logging.getLogger(__name__)
Scope = Literal["read", "write", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
PREFIX = "anb_"
SCHEMA = 1
_OWNER_ONLY = 0o600
_OTHERS_WRITE = 0o022
_NAME_LENGTH = 100


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One key, without the key.

    Parameters
    ----------
    key_id
        What people call it by; no secret.
    name
        Who or what it is for.
    sha256
        Of the secret, hexadecimal.
    scopes
        "read": ask; "write": send events; "admin": both, and the figures.
    created_at, revoked_at
        Milliseconds since the epoch; None while it is good.
    """

    key_id: str
    name: str
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    scopes: tuple[Scope, ...]
    created_at: int
    revoked_at: int | None = None

    def allows(self, scope: Scope) -> bool:
        """Tell whether the key may do it."""
        return scope in self.scopes or "admin" in self.scopes


class _File(msgspec.Struct, frozen=True):
    schema: int
    keys: tuple[ApiKey, ...]


def digest_of(secret: str) -> str:
    """Return the SHA-256 of a secret, hexadecimal."""
    return hashlib.sha256(secret.encode("utf-8", errors="surrogatepass")).hexdigest()


class KeyFile:
    """Keys in a file that its owner alone can read; a service sees a change with the next request.

    Parameters
    ----------
    path
        The file.
    clock
        For times of creation and revocation.
    """

    def __init__(self, path: Path, clock: Clock = wall_clock) -> None:
        self.path, self._clock = path, clock
        self._lock = threading.Lock()
        self._seen: tuple[int, int, int] | None = None
        self._keys: tuple[ApiKey, ...] = ()

    def keys(self) -> tuple[ApiKey, ...]:
        """Return all keys, revoked ones too.

        Raises
        ------
        ServiceError
            When the file is missing, can be changed by others, or holds something else.
        """
        with self._lock:
            try:
                status = self.path.stat()
                mark = (status.st_mtime_ns, status.st_size, status.st_ino)
                if mark != self._seen:
                    self._keys, self._seen = self._read(status.st_mode), mark
            except OSError as error:
                raise ServiceError(
                    f"key file {self.path} cannot be read: {error.strerror}",
                    expected="a file of keys",
                    consequence="no key is accepted",
                    mend="anabranch keys new",
                ) from error
            return self._keys

    def holder(self, secret: str) -> ApiKey | None:
        """Return the key that the secret opens, or None; takes as long whichever it is."""
        given, found = digest_of(secret), None
        for key in self.keys():
            if hmac.compare_digest(key.sha256, given) and key.revoked_at is None:
                found = key
        return found

    def new(self, name: str, scopes: Iterable[Scope]) -> tuple[ApiKey, str]:
        """Add a key and return it with its secret, which is nowhere else.

        Raises
        ------
        UsageError
            When the name or the scopes cannot be.
        ServiceError
            When the file cannot be read or written.
        """
        kept = tuple(scope for scope in SCOPES if scope in set(scopes))
        if not kept or not 0 < len(name) <= _NAME_LENGTH or not name.isprintable():
            raise UsageError(
                f"a key named {name[:_NAME_LENGTH]!r} with scopes {list(kept)}",
                expected=f"a name of 1 to {_NAME_LENGTH} printable characters and one or more of {', '.join(SCOPES)}",
            )
        secret = PREFIX + secrets.token_urlsafe(32)
        key = ApiKey(secrets.token_hex(4), name, digest_of(secret), kept, self._clock())
        with self._changing() as keys:
            keys.append(key)
        return key, secret

    def revoke(self, key_id: str) -> ApiKey:
        """Make a key good for nothing from now on.

        Raises
        ------
        UnknownName
            When there is no such key.
        """
        with self._changing() as keys:
            for place, key in enumerate(keys):
                if key.key_id == key_id:
                    keys[place] = replace(key, revoked_at=key.revoked_at or self._clock())
                    return keys[place]
            raise UnknownName("key", key_id, [key.key_id for key in keys] or ["(none)"], mend="anabranch keys list")

    def _read(self, mode: int) -> tuple[ApiKey, ...]:
        if mode & _OTHERS_WRITE:
            raise ServiceError(
                f"key file {self.path} can be changed by others (mode {mode & 0o777:o})",
                expected="mode 600",
                consequence="no key is accepted",
                mend=f"chmod 600 {self.path}, after looking at what is in it",
            )
        try:
            read = msgspec.json.decode(self.path.read_bytes(), type=_File)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise ServiceError(
                f"{self.path} is no key file: {error}",
                consequence="no key is accepted",
                mend="restore it from a backup",
            ) from error
        if read.schema != SCHEMA:
            raise ServiceError(
                f"{self.path} has schema {read.schema}", expected=f"{SCHEMA}", mend="use the program that wrote it"
            )
        return read.keys

    @contextmanager
    def _changing(self) -> Iterator[list[ApiKey]]:
        """Give the keys to change; at the block's end the file holds them, or what it held before."""
        aside = self.path.with_name(self.path.name + ".new")
        try:
            # exclusive: it is the lock against a second writer, too
            handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _OWNER_ONLY)
        except FileExistsError as error:
            raise ServiceError(
                f"{aside} is there: another command is changing the keys, or one was killed",
                consequence="nothing was changed",
                mend=f"wait, or remove {aside}",
            ) from error
        except OSError as error:
            raise ServiceError(f"{self.path} cannot be written: {error.strerror}") from error
        try:
            with os.fdopen(handle, "wb") as file:
                keys = list(self.keys()) if self.path.exists() else []
                yield keys
                file.write(msgspec.json.format(msgspec.json.encode(_File(SCHEMA, tuple(keys)))) + b"\n")
                file.flush()
                DISK.sync(file.fileno())
            DISK.replace(aside, self.path)
            DISK.sync_folder(self.path.parent)
        finally:
            DISK.remove(aside)
