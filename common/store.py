"""Durable files: whole or not at all, and never a pickle.

Everything on disk is written to a temporary name, synced, renamed, and the folder synced, so a reader sees the old
content or the new one. Arrays are safetensors.
"""

import hashlib
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from common.errors import ArtifactCorrupt
from common.manifests import Manifest, decode_manifest, encode_manifest

MANIFEST_NAME = "manifest.json"


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_atomic(path: Path, content: bytes) -> None:
    """Replace the file at `path`, or create it, in one step that survives a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        _write_synced(temporary, content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pack_arrays(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Return the arrays as safetensors bytes; the same arrays give the same bytes."""
    packed: bytes = save_tensors({name: np.asarray(arrays[name], order="C") for name in sorted(arrays)})
    return packed


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


def publish_folder(target: Path, files: Mapping[str, bytes], manifest: Manifest) -> Manifest:
    """Write an immutable artifact: its files, then the manifest with their hashes, then one rename.

    Parameters
    ----------
    target
        The folder to create.
    files
        Relative name ("adapter/adapter_model.safetensors") to content.
    manifest
        Its `files` are filled in here.

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
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        folders = {staging}
        for name, content in files.items():
            path = staging / name
            path.parent.mkdir(parents=True, exist_ok=True)
            folders.add(path.parent)
            _write_synced(path, content)
        hashes = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())}
        written = replace(manifest, files=hashes)
        staging.mkdir(exist_ok=True)
        _write_synced(staging / MANIFEST_NAME, encode_manifest(written))
        for folder in folders:
            sync_folder(folder)
        os.rename(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    sync_folder(target.parent)
    return written


def read_manifest(folder: Path) -> Manifest:
    """Read an artifact's manifest.

    Raises
    ------
    ArtifactCorrupt
        When it is missing or unreadable.
    """
    path = folder / MANIFEST_NAME
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ArtifactCorrupt(f"{path} cannot be read: {error.strerror}", expected="a manifest") from error
    return decode_manifest(raw, str(path))


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
