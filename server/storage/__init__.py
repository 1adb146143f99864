"""Where a store of models lies: a local folder, or any file system that fsspec knows."""

import re
from pathlib import Path

from common.errors import InvalidSetting
from server.storage.base import Storage
from server.storage.local import LocalStorage
from server.storage.remote import RemoteStorage

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://")


def is_remote(address: Path | str) -> bool:
    """Tell whether an address, as a person types it, is no local folder."""
    return isinstance(address, str) and _ADDRESS.match(address) is not None


def storage_at(address: Path | str) -> Storage:
    """Return the storage at a folder or an address like ``s3://bucket/prefix``; nothing is read.

    Raises
    ------
    InvalidSetting
        When a remote address is given where only a local folder will do.
    StoreError
        When an address needs a package that is not installed.
    """
    if is_remote(address):
        return RemoteStorage(str(address))
    folder = Path(address)
    # a command that takes a folder gets s3://bucket as the relative path s3:/bucket
    if folder.parts and re.fullmatch(r"[a-z][a-z0-9+.-]+:", folder.parts[0]):
        raise InvalidSetting(
            f"the store {str(folder)!r}",
            expected="a local folder: this command works on local files",
            consequence="nothing was written",
            mend="work in a folder, and let anabranch model copy bring versions to the address",
        )
    return LocalStorage(folder)
