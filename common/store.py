"""Durable files: whole or not at all, and never a pickle.

Everything on disk is written to a temporary name, synced, renamed, and the folder synced, so a reader sees the old
content or the new one. Arrays are safetensors.

An artifact is a folder: its files, ``manifest.json`` with their SHA-256s, and ``manifest.sha256`` with the manifest's
own, in the form that ``sha256sum --check`` reads.
"""

import hashlib
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors

from common.disk import DISK, Content, Disk, parts_of
from common.errors import ArtifactCorrupt
from common.manifests import Manifest, decode_manifest, encode_manifest

MANIFEST_NAME = "manifest.json"
SEAL_NAME = "manifest.sha256"
_DTYPES = {
    name: (rank, kind)
    for rank, (name, kind) in enumerate(
        [
            ("bool", "BOOL"), ("uint8", "U8"), ("int8", "I8"), ("int16", "I16"), ("uint16", "U16"), ("float16", "F16"),
            ("int32", "I32"), ("uint32", "U32"), ("float32", "F32"), ("float64", "F64"), ("int64", "I64"),
            ("uint64", "U64"),
        ]
    )
}  # fmt: skip
"""numpy's types in the order of safetensors, which lays out the last ones first, and their names there."""
_NAMES = {kind: name for name, (_, kind) in _DTYPES.items()}


_METADATA = "__metadata__"
"""Where a header holds texts beside its arrays; ours do not."""


class _Tensor(msgspec.Struct, frozen=True):
    """One entry of a safetensors header."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    DISK.sync_folder(folder)


def write_atomic(path: Path, content: bytes, disk: Disk = DISK) -> None:
    """Replace the file at `path`, or create it, in one step that survives a power cut."""
    disk.make_folders(path.parent)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        disk.write(temporary, content)
        disk.replace(temporary, path)
    finally:
        disk.remove(temporary)
    disk.sync_folder(path.parent)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pack_arrays(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Return the arrays as safetensors bytes; the same arrays give the same bytes.

    They are those of `safetensors.numpy.save`, which copies everything twice where this copies once.

    Raises
    ------
    KeyError
        When the format has no name for the type of an array.
    """
    return b"".join(array_parts(arrays))


def array_parts(arrays: Mapping[str, np.ndarray]) -> list[bytes | memoryview]:
    """Return what `pack_arrays` joins; nothing is copied, so a part changes with its array.

    The format: the header's length in 8 bytes, the header in JSON, filled up with blanks to a multiple of 8, the
    arrays' own bytes.

    Raises
    ------
    KeyError
        When the format has no name for the type of an array.
    """
    named = [
        (name, np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")) for name, array in arrays.items()
    ]
    named.sort(key=lambda pair: (-_DTYPES[pair[1].dtype.name][0], pair[0]))
    header: dict[str, object] = {}
    end = 0
    for name, array in named:
        start, end = end, end + array.nbytes
        kind = _DTYPES[array.dtype.name][1]
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": (start, end)}
    told = msgspec.json.encode(header)
    told += b" " * (-len(told) % 8)
    return [len(told).to_bytes(8, "little"), told, *(array.reshape(-1).view(np.uint8).data for _, array in named)]


def unpack_arrays(raw: bytes, where: str) -> dict[str, np.ndarray]:
    """Read safetensors bytes.

    Raises
    ------
    ArtifactCorrupt
        When they are not; `where` is named.
    """
    try:
        arrays: dict[str, np.ndarray] = load_tensors(raw)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ArtifactCorrupt(f"{where} is not a safetensors file: {error}") from error
    return arrays


def map_bytes(path: Path) -> np.ndarray:
    """Map a file, uint8 [b]: read only, shared by all processes that map it, and read when touched.

    Raises
    ------
    OSError
        When it cannot be opened.
    """
    try:
        return np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
    except ValueError:  # a file without a byte cannot be mapped
        return np.empty(0, dtype=np.uint8)


def view_arrays(raw: np.ndarray, where: str) -> dict[str, np.ndarray]:
    """Return the arrays of a safetensors file's bytes, uint8 [b], none of which is copied.

    Raises
    ------
    ArtifactCorrupt
        When its header does not fit its bytes; `where` is named.
    """
    try:
        told = 8 + int.from_bytes(raw[:8].tobytes(), "little")
        header = msgspec.json.decode(raw[8:told].tobytes(), type=dict[str, msgspec.Raw])
        header.pop(_METADATA, None)
        arrays = {}
        for name, entry in header.items():
            tensor = msgspec.json.decode(entry, type=_Tensor)
            start, end = tensor.data_offsets
            flat = raw[told + start : told + end].view(_NAMES[tensor.dtype])
            arrays[name] = flat.reshape(tensor.shape)
    except (ValueError, KeyError, msgspec.DecodeError, msgspec.ValidationError) as error:
        raise ArtifactCorrupt(f"{where} is not a safetensors file: {error}") from error
    return arrays


def map_arrays(path: Path) -> dict[str, np.ndarray]:
    """Map the arrays of a safetensors file; see `map_bytes` and `view_arrays`. They are not held against a hash.

    Raises
    ------
    ArtifactCorrupt
        When its header does not fit its bytes.
    OSError
        When it cannot be opened.
    """
    return view_arrays(map_bytes(path), str(path))


def publish_folder(target: Path, files: Mapping[str, Content], manifest: Manifest, disk: Disk = DISK) -> Manifest:
    """Write an immutable artifact: its files, then the manifest with their hashes, then one rename.

    Parameters
    ----------
    target
        The folder to create.
    files
        Relative name ("adapter/adapter_model.safetensors") to content, whole or in parts.
    manifest
        Its `files` are filled in here.
    disk
        What writes.

    Returns
    -------
    Manifest
        As written.

    Raises
    ------
    FileExistsError
        When `target` is there already: versions are immutable.
    """
    if target.exists():
        raise FileExistsError(str(target))
    disk.make_folders(target.parent)
    staging = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        disk.make_folder(staging)
        # hashing frees the interpreter and the disk needs no processor: beside each other they take the longer's time
        with ThreadPoolExecutor(1) as beside:
            hashes = beside.submit(_hashes, files)
            _write_all(staging, files, disk)
        written, sealed = _sealed(hashes.result(), manifest)
        _write_all(staging, sealed, disk)
        for folder in {staging, *(path.parent for name in files for path in _below(staging, name))}:
            disk.sync_folder(folder)
        disk.rename(staging, target)
    finally:
        disk.remove_tree(staging)
    disk.sync_folder(target.parent)
    return written


def _write_all(folder: Path, files: Mapping[str, Content], disk: Disk) -> None:
    for name, content in files.items():
        disk.make_folders((folder / name).parent)
        disk.write(folder / name, content)


def _below(folder: Path, name: str) -> list[Path]:
    """Return the path of a file and of the folders that hold it, all below `folder`."""
    path = folder / name
    return [path, *(parent for parent in path.parents if parent.is_relative_to(folder) and parent != folder)]


def seal(files: Mapping[str, bytes], manifest: Manifest) -> tuple[Manifest, dict[str, bytes]]:
    """Return the manifest with the files' hashes in it, and what it is written as: name to content."""
    return _sealed(_hashes(files), manifest)


def _hashes(files: Mapping[str, Content]) -> dict[str, str]:
    return {name: _sha256(parts_of(content)) for name, content in sorted(files.items())}


def _sha256(parts: Sequence[bytes | memoryview]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _sealed(hashes: Mapping[str, str], manifest: Manifest) -> tuple[Manifest, dict[str, bytes]]:
    written = replace(manifest, files=hashes)
    raw = encode_manifest(written)
    return written, {MANIFEST_NAME: raw, SEAL_NAME: f"{hashlib.sha256(raw).hexdigest()}  {MANIFEST_NAME}\n".encode()}


def unseal(raw: bytes, sealed: bytes | None, where: str) -> Manifest:
    """Read a manifest that is as it was sealed.

    Parameters
    ----------
    raw, sealed
        Content of the manifest and of its seal; None for an artifact that was written before there were seals.
    where
        The manifest's path, for messages.

    Raises
    ------
    ArtifactCorrupt
        When it does not fit its seal, or is no manifest.
    """
    found = f"{hashlib.sha256(raw).hexdigest()}  {MANIFEST_NAME}\n".encode()
    manifest = decode_manifest(raw, where)
    if sealed not in (None, found):
        raise ArtifactCorrupt(
            f"{where} has SHA-256 {found[:64].decode()}",
            expected=f"what {SEAL_NAME} says, {sealed[:64]!r}",
            consequence="the artifact is not used",
            mend="roll back to another version",
        )
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Read an artifact's manifest, held against its seal.

    Raises
    ------
    ArtifactCorrupt
        When it is missing, unreadable or changed.
    """
    path = folder / MANIFEST_NAME
    try:
        raw = path.read_bytes()
        sealed = (folder / SEAL_NAME).read_bytes() if (folder / SEAL_NAME).exists() else None
    except OSError as error:
        raise ArtifactCorrupt(f"{path} cannot be read: {error.strerror}", expected="a manifest") from error
    return unseal(raw, sealed, str(path))


def verify_folder(folder: Path) -> Manifest:
    """Re-hash every file of an artifact and return its manifest.

    Raises
    ------
    ArtifactCorrupt
        When a file is missing or differs, naming it.
    """
    manifest = read_manifest(folder)
    for name, expected in manifest.files.items():
        path = folder / name
        found = file_sha256(path) if path.is_file() else "no such file"
        if found != expected:
            raise ArtifactCorrupt(
                f"{path} has SHA-256 {found}",
                expected=expected,
                consequence="the version is not served",
                mend="roll back to another version",
            )
    return manifest
