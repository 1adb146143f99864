"""Versions on their way out of a store: a folder that PEFT loads, or another store."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.encoder.card import CardFacts, hub_name, model_card
from common.errors import ArtifactCorrupt, InvalidSetting
from common.manifests import Manifest
from common.store import publish_folder
from server.artifact import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from server.registry import Registry

CARD = "README.md"


def export(registry: Registry, version: str, target: Path, licence: str) -> Manifest:
    """Write a version's adapter as a PEFT directory with a model card; whole or not at all.

    Parameters
    ----------
    version
        A version, or the name of a pointer.
    target
        The folder to make.
    licence
        What is to be said about the licence of the data.

    Returns
    -------
    Manifest
        Of the folder: the version's, with the hashes of the folder's files.

    Raises
    ------
    InvalidSetting
        When `target` is there already.
    ArtifactCorrupt
        When a file of the version is damaged; nothing is written.
    """
    if target.exists():
        raise InvalidSetting(
            f"{target} is there already", expected="a folder that is not", consequence="nothing was written"
        )
    manifest = registry.verify(version)
    config = _config(registry.read(manifest.version, ADAPTER_CONFIG), manifest.version)
    config["base_model_name_or_path"] = hub_name(manifest.base_encoder)
    facts = CardFacts(
        version=manifest.version,
        parents=manifest.parents,
        encoder=manifest.base_encoder,
        encoder_sha256=manifest.base_sha256,
        data=registry.info.data,
        licence=licence,
        privacy=manifest.privacy,
        metrics=manifest.metrics,
        details=manifest.details,
    )
    files = {
        Path(ADAPTER_CONFIG).name: json.dumps(config, indent=2, sort_keys=True).encode() + b"\n",
        Path(ADAPTER_WEIGHTS).name: registry.read(manifest.version, ADAPTER_WEIGHTS),
        CARD: model_card(facts).encode(),
    }
    # a path of this machine is nobody else's business
    named = hub_name(manifest.base_encoder) or Path(manifest.base_encoder).name
    return publish_folder(target, files, replace(manifest, base_encoder=named))


def copy_version(source: Registry, version: str, target: Path | str) -> tuple[Registry, Manifest]:
    """Publish a version of one store in another, which is made when it is not there; no name is moved.

    Parameters
    ----------
    version
        A version, or the name of a pointer.
    target
        A folder, or an address like ``s3://bucket/prefix``.

    Returns
    -------
    tuple[Registry, Manifest]
        The other store, and the manifest there; its parents are named as before, whether or not they are there too.

    Raises
    ------
    ArtifactCorrupt
        When a file of the version is damaged; nothing is written.
    StoreMismatch
        When the other store was made for something else.
    VersionExists
        When it has the version already.
    """
    manifest = source.verify(version)
    files = {name: source.read(manifest.version, name) for name in manifest.files}
    other = Registry.create(target, source.info, source.catalogue)
    return other, other.publish(files, manifest)


def _config(raw: bytes, version: str) -> dict[str, Any]:
    try:
        config = json.loads(raw)
    except ValueError as error:
        raise ArtifactCorrupt(f"{ADAPTER_CONFIG} of version {version!r} is no JSON: {error}") from error
    if not isinstance(config, Mapping):
        raise ArtifactCorrupt(f"{ADAPTER_CONFIG} of version {version!r} is no object", expected="PEFT's configuration")
    return dict(config)
