"""The manifest: what a stored artifact is, made of what, with what guarantee."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from common.errors import ArtifactCorrupt
from common.privacy import PrivacyClaim

FORMAT = 1
"""Version of the store's layout; another one is refused, not guessed at."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Shape and dtype (numpy's name, "float32") of one stored tensor."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """Describes one immutable artifact.

    Parameters
    ----------
    kind
        "adapter" (a model version), "mf-snapshot", "blend-snapshot", "checkpoint".
    version
        Its name.
    parents
        The versions it was made from.
    created_at
        Milliseconds since the epoch.
    base_encoder, base_sha256
        The encoder's name and the SHA-256 of its weights; empty where no encoder is involved.
    tensors
        Tensor name to shape and dtype.
    files
        File name, relative to the artifact's folder, to its SHA-256.
    metrics
        Row name ("global", "zero_shot") to metric name to value.
    privacy
        The claim, or None.
    details
        Kind-specific JSON values ("round", "strategy", "seed", "adapter_sha256").
    format
        Layout version.
    """

    kind: str
    version: str
    parents: tuple[str, ...]
    created_at: int
    base_encoder: str = ""
    base_sha256: str = ""
    tensors: Mapping[str, TensorSpec] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    privacy: PrivacyClaim | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    format: int = FORMAT


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the manifest as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def decode_manifest(raw: bytes, where: str) -> Manifest:
    """Read a manifest back.

    Raises
    ------
    ArtifactCorrupt
        When it is not a manifest of this format; `where` is named.
    """
    try:
        manifest = msgspec.json.decode(raw, type=Manifest, strict=True)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise ArtifactCorrupt(f"{where} is not a manifest: {error}", mend="roll back to another version") from error
    if manifest.format != FORMAT:
        raise ArtifactCorrupt(
            f"{where} has format {manifest.format}",
            expected=f"format {FORMAT}",
            mend="use the program version that wrote it",
        )
    return manifest
